"""One task of one model: measured, or read from the file that an earlier start wrote."""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..manifest import sha256_json, write_json
from .config import EvaluateConfig
from .local_data import CLOZE, TaskRows, load_rows
from .measures import Measure
from .results import Score
from .rows import questions_sha256
from .suites import BenchmarkTask
from .trivial import Line, best_line, trivial_lines
from .walk import Stop

if TYPE_CHECKING:
    from .harness import TaskOutcome

PARTS_FOLDER = "parts"


@dataclass(frozen=True)
class Part:
    """What one task of one model gave.

    Attributes:
        identity: of model, rows and limit: an equal one is not measured again.
        scores: for `results.json`, without a suite.
        measures: for `measures.json`, without a suite.
        trivial: what answers without a model score, by what they do.
        truncated_prompts: questions whose prompt did not fit.
        weights: `walk.weights_fingerprint` of the model; empty in files of earlier versions, which did not write it.
        limited: whether only the first questions were asked.
    """

    identity: str
    scores: list[dict[str, Any]]
    measures: list[dict[str, Any]]
    trivial: dict[str, float] = field(default_factory=dict)
    truncated_prompts: int = 0
    weights: str = ""
    limited: bool = False


def part_path(folder: Path, stop: Stop, task: str) -> Path:
    """Return the file of a task and a model."""
    return folder / PARTS_FOLDER / ("final" if stop.step is None else f"step{stop.step}") / f"{task}.json"


def step_of_part(path: Path) -> int | None:
    """Return the step of the checkpoint that a file of `part_path` is about; None: the final model."""
    name = path.parent.name
    return None if name == "final" else int(name.removeprefix("step"))


def read_part(path: Path, identity: str) -> Part | None:
    """Return what an earlier start measured, or None if that was something else or nothing."""
    try:
        part = Part(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return part if part.identity == identity else None


def write_part(path: Path, part: Part) -> None:
    """Write a part; its presence means that it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(part))


def read_parts(folder: Path, weights: dict[int | None, str]) -> list[tuple[Path, Part]]:
    """Return the parts of a folder, but for those of models that were measured now with other weights.

    Args:
        folder: of the evaluation.
        weights: fingerprints of the models that were measured now, by their step.
    """
    found = []
    for path in (folder / PARTS_FOLDER).glob("*/*.json"):
        part = Part(**json.loads(path.read_text(encoding="utf-8")))
        if part.weights in ("", weights.get(step_of_part(path), part.weights)):
            found.append((path, part))
    return found


def rows_of(task: BenchmarkTask, config: EvaluateConfig, cloze_file: Path | None) -> TaskRows:
    """Return the questions and examples of a task; see `local_data.load_rows`."""
    cloze = str(cloze_file) if task.source == CLOZE and cloze_file else None
    return load_rows(task.source, config.data_dir, cloze, task.shots > 0)


def task_identity(task: BenchmarkTask, config: EvaluateConfig, rows: TaskRows, model_hash: str, yaml_text: str) -> str:
    """Return the hash of all that decides a task's score."""
    asked = rows.test[: config.limit]
    return sha256_json(
        {"task": task.name, "yaml": yaml_text, "model": model_hash, "precision": config.precision, "asked": asked,
         "shots": rows.shots, "harness": harness_version()}
    )  # fmt: skip


def harness_version() -> str:
    """Return the installed version of the harness."""
    import importlib.metadata

    return importlib.metadata.version("lm_eval")


def make_part(
    task: BenchmarkTask,
    outcome: "TaskOutcome",
    rows: TaskRows,
    stop: Stop,
    identity: str,
    weights: str,
    limited: bool,
    precision: str | None = None,
) -> Part:
    """Return scores and measures of a task that was run.

    Args:
        task: that was run.
        outcome: what came of it.
        rows: its questions and examples.
        stop: the model.
        identity: see `task_identity`.
        weights: see `Part`.
        limited: whether only the first questions were asked.
        precision: what the model computed in; None for float32.
    """
    lines = trivial_lines(task.kind, task.metric, outcome.rows)
    score = _make_score(task, outcome, rows, best_line(lines), limited, precision)
    measures = [
        Measure("", task.name, name, value, outcome.stderrs[name], None, score.num_items, stop.step, stop.tokens)
        for name, value in outcome.values.items()
        if name not in (task.metric, "unparsable")
    ]
    return Part(
        identity,
        [asdict(replace(score, step=stop.step, tokens=stop.tokens))],
        [asdict(measure) for measure in measures],
        {name: line[1] for name, line in lines.items()},
        outcome.truncated_prompts,
        weights,
        limited,
    )


def _make_score(
    task: BenchmarkTask,
    outcome: "TaskOutcome",
    rows: TaskRows,
    best_trivial: Line,
    limited: bool,
    precision: str | None,
) -> Score:
    """Return the score of a task beside the best answer that needs no model, without its step."""
    kind, trivial = best_trivial
    value, count = outcome.values[task.metric], len(outcome.rows)
    first = f", first {count}" if limited and count < len(rows.test) else ""
    score = Score(
        task=task.name,
        suite="",
        name=f"{task.title}{first}" + (f", {precision}" if precision else ""),
        metric=task.metric,
        metric_name=task.metric_title,
        value=value,
        dataset_id=rows.origin.dataset_id,
        dataset_revision=rows.origin.revision,
        dataset_config=rows.origin.config,
        dataset_split=rows.origin.split,
        stderr=outcome.stderrs[task.metric],
        trivial=trivial,
        trivial_kind=kind,
        normalised=(value - trivial) / (1 - trivial) if trivial < 1 else None,
        shots=outcome.shots,
        num_items=count,
        total_items=len(rows.test),
        questions_sha256=questions_sha256(rows.test[:count]),
        unparsable=outcome.values.get("unparsable"),
        truncated_prompts=outcome.truncated_prompts,
        task_hash=outcome.task_hash,
        harness=f"lm-evaluation-harness {harness_version()}",
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    odd: dict[str, Any] = {name: number or None for name, number in rows.remarks(count).items()}
    return replace(score, **odd)
