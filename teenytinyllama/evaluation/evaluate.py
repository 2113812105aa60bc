"""`ttl evaluate MODEL`: everything is checked, then measured task by task; what is measured survives a stop.

The folder holds `results.json` (scores), `measures.json` (bits per byte, perplexity), `results.md`, plots, the energy
of the evaluation, `parts/` (one file for each task and model), and `run.json`, written last. With `checkpoints` the
models are those that a run passed through, and the final one.
"""

import contextlib
import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpointing.checkpoints import complete_checkpoints
from ..checks import InputError, ensure, ensure_folder, ensure_packages, hub_errors, is_main_process
from ..corpus.provenance import contamination_of
from ..distributed import from_first, join_ranks, leave_ranks
from ..energy.recorder import StageMeter
from ..launching.processes import stopped_by_signals
from ..model_files import ADAPTER_CONFIG_NAME, PUBLISHED_MODELS
from ..models import without_cudnn_attention
from ..stage_folder import (
    CLOZE_NAME,
    EMISSIONS_NAME,
    LEDGER_NAME,
    MANIFEST_NAME,
    MARKER_NAME,
    MEASURES_NAME,
    METRICS_NAME,
    PARTS_FOLDER,
    PROGRESS_PLOT_NAME,
    RESULTS_NAME,
    RESULTS_TABLE_NAME,
    SCORES_PLOT_NAME,
    StageFolder,
    command_line,
    read_jsonl_records,
    sha256_json,
    versions,
)
from .benchmark_rows import CLOZE, BenchmarkRows, MissingDataError, load_rows
from .config import BIAS, LANGUAGE_MODELING, TASKS_FOLDER, BenchmarkTask, EvaluateConfig, choose_tasks
from .results import (
    HELD_OUT,
    MeasuredTask,
    Results,
    collect_measured,
    is_measured,
    measured_task_path,
    merge_results,
    read_results,
    write_measured_task,
    write_measures,
    write_results,
)
from .score_report import draw_progress, format_results, plot_scores, shown_over_steps

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .bias import BiasMaterial
    from .held_out import HeldOutText

_BRANCH = re.compile(r"step-?(\d+)")
_VERSIONED = ("lm_eval", "datasets", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class EvaluatedModel:
    """One of the models of an evaluation: a model, or a checkpoint of its run.

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

    @property
    def place(self) -> dict[str, Any]:
        """Return step and tokens, as scores and measures have them."""
        return {"step": self.step, "tokens": self.tokens}


def list_models(name_or_path: str, revision: str | None, checkpoints: bool) -> list[EvaluatedModel]:
    """Return the models to evaluate, by step, the final one last.

    Raises:
        InputError: checkpoints are asked for and there are none.
    """
    final = EvaluatedModel(name_or_path, revision)
    if not checkpoints:
        return [final]
    folder = Path(name_or_path).expanduser()
    is_folder = folder.is_dir()
    found = _checkpoints_of_run(folder) if is_folder else _branches_with_checkpoints(name_or_path)
    ensure(
        found,
        f"checkpoints: {name_or_path} has no complete checkpoint (checkpoint-N with {MARKER_NAME}, or branches stepN). "
        "Leave checkpoints out to evaluate the final model.",
    )
    has_final = not is_folder or any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG_NAME))
    return [*sorted(found, key=lambda model: model.step or 0), *([final] if has_final else [])]


def _checkpoints_of_run(folder: Path) -> list[EvaluatedModel]:
    """Return the complete checkpoints of a run; tokens and kWh are interpolated between two records of its metrics."""
    metrics = read_jsonl_records(folder / METRICS_NAME)
    records = {row["step"]: (row["tokens"], row["kwh"]) for row in metrics if {"step", "tokens", "kwh"} <= set(row)}
    steps = sorted(records)
    found = []
    for step, place in complete_checkpoints(folder):
        tokens = kwh = None
        if steps and steps[0] <= step <= steps[-1]:
            tokens = round(float(np.interp(step, steps, [records[known][0] for known in steps])))
            kwh = float(np.interp(step, steps, [records[known][1] for known in steps]))
        found.append(EvaluatedModel(str(place), step=step, tokens=tokens, kwh=kwh))
    return found


def _branches_with_checkpoints(name_or_path: str) -> list[EvaluatedModel]:
    """Return the branches of a Hub repository that hold checkpoints (`step100`, `step-100`)."""
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
    matches = [(name, _BRANCH.fullmatch(name)) for name in branches]
    return [EvaluatedModel(name_or_path, name, int(match[1])) for name, match in matches if match]


def weights_fingerprint(model: "PreTrainedModel") -> str:
    """Return a hash of every parameter's shape, sum and first values: it tells models apart within a second."""
    import hashlib

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().float()
        digest.update(f"{name}{tuple(values.shape)}{values.double().sum().item():.12e}".encode())
        digest.update(values.flatten()[:64].cpu().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Work:
    """The work of an evaluation: what it measures, of which models, all of it checked.

    Attributes:
        text: held-out text for the suite `lm`; None: it is not asked for, or not there.
        missing: for each task that cannot be measured the reason.
        bias: pairs, prompts and classifier of the suite `bias`; None: it is not asked for.
    """

    config: EvaluateConfig
    folder: Path
    models: list[EvaluatedModel]
    tasks: list[tuple[BenchmarkTask, BenchmarkRows]]
    text: "HeldOutText | None"
    cloze_file: Path | None
    missing: dict[str, str]
    bias: "BiasMaterial | None" = None


@stopped_by_signals("what is measured is kept; the same command goes on")
@without_cudnn_attention()
def evaluate_model(config: EvaluateConfig) -> Path:
    """Measure a model, or go on where an earlier start stopped, and return the folder of the results.

    Every rank of a launcher calls this; each scores a share, and rank 0 writes.

    Raises:
        InputError: an unknown task, data that does not fit, a model that cannot be read, a folder that holds something
            else, or a context that is too short. Nothing is measured then.
        StoppedResumable: a signal.
    """
    wanted = [task for _, task in choose_tasks(config.suite, config.tasks)]
    if wanted:
        ensure_packages("eval", "lm_eval", "datasets")
    device = join_ranks()
    folder = from_first(lambda: _open_folder(config))
    models = list_models(config.model_name_or_path, config.revision, config.checkpoints)
    missing: dict[str, str] = {}
    if config.suite == BIAS:
        from .bias import ensure_no_classifier, prepare_bias

        ensure_no_classifier(config.model_name_or_path)
    tasks = list(_tasks_with_data(wanted, config, missing))
    loaded = _load(config, models[0], device)
    written = [task.name for task, _ in tasks if task.kind not in ("choices", "truth", "word")]
    ensure(
        not written or loaded[1].eos_token_id is not None,
        f"tasks={' '.join(written)}: are answered in writing, and the tokenizer of {config.model_name_or_path} names "
        "no end token. Set eos_token in its tokenizer_config.json, or copy the tokenizer again.",
    )
    work = _with_held_out_text(_Work(config, folder, models, tasks, None, None, missing), wanted, loaded[1])
    if config.suite == BIAS:
        work = replace(work, bias=prepare_bias(config, loaded[0], loaded[1], missing))
    ensure(
        work.tasks or work.text is not None or work.bias is not None,
        (f"suite={config.suite}" if config.tasks is None else f"tasks={' '.join(config.tasks)}")
        + ": nothing can be measured. "
        + "; ".join(f"{task}: {reason}" for task, reason in work.missing.items()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    StageFolder(folder, "evaluate", "evaluation").reopen()
    weights: dict[int | None, str] = {}
    with StageMeter(folder, config) if is_main_process() else contextlib.nullcontext() as energy:
        for number, model in enumerate(models):
            if number:
                del loaded
                loaded = _load(config, model, device)
            weights[model.step] = loaded[2]
            _measure(work, model, *loaded, energy)
    if is_main_process():
        _write_results(work, weights)
    leave_ranks()
    return folder


def _open_folder(config: EvaluateConfig) -> Path:
    """Return the folder of the results.

    Raises:
        InputError: it holds no evaluation, or that of another model, whose scores would stand beside this one's.
    """
    model = Path(config.model_name_or_path).expanduser()
    default = model / "evaluation" if model.is_dir() else Path("evaluation") / model.name
    folder = Path(config.output_dir) if config.output_dir else default
    ensure_folder("output_dir", folder)
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    begun = {PARTS_FOLDER, CLOZE_NAME, EMISSIONS_NAME, LEDGER_NAME}
    known = {RESULTS_NAME, MEASURES_NAME, RESULTS_TABLE_NAME, SCORES_PLOT_NAME, PROGRESS_PLOT_NAME}
    ensure(
        not others or others & begun or others <= known,
        f"output_dir={folder}: holds no evaluation ({', '.join(sorted(others)[:3])}). Choose a new folder.",
    )
    # A run that was moved takes its folder `evaluation` along, with its old name in the results.
    if folder != model / "evaluation" and (folder / RESULTS_NAME).is_file():
        there = read_results(folder / RESULTS_NAME).model
        ensure(
            there == config.model_name_or_path
            or (model.is_dir() and model.resolve() == Path(there).expanduser().resolve()),
            f"output_dir={folder}: holds the evaluation of {there}. Choose another folder for "
            f"{config.model_name_or_path}.",
        )
    return folder


def _tasks_with_data(
    wanted: list[BenchmarkTask], config: EvaluateConfig, missing: dict[str, str]
) -> Iterator[tuple[BenchmarkTask, BenchmarkRows]]:
    """Yield the tasks whose data is there, with rows that are checked; put the reasons of the others into `missing`.

    Raises:
        InputError: data that does not fit, too few solved examples, or questions that all have one right answer where
            telling classes or degrees apart is the task.
    """
    for task in dict.fromkeys(wanted):
        if task.source == CLOZE:
            continue
        try:
            rows = load_rows(task.source, config.data_dir, None, task.shots > 0)
        except MissingDataError as error:
            missing[task.name] = str(error)
            continue
        ensure(
            len(rows.shots) >= task.shots,
            f"tasks={task.name}: {len(rows.shots)} solved examples are there and {task.shots} are shown. Give the "
            "whole training split.",
        )
        key = {"labels": "answer", "similarity": "similarity"}.get(task.kind, "")
        ensure(
            not key or len({row[key] for row in rows.test}) > 1,
            f"tasks={task.name}: {key} is {rows.test[0].get(key)!r} in all questions ({len(rows.test):,}) of "
            f"{rows.origin.split}, so there is nothing to tell apart. Give a file with several.",
        )
        yield task, rows


def _with_held_out_text(work: _Work, wanted: list[BenchmarkTask], tokenizer: "PreTrainedTokenizerBase") -> _Work:
    """Return the work with held-out text and the cloze made from it, where they are asked for and there.

    Makes the folder of the results where there is a cloze to write.

    Raises:
        InputError: the text cannot be read, or is missing and nothing else is asked for.
    """
    from .held_out import find_held_out, load_held_out
    from .scoring import make_cloze, write_cloze

    config, cloze = work.config, next((task for task in wanted if task.source == CLOZE), None)
    text = None
    if cloze or config.wants_language_modeling:
        inputs = config.held_out or find_held_out(Path(config.model_name_or_path).expanduser())
        reason = "needs held-out text. Give held_out: a packed folder, or text files"
        if inputs:
            text = load_held_out(inputs, tokenizer)
        else:
            ensure(config.suite != LANGUAGE_MODELING, f"suite={LANGUAGE_MODELING}: {reason}.")
            work.missing.update({cloze.name: reason} if cloze else {})
            work.missing.update({LANGUAGE_MODELING: reason} if config.wants_language_modeling else {})
    if text is not None and cloze:
        path = work.folder / CLOZE_NAME
        items = make_cloze(text.texts, config.cloze_items)
        if items:
            work.folder.mkdir(parents=True, exist_ok=True)
            from_first(lambda: write_cloze(path, items))
            rows = load_rows(CLOZE, config.data_dir, str(path), cloze.shots > 0)
            work = replace(work, tasks=[*work.tasks, (cloze, rows)], cloze_file=path)
        else:
            work.missing[cloze.name] = "the held-out text has no sentence that ends with an ordinary word"
    return replace(work, text=text if config.wants_language_modeling else None)


def _load(
    config: EvaluateConfig, evaluated: EvaluatedModel, device: "torch.device"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, str]":
    """Return a model in the precision that is asked for, its tokenizer, and the fingerprint of its weights as saved."""
    from transformers.utils import logging as transformers_logging

    from ..models import from_pretrained

    transformers_logging.disable_progress_bar()
    model, tokenizer = from_pretrained(evaluated.name_or_path, evaluated.revision, config.base_model)
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
    evaluated: EvaluatedModel,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    fingerprint: str,
    energy: StageMeter | None,
) -> None:
    """Measure what an earlier start has not measured, and write a file for each task."""
    if work.text is not None:
        _measure_text(work, evaluated, model, fingerprint)
    if work.bias is not None:
        from .bias import measure_bias

        measure_bias(work.bias, work.folder, model, tokenizer, fingerprint, evaluated.place)
    harness_model = None
    for task, rows in work.tasks:
        identity = _task_identity(task, work.config, rows, fingerprint)
        path = measured_task_path(work.folder, evaluated.step, task.name)
        if not from_first(partial(is_measured, path, identity)):
            from .harness import HarnessModel, measure_task

            harness_model = harness_model or HarnessModel(model, tokenizer, work.config.batch_size)
            cloze_file = str(work.cloze_file) if work.cloze_file else None
            measured = measure_task(harness_model, task, rows, work.config, cloze_file, evaluated.place)
            if is_main_process():
                write_measured_task(path, replace(measured, identity=identity, weights=fingerprint))
        if energy is not None:
            energy.tick()


def _measure_text(work: _Work, evaluated: EvaluatedModel, model: "PreTrainedModel", fingerprint: str) -> None:
    """Measure bits per byte and perplexity of held-out text, unless an earlier start did."""
    from .held_out import language_modeling_measures

    config, text = work.config, work.text
    assert text is not None
    settings = (config.context, config.stride, config.held_out_max_tokens, config.registers)
    identity = sha256_json([fingerprint, config.precision, *settings, text.texts, text.documents["source"].tolist()])
    path = measured_task_path(work.folder, evaluated.step, HELD_OUT)
    if not from_first(partial(is_measured, path, identity)):
        measures = language_modeling_measures(model, text, config.batch_size, *settings)
        if is_main_process():
            rows = [asdict(replace(row, **evaluated.place)) for row in measures]
            write_measured_task(path, MeasuredTask(identity, [], rows, weights=fingerprint))


def _task_identity(task: BenchmarkTask, config: EvaluateConfig, rows: BenchmarkRows, fingerprint: str) -> str:
    """Return the hash of all that decides a task's score."""
    files = [task.name, "ttl_arc"] if task.source == "arc" else [task.name]  # a file that the other includes
    yaml_text = "".join((TASKS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in dict.fromkeys(files))
    return sha256_json(
        {"task": task.name, "yaml": yaml_text, "model": fingerprint, "precision": config.precision,
         "asked": rows.test[: config.limit], "shots": rows.shots, "harness": importlib.metadata.version("lm_eval")}
    )  # fmt: skip


def _write_results(work: _Work, weights: dict[int | None, str]) -> None:
    """Collect what all starts in this folder measured, and write it in every form; the manifest last."""
    config, folder = work.config, work.folder
    scores, measures = collect_measured(folder, weights)
    results = Results(config.model_name_or_path, command_line(), versions(_VERSIONED), tuple(scores))
    write_results(folder / RESULTS_NAME, results)
    write_measures(folder / MEASURES_NAME, measures)
    model = Path(config.model_name_or_path).expanduser()
    training_text = contamination_of(model)
    table = format_results(results, measures, work.missing, training_text)
    (folder / RESULTS_TABLE_NAME).write_text(table, encoding="utf-8")
    if any(score.step is None and score.suite != BIAS for score in scores):
        plot_scores(results, folder / SCORES_PLOT_NAME)
    over_steps = shown_over_steps(scores)
    measured = [measure for measure in measures if measure.step is not None and measure.suite != BIAS]
    if over_steps or measured:
        energy = {model.step: model.kwh for model in work.models if model.step is not None}
        draw_progress(over_steps, measured, energy).savefig(folder / PROGRESS_PLOT_NAME)
    if config.limit is None and config.output_dir is None and (model / MANIFEST_NAME).is_file():
        whole, _ = collect_measured(folder, weights, whole_only=True)
        merge_results(model / RESULTS_NAME, replace(results, scores=tuple(whole)))  # where the run's card looks
    content = {"config": asdict(config), "missing": work.missing, "num_scores": len(scores),
               "training_text": training_text}  # fmt: skip
    StageFolder(folder, "evaluate", "evaluation").finish(content)
