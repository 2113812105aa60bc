"""The results of a fine-tuning over its seeds: the file for cards, and the table that says what a score can mean."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..emissions import EmissionsTotal
from ..evaluation.results import FINE_TUNED_SUITE, Results, Score
from .config import CHOSEN_ON_TEST, ClassifyConfig
from .scoring import METRICS, Summary, item_error, majority_scores, summarise
from .tasks import LOCAL, PAPER

if TYPE_CHECKING:
    from .run import ClassifyPlan

ON_TEST = "best_epoch_on_test"
_ON_TEST_NAME = "best epoch chosen on test, as in the paper"
_BASELINE = "tfidf"


def summaries(
    plan: "ClassifyPlan", records: list[dict[str, Any]], baseline: dict[str, Any] | None
) -> dict[str, Summary]:
    """Return the summary of each metric over the seeds, by its name; of the baseline under `tfidf_METRIC`."""
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
    """Return a metric as it is shown, with how its epoch was chosen if that was on the test rows."""
    plain = name.removesuffix(f"_{ON_TEST}")
    return METRICS[plain] + (f" ({_ON_TEST_NAME})" if plain != name else "")


def make_results(
    config: ClassifyConfig, plan: "ClassifyPlan", found: dict[str, Summary], command: str, versions: dict[str, str]
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


def _task_name(config: ClassifyConfig, plan: "ClassifyPlan") -> tuple[str, str]:
    """Return name and title of the task; files of one's own are told apart by their rows and named by their names."""
    if plan.task.name != LOCAL:
        return plan.task.name, plan.task.title
    files = ", ".join(Path(file).name for file in config.train_file or [str(config.data_dir)])
    return f"{LOCAL}-{plan.identity['rows_sha256'][:8]}", f"{plan.task.title} ({files})"


def render_table(
    config: ClassifyConfig,
    plan: "ClassifyPlan",
    found: dict[str, Summary],
    records: list[dict[str, Any]],
    energy: EmissionsTotal | None,
) -> str:
    """Return the Markdown of all figures and of what they can and cannot say."""
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
    deviation = "" if summary.deviation is None else f"{100 * summary.deviation:.2f}"
    seeds = "not known" if summary.seed_error is None else f"{100 * summary.seed_error:.2f}"
    note = "not above the most frequent label by two standard errors" if summary.is_trivial else ""
    error = f"{100 * summary.stderr:.2f} ({seeds}; {100 * summary.item_error:.2f})"
    return f"| {title} | {100 * summary.mean:.2f} | {deviation} | {error} | {note} |"


def _remarks(config: ClassifyConfig, plan: "ClassifyPlan", records: list[dict[str, Any]]) -> list[str]:
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
