"""`ttl classify`: all seeds of one model on one task, from the rows to the table; a seed that is done stays done."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..arguments import write_yaml
from ..checks import InputError, ensure_packages
from ..emissions import EMISSIONS_NAME, read_emissions
from ..evaluation.results import RESULTS_NAME, merge_results, write_results
from ..manifest import (
    MANIFEST_NAME,
    command_line,
    package_commit,
    sha256_json,
    versions,
    write_json,
    write_manifest,
)
from ..meter import check_energy
from ..recorder import StageMeter
from ..stopping import stopped_by_signals
from ..training.checkpoints import ENVIRONMENT_NAME, check_run_folder, lock_run_folder
from ..training.hardware import device_name
from ..training.ranks import prepare_rank
from .config import MODEL_FOLDER, SPLITS, ClassifyConfig
from .encoding import Encoded, Framing, choose_length, describe_framing, encode, frame
from .model import Base, load_base
from .rows import TaskRows, read_task
from .splits import CUT_RULE, Splits, complete_splits
from .tasks import Task, find_task

TABLE_NAME = "classification.md"
_VERSIONED = ("torch", "transformers", "tokenizers", "accelerate", "evaluate", "scikit-learn", "numpy")
_IDENTITY = (
    "task select random_init num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate "
    "warmup_steps weight_decay group_by_length seed baseline"
)


@dataclass(frozen=True)
class ClassifyPlan:
    """What was checked before anything is trained."""

    task: Task
    found: TaskRows
    splits: Splits
    base: Base
    framing: Framing
    data: dict[str, Encoded]
    max_length: int
    identity: dict[str, Any]
    state: str

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
    rows = {split: [asdict(example) for example in splits.rows[split]] for split in SPLITS}
    identity = {
        **{name: str(getattr(config, name)) for name in _IDENTITY.split()},
        "max_length": max_length,
        "framing": describe_framing(base, framing),
        "model": base.identity,
        "labels": list(found.labels),
        "rows_sha256": sha256_json(rows),
    }
    state = check_run_folder(Path(str(config.output_dir)), identity)
    return ClassifyPlan(task, found, splits, base, framing, data, max_length, identity, state)


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
    ensure_packages("eval", "evaluate", "datasets", "sklearn")
    prepare_rank()
    plan = plan_classify(config)
    folder = Path(str(config.output_dir))
    seeds = [config.seed + offset for offset in range(config.seeds)]
    print(_describe(config, plan), flush=True)
    lock = lock_run_folder(folder)
    try:
        if plan.state == "new":
            write_yaml(
                folder / "config.yaml", {name: value for name, value in asdict(config).items() if value is not None}
            )
            environment = {"identity": plan.identity, "versions": versions(), "commit": package_commit(),
                           "device": device_name()}  # fmt: skip
            write_json(folder / ENVIRONMENT_NAME, environment)
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
    """Do what is not done yet, with its energy measured, and return the record of the baseline."""
    from .baseline import score_word_counts

    place = folder / "baseline.json"
    if not missing and (config.baseline == "none" or place.is_file()):
        print(f"{folder} holds all {config.seeds} seeds already")
        return None if config.baseline == "none" else _read_record(place)
    from .finetune import finetune

    (folder / "run.json").unlink(missing_ok=True)  # it says that the folder is complete
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
    from .report import make_results, render_table, summaries

    found = summaries(plan, records, baseline)
    energy = read_emissions(folder / EMISSIONS_NAME)
    table = render_table(config, plan, found, records, energy)
    (folder / TABLE_NAME).write_text(table, encoding="utf-8")
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
    write_manifest(folder, "classify", manifest)
    print("\n" + table, end="")


def describe_data(plan: ClassifyPlan) -> dict[str, Any]:
    """Return what a manifest records of the rows."""
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
    """Return what is about to be done."""
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
