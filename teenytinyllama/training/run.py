"""One training from its checked plan to its finished folder, whatever is trained: locks, callbacks, resume, signals.

From which checkpoint a run goes on: the newest that proves itself, with a word on each that does not.
"""

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from transformers import PrinterCallback, ProgressCallback

from ..arguments import write_yaml
from ..checkpoints import (
    BEGUN_NAME,
    MARKER_NAME,
    checkpoint_faults,
    complete_checkpoints,
    is_ours,
    list_checkpoints,
    read_marker,
)
from ..checks import InputError, StoppedResumable, beside_the_model, counted, ensure, is_main_process
from ..distributed import check_ranks, least_over_ranks, leave_ranks
from ..energy.ledger import ledger_files, read_starts
from ..gpus import device_name
from ..planning.memory import checkpoint_bytes, final_model_bytes
from ..presets import count_parameters
from ..stage_folder import MANIFEST_NAME, package_commit, sha256_file, versions, write_json, write_manifest
from .callbacks import EnergyCallback, IntervalsCallback, QueueCallback, SampleCallback
from .caps import CapCallback, SpendingCallback, apply_decision, has_caps, hours_until_cap, stored_decision
from .metrics import METRICS_NAME, MetricsCallback, read_jsonl
from .micro_batch import is_out_of_memory, micro_batch_record, out_of_memory_failure, settle_micro_batch, zero_stage_of
from .report import BannerCallback, describe_time, describe_turn, planned_zero_stage
from .run_plan import Resolved, RunPlan, describe_continuation
from .saving import ENVIRONMENT_NAME, IDENTITY_VERSION, CheckpointCallback, Clock, lock_run_folder
from .trainer import StopCallback

# What a checkpoint's config.json must have in common with the model that is to go on.
_SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
_MOST_FAULTS = 3  # told of one checkpoint
_NONE, _REFUSED = -1, -2  # told to the other ranks in place of a step


def choose_checkpoint(config: Any, plan: RunPlan, zero_stage: int) -> Path | None:
    """Return the newest checkpoint that is whole and of this model, or None; the same on every rank.

    Rank 0 alone reads and hashes, and says which it skipped and why; all ranks have to call this.

    Args:
        config: a `RunSettings`; checkpoints after its last step do not count.
        plan: the checked plan.
        zero_stage: DeepSpeed's stage now, 0 without.

    Raises:
        InputError: there are complete checkpoints and none of them holds; or the newest that does was written under
            ZeRO by another number of ranks or another stage, which DeepSpeed cannot load; or not every rank sees it.
    """
    refusal, step = None, 0
    if is_main_process():
        try:
            found = _newest_whole(plan, config.max_steps)
            step = _NONE if found is None else found[0]
            if found is not None:
                _check_ranks(plan.folder, found[1], config.world_size, zero_stage)
        except InputError as error:
            refusal, step = error, _REFUSED
    step = least_over_ranks(step if is_main_process() else config.max_steps, config.device)
    if refusal is not None:
        raise refusal
    ensure(step != _REFUSED, f"output_dir={plan.folder}: rank 0 refused to resume from it.")
    if step == _NONE:
        return None
    path = plan.folder / f"checkpoint-{step}"
    seen = least_over_ranks(int((path / MARKER_NAME).is_file()), config.device)
    ensure(
        seen,
        f"output_dir={plan.folder}: not every machine sees {path.name} there, and each rank has to read it. Put the "
        "folder on a disk that all machines share.",
    )
    return path


def _newest_whole(plan: RunPlan, max_step: int) -> tuple[int, Path] | None:
    """Return step and folder of the newest checkpoint that holds; print which newer ones were skipped.

    Raises:
        InputError: complete ones are there, and none holds.
    """
    _refuse_strangers(plan.folder, max_step)
    reasons = {}
    for step, path in reversed(list_checkpoints(plan.folder)):
        if step > max_step:
            reasons[path] = f"is of a step after the {max_step} asked for"
            continue
        faults = checkpoint_faults(path) or _other_shape(path, plan)
        if not faults:
            _say_what_holds(path)
            return step, path
        reasons[path] = _tell(faults)
        print(f"skipped    {path.name}: {reasons[path]}", flush=True)
    complete = [path for _, path in complete_checkpoints(plan.folder)]
    ensure(
        not complete,
        f"output_dir={plan.folder}: the run was saved before, and it cannot go on from any of its checkpoints: "
        f"{', '.join(f'{path.name} ({reasons[path]})' for path in complete)}. Restore one from a copy, delete them to "
        "start from the beginning, or choose another folder.",
    )
    return None


def _refuse_strangers(folder: Path, max_step: int) -> None:
    """Refuse a folder in the way of a save: nothing that was not written here is ever replaced or deleted.

    Raises:
        InputError: there is one after the newest complete checkpoint.
    """
    newest = max((step for step, _ in complete_checkpoints(folder)), default=0)
    later = [path for step, path in list_checkpoints(folder) if newest < step <= max_step and not is_ours(path)]
    strangers = [path.name for path in later if path.is_symlink() or not path.is_dir() or any(path.iterdir())]
    ensure(
        not strangers,
        f"output_dir={folder}: {', '.join(strangers)} may lie where this run will save, and was not written by it (it "
        f"has no {MARKER_NAME} and no {BEGUN_NAME}). Move it away. If an earlier version of this package was killed "
        "while it saved there, delete it.",
    )


def _say_what_holds(path: Path) -> None:
    files = read_marker(path).files
    if files is None:
        print(f"checked    {path.name}: saved by an earlier version, without hashes; taken as it is", flush=True)
        return
    size_gb = sum(record.bytes for record in files.values()) / 1e9
    print(
        f"checked    {path.name}: {counted(len(files), 'file')}, {size_gb:.2f} GB, all as they were saved", flush=True
    )


def _tell(faults: list[str]) -> str:
    more = len(faults) - _MOST_FAULTS
    return "; ".join(faults[:_MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")


def _other_shape(path: Path, plan: RunPlan) -> list[str]:
    """Return where the config of a checkpoint differs from the run's; an adapter alone has no config to compare."""
    config = path / "config.json"
    if not config.is_file():
        return []
    try:
        there: dict[str, Any] = dict(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        return [f"config.json cannot be read ({error})"]
    now = plan.model_config.to_dict()
    if max(plan.tokenizer.get_vocab().values()) >= now["vocab_size"]:
        there.pop("vocab_size", None)  # tuning gives tokens that are new their embeddings
    return [
        f"is of another model: {name} is {there[name]} there and {now[name]} now"
        for name in _SHAPE
        if name in there and name in now and there[name] != now[name]
    ]


def _check_ranks(folder: Path, path: Path, world_size: int, zero_stage: int) -> None:
    marker = read_marker(path)
    ensure(
        (marker.world_size, marker.zero_stage) == (world_size, zero_stage) or marker.zero_stage == zero_stage == 0,
        f"output_dir={folder}: {path.name} was saved by {counted(marker.world_size, 'rank')} under ZeRO stage "
        f"{marker.zero_stage}, and this start has {world_size} under stage {zero_stage} (0 is none). DeepSpeed "
        "cannot load it: start as before, or convert it with `python -m deepspeed.checkpoint.ds_to_universal`.",
    )


def check_plain_weights(config: Any) -> None:
    """Check that a checkpoint will hold the whole weights for anyone to load, under ZeRO-3 too.

    Raises:
        InputError: accelerate's file asks for ZeRO-3 without them.
    """
    if zero_stage_of(config) != 3:
        return
    asked = config.deepspeed_plugin.deepspeed_config["zero_optimization"]
    gathers = asked.get("stage3_gather_16bit_weights_on_model_save")
    ensure(
        gathers is True,
        f"stage3_gather_16bit_weights_on_model_save={gathers}: checkpoints would hold no weights that load without "
        "DeepSpeed. Set it to true in the DeepSpeed file, or zero3_save_16bit_model: true in accelerate's.",
    )


# What a manifest says of scores that were not taken.
NOT_EVALUATED: dict[str, Any] = {"bits_per_byte": None, "perplexity": None, "per_source": {}}

Plan = TypeVar("Plan", bound=RunPlan)


class Evaluation(Protocol):
    """What the metrics callback needs of a held-out evaluation.

    Attributes:
        last: the newest summary, or None.
        last_step: the step of that summary.
        plot_key: the figure of a summary that is drawn.
        plot_label: its name and unit.
    """

    last: dict[str, Any] | None
    last_step: int
    plot_key: str
    plot_label: str

    def describe(self) -> str:
        """Return the newest summary as a line."""


@dataclass(frozen=True)
class Run:
    """The live objects of a run in one process."""

    trainer: Any
    evaluation: Any
    energy: EnergyCallback
    cap: CapCallback | None
    stop: StopCallback
    banner: BannerCallback

    @property
    def stopped(self) -> str:
        """Return what ended the training before its last step, resumably; an empty text if nothing did."""
        if self.stop.stopped:
            return "a signal"
        if self.cap is not None and self.cap.stopped_blind:
            return "the energy meter has failed, so nobody counts what max_kwh caps (leave it out to go on without)"
        return ""


def assemble_run(
    trainer: Any,
    config: Any,
    plan: RunPlan,
    evaluation: Evaluation,
    samples: SampleCallback,
    banner_lines: dict[str, str],
    **metrics: Any,
) -> Run:
    """Return a run: the Trainer with our callbacks in place of its printing ones.

    Args:
        trainer: a `RunTrainer`.
        config: a `RunSettings`.
        plan: the checked plan.
        evaluation: what scores held-out data.
        samples: what shows the model's texts.
        banner_lines: lines of this kind of training, beside those of every run.
        metrics: more arguments of `MetricsCallback`.
    """
    trainer.clock = Clock()
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    energy, stop = EnergyCallback(plan.folder, config), StopCallback()
    spending, cap = SpendingCallback(energy.spent, config.price, trainer.pauses), None
    if has_caps(config):
        spending.hours_left = functools.partial(hours_until_cap, config)
        cap = CapCallback(config, spending, config.cap_decision, energy.has_failed)
    banner = BannerCallback(trainer, config, plan, banner_lines)
    tokens_per_step = config.rows_per_step * config.tokens_per_row
    trainer.add_callback(IntervalsCallback())
    trainer.add_callback(QueueCallback())  # the first, and not watched: its time is training
    # The order matters: sampling is over before energy is flushed and the clock goes on, energy is flushed before it is
    # reported, and a checkpoint is marked complete after everything else has written into the folder.
    for callback in (
        banner,
        stop,
        samples,
        energy,
        spending,
        *([cap] if cap else []),
        MetricsCallback(plan.folder, tokens_per_step, evaluation, spending, **metrics),
        _checkpoint_callback(trainer, config, plan, evaluation, spending),
    ):
        part = "samples" if callback is samples else "callbacks"
        trainer.add_callback(trainer.clock.watch(callback, part))
    return Run(trainer, evaluation, energy, cap, stop, banner)


def _checkpoint_callback(
    trainer: Any, config: Any, plan: RunPlan, evaluation: Evaluation, spending: SpendingCallback
) -> CheckpointCallback:
    def figures(step: int) -> dict[str, Any]:
        scored = evaluation.last if evaluation.last is not None and evaluation.last_step == step else {}
        return {
            "tokens": step * config.rows_per_step * config.tokens_per_row,
            "kwh": spending.now.kwh,
            "kg_co2e": spending.now.kg,
            "bits_per_byte": scored.get("bits_per_byte"),
        }

    parameters = count_parameters(plan.model_config)
    zero_stage = planned_zero_stage(trainer)
    trained = round((1 - config.frozen_share) * parameters)
    return CheckpointCallback(
        plan.folder,
        config.save_checkpoints_kept,
        zero_stage,
        checkpoint_bytes(trained, config.precision, zero_stage),
        final_model_bytes(parameters),
        figures,
        trainer.clock,
    )


def execute(
    config: Any,
    plan: Plan,
    given: Resolved | dict[str, Any],
    build: Callable[[Any, Plan], Run],
    finish: Callable[[Run, Any, Plan, float], None],
) -> Path:
    """Train by a plan in this process (one of its ranks), or go on with it, and return the run's folder.

    Args:
        config: a `RunSettings`, with everything derived.
        plan: the checked plan.
        given: the keys as the user gave them, for `config.yaml`; or what was resolved with them.
        build: makes the run once the micro-batch is settled.
        finish: what is left to do after the last step, with the seconds of training; not called after a signal.

    Raises:
        InputError: a folder in which another process trains, or ranks or memory that do not fit.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite, or memory ran out.
    """
    if plan.state == "complete":
        if is_main_process():
            print(f"{plan.folder} is complete; {describe_continuation(plan.folder)}")
        return plan.folder
    check_ranks(config)
    settle_micro_batch(config, plan)
    check_plain_weights(config)
    checkpoint = choose_checkpoint(config, plan, zero_stage_of(config) or 0)
    apply_decision(config, stored_decision(checkpoint))
    run = build(config, plan)
    trainer = run.trainer
    lock = None
    if trainer.is_world_process_zero():
        lock = lock_run_folder(plan.folder)
        _open_run_folder(config, plan, given.given if isinstance(given, Resolved) else given)
    run.banner.checkpoint = checkpoint
    config.eval_on_start = config.eval_on_start and checkpoint is None
    start = time.time()
    try:
        with trainer.clock.part("training"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not run.stopped:
            finish(run, config, plan, time.time() - start)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_failure(error, config, plan.folder) from error
    finally:
        run.energy.stop()
        run.stop.restore_handlers()
        if lock is not None:
            lock.release()
    leave_ranks()
    if run.stopped:
        why = "" if run.stop.stopped else f"{run.stopped}; "
        raise StoppedResumable(
            f"{why}saved {plan.folder}/checkpoint-{trainer.state.global_step}; the same command goes on from there"
        )
    return plan.folder


def _open_run_folder(config: Any, plan: RunPlan, given: dict[str, Any]) -> None:
    """Write what is known before training; the manifest of a shorter, complete run is taken away."""
    (plan.folder / MANIFEST_NAME).unlink(missing_ok=True)
    write_yaml(plan.folder / "config.yaml", config.to_yaml_values(given))
    environment = {
        "identity": plan.identity,
        "identity_version": IDENTITY_VERSION,
        "versions": versions(),
        "commit": package_commit(),
        "device": device_name(),
        "precision": config.precision,
        "micro_batch": micro_batch_record(config),
    }
    write_json(plan.folder / ENVIRONMENT_NAME, environment)


def _incomplete_energy(folder: Path) -> dict[str, Any] | None:
    """Return since when energy is missing from the account of a run (`describe_incomplete`), or None."""
    starts = [start for path in ledger_files(folder) for start in read_starts(path, strict=False)]
    failed = [start.incomplete for start in starts if start.incomplete]
    return {"since_step": min(failed)[0], "reason": min(failed)[1]} if failed else None


def close_run_folder(
    run: Run, config: Any, plan: RunPlan, stage: str, describe: Callable[[list[dict[str, Any]]], dict[str, Any]]
) -> None:
    """Write the manifest of a run whose model is saved, as the last thing, and say where the time went.

    Args:
        run: the run; its energy meter is stopped here, after all work.
        config: its config.
        plan: its plan.
        stage: `pretrain`, `sft` or `dpo`.
        describe: makes what the manifest records from the records of `metrics.jsonl`; called on rank 0 alone.
    """
    run.energy.stop()
    if not run.trainer.is_world_process_zero():
        return
    (plan.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
    records = read_jsonl(plan.folder / METRICS_NAME)
    manifest = {
        "config": config.to_yaml_values({}),
        "energy_incomplete": _incomplete_energy(plan.folder),
        **describe(records),
        "hashes": {path.name: sha256_file(path) for path in sorted(plan.folder.glob("*.safetensors"))},
    }
    write_manifest(plan.folder, stage, manifest)
    with beside_the_model("a word on the held-out scores"):
        turn = describe_turn(plan.folder, records, manifest["training"]["epochs"])
        if turn is not None:
            print(f"{'held out':10} {turn}", flush=True)
    print("time       " + describe_time(run.trainer.clock.seconds), flush=True)
