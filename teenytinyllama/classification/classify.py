"""`ttl classify`: one model fine-tuned on one task with several seeds. A seed that is done is not done again.

The scores of all seeds are summarised in `classification.md`, which also says how sure they are, and in `results.json`.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..arguments import write_yaml
from ..checks import InputError, ensure_packages
from ..distributed import prepare_rank
from ..energy.emissions import EmissionsTotal, read_emissions
from ..energy.meter import check_energy
from ..energy.recorder import StageMeter
from ..evaluation.results import FINE_TUNED_SUITE, Results, Score, merge_results, write_results
from ..gpus import device_name
from ..launching.processes import stopped_by_signals
from ..stage_folder import (
    CLASSIFICATION_TABLE_NAME,
    CONFIG_NAME,
    EMISSIONS_NAME,
    MANIFEST_NAME,
    RESULTS_NAME,
    StageFolder,
    command_line,
    lock_run_folder,
    sha256_json,
    versions,
    write_json,
)
from ..tokenizer.files import frame_tokenizer
from .config import CHOSEN_ON_TEST, LOCAL, MODEL_FOLDER, PAPER, SPLITS, ClassifyConfig, Task, find_task
from .finetune import Base, Encoded, Framing, choose_length, describe_framing, encode, finetune, frame, load_base
from .labelled_rows import (
    CUT_RULE,
    METRICS,
    LabelledRows,
    Splits,
    Summary,
    complete_splits,
    item_error,
    majority_scores,
    read_task,
    score_word_counts,
    summarise,
)

_VERSIONED = ("torch", "transformers", "tokenizers", "accelerate", "scikit-learn", "numpy")
_IDENTITY = (
    "task select random_init num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate "
    "warmup_steps weight_decay group_by_length seed baseline"
)


@dataclass(frozen=True)
class ClassifyPlan:
    """Everything that is known and checked before the first seed is trained."""

    task: Task
    found: LabelledRows
    splits: Splits
    base: Base
    framing: Framing
    data: dict[str, Encoded]
    max_length: int
    identity: dict[str, Any]
    place: StageFolder
    has_begun: bool

    def labels_of(self, split: str) -> list[int]:
        """Return the true labels of a split."""
        return [example.label for example in self.splits.rows[split]]


def plan_classify(config: ClassifyConfig) -> ClassifyPlan:
    """Check a config against the task's rows, the model and the output folder; writes nothing.

    Raises:
        InputError: rows, model and lengths that do not fit (see `read_task`, `load_base`, `choose_length`), an unknown
            country, or a folder that holds another run.
    """
    check_energy(config)
    task = find_task(config.task)
    found = read_task(task, config)
    splits = complete_splits(found.splits, config.max_train_rows)
    base = load_base(config.model_name_or_path, config.model_revision, found.labels, config.random_init)
    has_pairs = any(example.pair for rows in splits.rows.values() for example in rows)
    framing = frame(base, has_pairs, config.end_token)
    max_length = choose_length(base, framing, config.max_length, task.max_length)
    data = {split: encode(base, framing, splits.rows[split], max_length) for split in SPLITS}
    if not framing.by_tokenizer:  # so that a classifier that is kept reads texts as in its training, whoever loads it
        frame_tokenizer(base.tokenizer, framing.start, framing.separator, framing.end)
    rows = {split: [asdict(example) for example in splits.rows[split]] for split in SPLITS}
    identity = {
        **{name: str(getattr(config, name)) for name in _IDENTITY.split()},
        "max_length": max_length,
        "framing": describe_framing(base, framing),
        "model": base.identity,
        "labels": list(found.labels),
        "rows_sha256": sha256_json(rows),
    }
    place = StageFolder(Path(str(config.output_dir)), "classify", "run")
    begun = place.begun()
    if begun is not None:
        place.ensure_same(begun["identity"], identity)
    return ClassifyPlan(task, found, splits, base, framing, data, max_length, identity, place, begun is not None)


@stopped_by_signals("the seeds that are done are kept; the same command goes on")
def classify(config: ClassifyConfig) -> Path:
    """Fine-tune a model on a task with every seed that is not done yet, and return the folder with the results.

    Written: `seed-N.json` for each seed as soon as it is done, `classification.md`, `results.json`, last `run.json`.

    Raises:
        InputError: see `plan_classify`; also a folder in which another process works.
        MissingPackageError: the extra `eval` is not installed.
        RunFailedError: see `finetune`.
        StoppedResumable: a signal.
    """
    ensure_packages("eval", "sklearn")
    prepare_rank()
    plan = plan_classify(config)
    folder = Path(str(config.output_dir))
    seeds = [config.seed + offset for offset in range(config.seeds)]
    print(_describe(config, plan), flush=True)
    lock = lock_run_folder(folder)
    try:
        if not plan.has_begun:
            plan.place.begin(plan.identity, {"device": device_name()})
        if not (folder / CONFIG_NAME).is_file():
            write_yaml(
                folder / CONFIG_NAME, {name: value for name, value in asdict(config).items() if value is not None}
            )
        missing = [seed for seed in seeds if not (folder / f"seed-{seed}.json").is_file()]
        if config.save_model and config.seed not in missing and not (folder / MODEL_FOLDER).is_dir():
            missing.insert(0, config.seed)  # measured before anyone asked for its model
        baseline = _work(config, plan, folder, missing)
        records = [_read_record(folder / f"seed-{seed}.json") for seed in seeds]
        _finish(config, plan, folder, records, baseline)
    finally:
        lock.release()
    return folder


def _work(config: ClassifyConfig, plan: ClassifyPlan, folder: Path, missing: list[int]) -> dict[str, Any] | None:
    """Train the seeds that are missing, with their energy measured, and return the record of the baseline."""
    place = folder / "baseline.json"
    if not missing and (config.baseline == "none" or place.is_file()):
        print(f"{folder} holds all {config.seeds} seeds already")
        return None if config.baseline == "none" else _read_record(place)

    plan.place.reopen()
    with StageMeter(folder, config) as meter:
        if config.baseline == "tfidf" and not place.is_file():
            write_json(place, score_word_counts(plan.splits.rows, len(plan.found.labels)))
        for seed in missing:
            write_json(
                folder / f"seed-{seed}.json", finetune(plan.base, plan.data, config, seed, folder / "work", meter)
            )
    if (folder / "work").is_dir():
        (folder / "work").rmdir()
    return None if config.baseline == "none" else _read_record(place)


def _read_record(path: Path) -> dict[str, Any]:
    """Return the record of a seed or of the baseline that an earlier start wrote."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}). Delete it, and it is made again.") from error


def _finish(
    config: ClassifyConfig,
    plan: ClassifyPlan,
    folder: Path,
    records: list[dict[str, Any]],
    baseline: dict[str, Any] | None,
) -> None:
    """Write the table, the results and last the manifest; print the table."""
    found = summaries(plan, records, baseline)
    energy = read_emissions(folder / EMISSIONS_NAME)
    table = render_table(config, plan, found, records, energy)
    (folder / CLASSIFICATION_TABLE_NAME).write_text(table, encoding="utf-8")
    results = make_results(config, plan, found, command_line(), versions(_VERSIONED))
    write_results(folder / RESULTS_NAME, results)
    base = Path(plan.base.name).expanduser()
    if (base / MANIFEST_NAME).is_file() and not plan.base.random_init and not plan.splits.left_out:
        merge_results(base / RESULTS_NAME, results)  # where the card of that run looks for them
    manifest = {
        "config": {name: value for name, value in asdict(config).items() if value is not None},
        "data": describe_data(plan),
        "model": {"name": plan.base.name, "revision": plan.base.revision, "identity": plan.base.identity,
                  "encoder": plan.base.is_encoder, "random_init": plan.base.random_init},
        "results": {name: asdict(summary) for name, summary in found.items()},
        "seeds": [{name: record[name] for name in ("seed", "chosen_epoch", "steps", "scores", "seconds")}
                  for record in records],
        "energy": asdict(energy) if energy else None,
    }  # fmt: skip
    plan.place.finish(manifest)
    print("\n" + table, end="")


def describe_data(plan: ClassifyPlan) -> dict[str, Any]:
    """Return what the manifest says about the rows."""
    labels = plan.found.labels
    return {
        "dataset": plan.found.dataset,
        "revision": plan.found.revision,
        "hashes": plan.found.hashes,
        "labels": list(labels),
        "rows": {split: len(plan.splits.rows[split]) for split in SPLITS},
        "per_label": {split: {name: plan.labels_of(split).count(number) for number, name in enumerate(labels)}
                      for split in SPLITS},
        "cut_here": list(plan.splits.cut),
        "cut_rule": CUT_RULE if plan.splits.cut else None,
        "train_rows_left_out": plan.splits.left_out,
        "share_seen_in_train": plan.splits.seen,
        "max_length": plan.max_length,
        "truncated": {split: plan.data[split].truncated for split in SPLITS},
        "framing": describe_framing(plan.base, plan.framing),
    }  # fmt: skip


def _describe(config: ClassifyConfig, plan: ClassifyPlan) -> str:
    """Return the lines that are printed before the first seed: task, rows, labels, model and input."""
    data, base = describe_data(plan), plan.base
    lines = [
        f"task       {plan.task.title}: {data['dataset']}" + (f" at {data['revision']}" if data["revision"] else ""),
        "rows       " + ", ".join(f"{number:,} {split}" for split, number in data["rows"].items())
        + (f"; {plan.splits.left_out:,} training rows left out by max_train_rows" if plan.splits.left_out else ""),
        f"labels     {', '.join(plan.found.labels)}",
        f"model      {base.name}: {'encoder' if base.is_encoder else 'decoder'}, "
        + ("weights drawn at random" if base.random_init else "with its weights"),
        f"input      {data['framing']}; at most {plan.max_length} tokens; cut: "
        + ", ".join(f"{number:,} of {data['rows'][split]:,} {split}" for split, number in data["truncated"].items()),
    ]  # fmt: skip
    if plan.splits.cut:
        lines.append(f"splits     {' and '.join(plan.splits.cut)} cut from the training rows: {CUT_RULE}")
    for split, share in plan.splits.seen.items():
        if share:
            lines.append(f"warning    {share:.1%} of the {split} rows have a text that is also among the training rows")
    return "\n".join(lines)


ON_TEST = "best_epoch_on_test"
_ON_TEST_NAME = "best epoch chosen on test, as in the paper"
_BASELINE = "tfidf"


def summaries(plan: ClassifyPlan, records: list[dict[str, Any]], baseline: dict[str, Any] | None) -> dict[str, Summary]:
    """Return the summary over the seeds for each metric; the baseline's have names of the form `tfidf_METRIC`."""
    num_labels = len(plan.found.labels)
    truth = plan.labels_of("test")
    trivial = majority_scores(plan.labels_of("train"), truth, num_labels)
    found = {}
    for metric in METRICS:
        errors = [item_error(metric, record["predictions"], truth, num_labels) for record in records]
        found[metric] = summarise([record["scores"][metric] for record in records], errors, trivial[metric])
        if all("best_on_test" in record for record in records):
            values = [record["best_on_test"][metric] for record in records]
            found[f"{metric}_{ON_TEST}"] = summarise(values, errors, trivial[metric])
        if baseline:
            error = item_error(metric, baseline["predictions"], truth, num_labels)
            found[f"{_BASELINE}_{metric}"] = summarise([baseline["scores"][metric]], [error], trivial[metric])
    return found


def metric_title(name: str) -> str:
    """Return the name of a metric in tables; it says so where the epoch was chosen on the test rows."""
    plain = name.removesuffix(f"_{ON_TEST}")
    return METRICS[plain] + (f" ({_ON_TEST_NAME})" if plain != name else "")


def make_results(
    config: ClassifyConfig, plan: ClassifyPlan, found: dict[str, Summary], command: str, versions: dict[str, str]
) -> Results:
    """Return the scores of the model for `results.json`; those of the baseline are not the model's."""
    task, model = plan.task, plan.base
    name, title = _task_name(config, plan)
    scores = [
        Score(
            task=name,
            suite=FINE_TUNED_SUITE,
            name=title,
            metric=metric,
            metric_name=metric_title(metric),
            value=summary.mean,
            dataset_id=task.dataset_id or None if plan.found.revision else None,
            dataset_revision=plan.found.revision,
            dataset_config=task.dataset_config or None if plan.found.revision else None,
            dataset_split="test, cut from train" if "test" in plan.splits.cut else "test",
            stderr=summary.stderr,
            trivial=summary.trivial,
            trivial_kind="majority",
            normalised=summary.normalised,
            num_items=len(plan.splits.rows["test"]),
            truncated_prompts=plan.data["test"].truncated,
            task_hash=plan.identity["rows_sha256"],
            harness=f"transformers {versions.get('transformers')} Trainer, fine-tuned, "
            f"{f'mean of {config.seeds} seeds' if config.seeds > 1 else 'one seed'}",
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        for metric, summary in found.items()
        if not metric.startswith(f"{_BASELINE}_")
    ]
    shown = model.name + (" (random initialisation)" if model.random_init else "")
    return Results(model=shown, command=command, versions=versions, scores=tuple(scores))


def _task_name(config: ClassifyConfig, plan: ClassifyPlan) -> tuple[str, str]:
    """Return name and title of a task; local files are named by the hash of their rows, and titled by their names."""
    if plan.task.name != LOCAL:
        return plan.task.name, plan.task.title
    files = ", ".join(Path(file).name for file in config.train_file or [str(config.data_dir)])
    return f"{LOCAL}-{plan.identity['rows_sha256'][:8]}", f"{plan.task.title} ({files})"


def render_table(
    config: ClassifyConfig,
    plan: ClassifyPlan,
    found: dict[str, Summary],
    records: list[dict[str, Any]],
    energy: EmissionsTotal | None,
) -> str:
    """Return `classification.md`: all figures, with remarks on what limits them."""
    rows = {split: len(plan.splits.rows[split]) for split in ("train", "validation", "test")}
    name = plan.base.name.rstrip("/").split("/")[-1] + (" (random initialisation)" if plan.base.random_init else "")
    lines = [
        f"# {name} on {plan.task.title}",
        "",
        f"{rows['train']:,} training, {rows['validation']:,} validation and {rows['test']:,} test rows; "
        f"{config.seeds} seed{'s' * (config.seeds > 1)} from {config.seed}; {config.num_train_epochs} epochs, batch "
        f"{config.per_device_train_batch_size * config.gradient_accumulation_steps}, rate {config.learning_rate:g}, "
        f"weight decay {config.weight_decay:g}. The validation rows choose the epoch unless a line says otherwise.",
        "",
        "| | score, % | deviation over seeds | standard error (seeds; test rows) | |",
        "|---|---|---|---|---|",
    ]
    for key, summary in found.items():
        if not key.startswith(f"{_BASELINE}_"):
            lines.append(_line(f"**{metric_title(key)}**", summary))
    for metric, title in METRICS.items():
        if f"{_BASELINE}_{metric}" in found:
            lines.append(_line(f"{title} of word counts (TF-IDF, logistic regression)", found[f"{_BASELINE}_{metric}"]))
    for metric, title in METRICS.items():
        lines.append(f"| {title} of the most frequent label | {100 * found[metric].trivial:.2f} | | | |")
    lines += ["", *_remarks(config, plan, records)]
    if plan.task.paper:
        figures = ", ".join(f"{model} {100 * value:.2f}" for model, value in plan.task.paper.items())
        lines += [
            "",
            f"Published accuracy, %: {figures} ({PAPER}; one run each, the best epoch on the test set, which lies "
            "higher than a choice on validation rows would).",
        ]
    if energy:
        minutes = energy.duration_seconds / 60
        lines += [
            "",
            f"Energy of all seeds and the baseline: {energy.energy_kwh:.4f} kWh, "
            f"{1000 * energy.emissions_kg:.1f} g CO2e in {minutes:.1f} minutes.",
        ]
    return "\n".join(lines) + "\n"


def _line(title: str, summary: Summary) -> str:
    """Return the row of one metric in the table."""
    deviation = "" if summary.deviation is None else f"{100 * summary.deviation:.2f}"
    seeds = "not known" if summary.seed_error is None else f"{100 * summary.seed_error:.2f}"
    note = "not above the most frequent label by two standard errors" if summary.is_trivial else ""
    error = f"{100 * summary.stderr:.2f} ({seeds}; {100 * summary.item_error:.2f})"
    return f"| {title} | {100 * summary.mean:.2f} | {deviation} | {error} | {note} |"


def _remarks(config: ClassifyConfig, plan: ClassifyPlan, records: list[dict[str, Any]]) -> list[str]:
    """Return the remarks below the table: chosen epochs, cut rows, splits and texts that splits share."""
    chosen = ", ".join(f"{record['seed']}: {record['chosen_epoch']}" for record in records)
    remarks = [f"- Epoch chosen, by seed: {chosen}."]
    if config.select == CHOSEN_ON_TEST:
        remarks.append("- A best epoch chosen on the test rows has seen them: it flatters, and is here for comparison.")
    cut = {split: data.truncated for split, data in plan.data.items() if data.truncated}
    if cut:
        parts = ", ".join(f"{number:,} of {len(plan.splits.rows[split]):,} {split}" for split, number in cut.items())
        remarks.append(f"- Rows longer than {plan.max_length} tokens were cut: {parts}.")
    if plan.splits.cut:
        remarks.append(
            f"- There was no {' and no '.join(plan.splits.cut)} split: cut from the training rows by a fixed rule, so "
            "that figures on other splits are not comparable."
        )
    if plan.splits.left_out:
        remarks.append(f"- {plan.splits.left_out:,} training rows were left out (max_train_rows).")
    for split, share in plan.splits.seen.items():
        if share:
            remarks.append(f"- {share:.1%} of the {split} rows have a text that is also among the training rows.")
    return remarks
