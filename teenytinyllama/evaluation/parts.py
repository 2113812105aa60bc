"""One task of one model: measured, or read from the file that an earlier start wrote.

The models of one evaluation: a model, and with `checkpoints` those that its run passed through.
"""

import json
import re
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import InputError, ensure, hub_errors
from ..model_files import ADAPTER_CONFIG_NAME, PUBLISHED_MODELS
from ..stage_folder import MARKER_NAME, METRICS_NAME, PARTS_FOLDER, read_jsonl_records, sha256_json, write_json
from .benchmark_rows import Line, best_line, questions_sha256, trivial_lines
from .config import BenchmarkTask, EvaluateConfig
from .local_data import CLOZE, TaskRows, load_rows
from .results import Score
from .scoring import Measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .harness import TaskOutcome


_CHECKPOINT, _BRANCH = re.compile(r"checkpoint-(\d+)"), re.compile(r"step-?(\d+)")


@dataclass(frozen=True)
class Stop:
    """One model on the way.

    Attributes:
        name_or_path: to load it from.
        revision: branch of a repository.
        step: of the checkpoint; None for the final model.
        tokens: seen by then.
        kwh: consumed by then.
    """

    name_or_path: str
    revision: str | None = None
    step: int | None = None
    tokens: int | None = None
    kwh: float | None = None


def list_stops(name_or_path: str, revision: str | None, checkpoints: bool) -> list[Stop]:
    """Return the models to evaluate, by step, the final one last.

    Raises:
        InputError: checkpoints are asked for and there are none.
    """
    final = Stop(name_or_path, revision)
    if not checkpoints:
        return [final]
    folder = Path(name_or_path).expanduser()
    stops = _folder_stops(folder) if folder.is_dir() else _branch_stops(name_or_path)
    ensure(
        stops,
        f"checkpoints: {name_or_path} has no complete checkpoint (checkpoint-N with {MARKER_NAME}, or branches stepN). "
        "Leave checkpoints out to evaluate the final model.",
    )
    has_final = not folder.is_dir() or any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG_NAME))
    return [*sorted(stops, key=lambda stop: stop.step or 0), *([final] if has_final else [])]


def _folder_stops(folder: Path) -> list[Stop]:
    seen = _progress(folder)
    stops = []
    for path in folder.glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and (path / MARKER_NAME).is_file():
            step = int(match[1])
            stops.append(Stop(str(path), step=step, tokens=seen.get(step, (None, None))[0],
                              kwh=seen.get(step, (None, None))[1]))  # fmt: skip
    return stops


def _progress(folder: Path) -> dict[int, tuple[int | None, float | None]]:
    """Return tokens and kWh by step, of the run's metrics; a step between two records is interpolated."""
    metrics = read_jsonl_records(folder / METRICS_NAME)
    records = {row["step"]: (row["tokens"], row["kwh"]) for row in metrics if {"step", "tokens", "kwh"} <= set(row)}
    steps = sorted(records)
    found: dict[int, tuple[int | None, float | None]] = {}
    for number in {int(match[1]) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.match(path.name))}:
        before = max((step for step in steps if step <= number), default=None)
        after = min((step for step in steps if step >= number), default=None)
        if before is None or after is None:
            continue
        share = 0.0 if after == before else (number - before) / (after - before)
        (tokens, kwh), (more_tokens, more_kwh) = records[before], records[after]
        found[number] = (round(tokens + share * (more_tokens - tokens)), kwh + share * (more_kwh - kwh))
    return found


def _branch_stops(name_or_path: str) -> list[Stop]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    repository = PUBLISHED_MODELS.get(name_or_path, name_or_path)
    try:
        branches = [branch.name for branch in HfApi().list_repo_refs(repository).branches]
    except HFValidationError as error:
        raise InputError(f"checkpoints: {repository} is neither a folder nor a Hub repository (owner/name).") from error
    except hub_errors() as error:
        raise InputError(
            f"checkpoints: the branches of {repository} cannot be listed: {type(error).__name__}. Check the name and "
            "the network, or give one branch with --revision."
        ) from error
    return [Stop(name_or_path, name, int(match[1])) for name in branches if (match := _BRANCH.fullmatch(name))]


def precision_name(model: "PreTrainedModel") -> str | None:
    """Return what a model computes in, or None if that is float32, which scores need not say."""
    name = str(model.dtype).removeprefix("torch.")
    return None if name == "float32" else name


def weights_fingerprint(model: "PreTrainedModel") -> str:
    """Return a hash that tells models apart, in a second: of every parameter's shape, sum and first values."""
    import hashlib

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().float()
        digest.update(f"{name}{tuple(values.shape)}{values.double().sum().item():.12e}".encode())
        digest.update(values.flatten()[:64].cpu().numpy().tobytes())
    return digest.hexdigest()


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
