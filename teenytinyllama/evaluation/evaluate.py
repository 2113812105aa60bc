"""`ttl evaluate MODEL`: everything is checked, then measured task by task; what is done survives a stop.

The folder holds `results.json` (scores), `measures.json` (bits per byte, perplexity), `results.md`, plots, the energy
of the evaluation, `parts/` (one file a task and model), and `run.json`, written last.

What `ttl evaluate` asks: tasks whose data is there, held-out text, and the cloze made from it, all checked.
"""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_folder, ensure_packages, is_main_process
from ..distributed import from_first, join_ranks, leave_ranks
from ..energy.recorder import StageMeter
from ..models import without_cudnn_attention
from ..stage_folder import (
    CLOZE_NAME,
    EMISSIONS_NAME,
    LEDGER_NAME,
    MANIFEST_NAME,
    MEASURES_NAME,
    PARTS_FOLDER,
    PROGRESS_PLOT_NAME,
    RESULTS_NAME,
    RESULTS_TABLE_NAME,
    SCORES_PLOT_NAME,
    command_line,
    sha256_json,
    versions,
    write_manifest,
)
from ..supervision import stopped_by_signals
from .config import LANGUAGE_MODELING, SUITES, TASKS, TASKS_FOLDER, BenchmarkTask, EvaluateConfig, choose_tasks
from .local_data import CLOZE, MissingDataError, TaskRows
from .parts import (
    Part,
    Stop,
    list_stops,
    make_part,
    part_path,
    precision_name,
    read_part,
    read_parts,
    rows_of,
    step_of_part,
    task_identity,
    weights_fingerprint,
    write_part,
)
from .results import Results, Score, merge_results, read_results, write_results
from .scoring import Measure, write_measures
from .signal import make_cloze, write_cloze
from .tables import format_results, plot_progress, plot_scores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .held_out import HeldOutText


def tasks_with_data(
    tasks: list[BenchmarkTask], config: EvaluateConfig, missing: dict[str, str]
) -> Iterator[tuple[BenchmarkTask, TaskRows]]:
    """Yield the tasks whose data is there, and put the others into `missing`; all of it is read and checked.

    Raises:
        InputError: data that does not fit, or too few solved examples.
    """
    for task in tasks:
        if task.source == CLOZE:
            continue
        try:
            rows = rows_of(task, config, None)
        except MissingDataError as error:
            missing[task.name] = str(error)
            continue
        ensure(
            len(rows.shots) >= task.shots,
            f"tasks={task.name}: {len(rows.shots)} solved examples are there and {task.shots} are shown. Give the "
            "whole training split.",
        )
        _check_differences(task, rows)
        yield task, rows


def _check_differences(task: BenchmarkTask, rows: TaskRows) -> None:
    """Refuse questions that all have one right answer, where telling classes or degrees apart is the task.

    Raises:
        InputError: they do.
    """
    key = {"labels": "answer", "similarity": "similarity"}.get(task.kind)
    if key is None:
        return
    found = {row[key] for row in rows.test}
    ensure(
        len(found) > 1,
        f"tasks={task.name}: {key} is {next(iter(found))!r} in all questions ({len(rows.test):,}) of "
        f"{rows.origin.split}, so there is nothing to tell apart. Give a file with several.",
    )


def find_held_out_text(
    config: EvaluateConfig,
    wanted: list[tuple[str, BenchmarkTask]],
    tokenizer: "PreTrainedTokenizerBase",
    missing: dict[str, str],
) -> "HeldOutText | None":
    """Return held-out text if something asks for it and it is there; otherwise `missing` gets the reason.

    Raises:
        InputError: it cannot be read, or is missing and nothing else is asked for.
    """
    from .held_out import load_held_out

    needs_cloze = any(task.source == CLOZE for _, task in wanted)
    if not (needs_cloze or config.wants_language_modeling):
        return None
    inputs = config.held_out or _packed_of_run(Path(config.model_name_or_path).expanduser())
    if inputs:
        return load_held_out(inputs, tokenizer)
    reason = "needs held-out text. Give held_out: a packed folder, or text files"
    ensure(config.suite != LANGUAGE_MODELING, f"suite={LANGUAGE_MODELING}: {reason}.")
    missing.update({"ttl_cloze": reason} if needs_cloze else {})
    missing.update({LANGUAGE_MODELING: reason} if config.wants_language_modeling else {})
    return None


def _packed_of_run(model: Path) -> list[str]:
    """Return the packed folder that a run's manifest names, if it is still there."""
    for folder in (model, model.parent):
        try:
            packed = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["data"]["packed"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for place in (Path(packed), folder / packed, folder.parent / packed):
            if (place / MANIFEST_NAME).is_file():
                return [str(place)]
    return []


def make_cloze_file(
    config: EvaluateConfig, folder: Path, text: "HeldOutText", missing: dict[str, str]
) -> tuple[Path | None, dict[str, str]]:
    """Write the last words of held-out sentences; return the file, and what is missing."""
    items = make_cloze(text.texts, config.cloze_items)
    if not items:
        return None, {**missing, "ttl_cloze": "the held-out text has no sentence that ends with an ordinary word"}
    write_cloze(folder / CLOZE_NAME, items)
    return folder / CLOZE_NAME, missing


_HELD_OUT = "held_out"
_VERSIONED = ("lm_eval", "datasets", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class _Work:
    """What is to be done, checked."""

    config: EvaluateConfig
    folder: Path
    stops: list[Stop]
    tasks: list[tuple[BenchmarkTask, TaskRows]]
    text: "HeldOutText | None"
    cloze_file: Path | None


@stopped_by_signals("what is measured is kept; the same command goes on")
@without_cudnn_attention()
def evaluate_model(config: EvaluateConfig) -> Path:
    """Measure a model, or go on where an earlier start stopped, and return the folder of the results.

    Called on every rank of a launcher, each scores a share; rank 0 writes.

    Raises:
        InputError: an unknown task, data that does not fit, a model that cannot be read, a folder that holds something
            else, or a context that is too short. Nothing is measured then.
        StoppedResumable: a signal.
    """
    wanted = choose_tasks(config.suite, config.tasks)
    if wanted:
        ensure_packages("eval", "lm_eval", "datasets")
    device = join_ranks()
    folder = from_first(lambda: _open_folder(config))
    stops = list_stops(config.model_name_or_path, config.revision, config.checkpoints)
    missing: dict[str, str] = {}
    tasks = list(tasks_with_data(list(dict.fromkeys(task for _, task in wanted)), config, missing))
    model, tokenizer, fingerprint = _load(config, stops[0], device)
    text = find_held_out_text(config, wanted, tokenizer, missing)
    folder.mkdir(parents=True, exist_ok=True)
    cloze_file = None
    if text is not None and any(task.source == CLOZE for _, task in wanted):
        cloze_file, missing = from_first(partial(make_cloze_file, config, folder, text, missing))
        if cloze_file is not None:
            tasks.append((TASKS["ttl_cloze"], rows_of(TASKS["ttl_cloze"], config, cloze_file)))
    language = text if config.wants_language_modeling else None
    ensure(
        tasks or language is not None,
        (f"suite={config.suite}" if config.tasks is None else f"tasks={' '.join(config.tasks)}")
        + ": nothing can be measured. "
        + "; ".join(f"{task}: {reason}" for task, reason in missing.items()),
    )
    work = _Work(config, folder, stops, tasks, language, cloze_file)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    weights: dict[int | None, str] = {}
    with StageMeter(folder, config) if is_main_process() else nullcontext() as energy:
        for number, stop in enumerate(stops):
            if number:
                del model
                model, tokenizer, fingerprint = _load(config, stop, device)
            weights[stop.step] = fingerprint
            _measure(work, stop, model, tokenizer, fingerprint, energy)
    if is_main_process():
        _write_results(work, missing, weights)
    leave_ranks()
    return folder


def _open_folder(config: EvaluateConfig) -> Path:
    model = Path(config.model_name_or_path).expanduser()
    default = model / "evaluation" if model.is_dir() else Path("evaluation") / model.name
    folder = Path(config.output_dir) if config.output_dir else default
    ensure_folder("output_dir", folder)
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    known = {
        PARTS_FOLDER,
        RESULTS_NAME,
        MEASURES_NAME,
        RESULTS_TABLE_NAME,
        CLOZE_NAME,
        SCORES_PLOT_NAME,
        PROGRESS_PLOT_NAME,
    }
    ensure(
        not others or others & {PARTS_FOLDER, CLOZE_NAME, EMISSIONS_NAME, LEDGER_NAME} or others <= known,
        f"output_dir={folder}: holds no evaluation ({', '.join(sorted(others)[:3])}). Choose a new folder.",
    )
    if folder != model / "evaluation":  # where a moved run takes its evaluation along
        _check_same_model(folder, config.model_name_or_path)
    return folder


def _check_same_model(folder: Path, name_or_path: str) -> None:
    """Check that a folder with results is about a model of this name.

    Raises:
        InputError: it is about another, whose scores would stand beside this one's.
    """
    if not (folder / RESULTS_NAME).is_file():
        return
    there = read_results(folder / RESULTS_NAME).model
    here, before = Path(name_or_path).expanduser(), Path(there).expanduser()
    ensure(
        there == name_or_path or (here.is_dir() and here.resolve() == before.resolve()),
        f"output_dir={folder}: holds the evaluation of {there}. Choose another folder for {name_or_path}.",
    )


def _load(
    config: EvaluateConfig, stop: Stop, device: "torch.device"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, str]":
    """Return a model in the precision that is asked for, its tokenizer, and the fingerprint of its weights as saved."""
    from transformers.utils import logging as transformers_logging

    from ..models import from_pretrained

    transformers_logging.disable_progress_bar()
    model, tokenizer = from_pretrained(stop.name_or_path, stop.revision, config.base_model)
    fingerprint = weights_fingerprint(model)
    if config.precision == "float32":
        model = model.float()
    elif config.precision == "bfloat16":
        # Not `model.bfloat16()`: it rounds the frequencies of the rotary embedding, too, which no loading does.
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    placed: Any = model
    return placed.to(device).eval(), tokenizer, fingerprint


def _measure(
    work: _Work,
    stop: Stop,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    model_hash: str,
    energy: StageMeter | None,
) -> None:
    if work.text is not None:
        _measure_text(work, stop, model, model_hash)
    harness_model = None
    for task, rows in work.tasks:
        yaml_text = "".join(path.read_text(encoding="utf-8") for path in _yaml_files(task))
        identity = task_identity(task, work.config, rows, model_hash, yaml_text)
        path = part_path(work.folder, stop, task.name)
        if from_first(partial(read_part, path, identity)) is None:
            from .harness import HarnessModel, run_task

            harness_model = harness_model or HarnessModel(model, tokenizer, work.config.batch_size)
            cloze_file = str(work.cloze_file) if work.cloze_file else None
            outcome = run_task(harness_model, task, work.config.data_dir, cloze_file, work.config.limit)
            if is_main_process():
                limited, precision = work.config.limit is not None, precision_name(model)
                write_part(path, make_part(task, outcome, rows, stop, identity, model_hash, limited, precision))
        if energy is not None:
            energy.tick()


def _yaml_files(task: BenchmarkTask) -> list[Path]:
    names = [task.name, "ttl_arc"] if task.source == "arc" else [task.name]
    return [TASKS_FOLDER / f"{name}.yaml" for name in dict.fromkeys(names)]


def _measure_text(work: _Work, stop: Stop, model: "PreTrainedModel", model_hash: str) -> None:
    from .held_out import language_modeling_measures

    config, text = work.config, work.text
    assert text is not None
    settings = (config.context, config.stride, config.held_out_max_tokens, config.registers)
    decides = [model_hash, config.precision, *settings, text.texts, text.documents["source"].tolist()]
    identity = sha256_json(decides)
    path = part_path(work.folder, stop, _HELD_OUT)
    if from_first(partial(read_part, path, identity)) is None:
        measures = language_modeling_measures(model, text, config.batch_size, *settings)
        measures = [replace(measure, step=stop.step, tokens=stop.tokens) for measure in measures]
        if is_main_process():
            write_part(path, Part(identity, [], [asdict(measure) for measure in measures], weights=model_hash))


def _write_results(work: _Work, missing: dict[str, str], weights: dict[int | None, str]) -> None:
    """Collect what all starts in this folder measured of these models, and write it in every form; manifest last."""
    parts = read_parts(work.folder, weights)
    scores, measures = _collect(parts)
    results = Results(work.config.model_name_or_path, command_line(), versions(_VERSIONED), tuple(scores))
    write_results(work.folder / RESULTS_NAME, results)
    write_measures(work.folder / MEASURES_NAME, measures)
    (work.folder / RESULTS_TABLE_NAME).write_text(format_results(results, measures, missing), encoding="utf-8")
    if any(score.step is None for score in scores):
        plot_scores(results, work.folder / SCORES_PLOT_NAME)
    over_steps = [score for score in scores if score.step is not None]
    measured = [measure for measure in measures if measure.step is not None]
    if over_steps or measured:
        energy = {stop.step: stop.kwh for stop in work.stops if stop.step is not None}
        plot_progress(over_steps, measured, energy, work.folder / PROGRESS_PLOT_NAME)
    model = Path(work.config.model_name_or_path).expanduser()
    if work.config.limit is None and work.config.output_dir is None and (model / MANIFEST_NAME).is_file():
        whole, _ = _collect([(path, part) for path, part in parts if not part.limited])
        # Where the run's card looks for them.
        merge_results(model / RESULTS_NAME, replace(results, scores=tuple(whole)))
    content = {"config": asdict(work.config), "missing": missing, "num_scores": len(scores)}
    write_manifest(work.folder, "evaluate", content)


def _collect(parts: list[tuple[Path, Part]]) -> tuple[list[Score], list[Measure]]:
    """Return all scores and measures of some parts, in the order of the suites and steps.

    A task counts in each of its suites. The final model comes before the checkpoints.
    """
    scores, measures = [], []
    order = {name: number for number, name in enumerate((_HELD_OUT, *TASKS))}

    def place(found: tuple[Path, Part]) -> tuple[int, int]:
        step = step_of_part(found[0])
        return order.get(found[0].stem, 99), -1 if step is None else step

    ordered = [(path.stem, part) for path, part in sorted(parts, key=place)]
    for suite in (LANGUAGE_MODELING, *SUITES):
        for name, part in ordered:
            if name == _HELD_OUT if suite == LANGUAGE_MODELING else name in SUITES[suite]:
                scores += [Score(**{**row, "suite": suite}) for row in part.scores]
                measures += [Measure(**{**row, "suite": suite}) for row in part.measures]
    return scores, measures
