"""A run: one training from its checked plan to its finished folder, alike for pretraining, SFT and DPO.

`execute` settles the micro-batch, chooses the checkpoint to resume from, builds the Trainer with its callbacks, trains,
and writes the manifest. The rest of this file is what a run says of itself: the banner before the first step, and the
records of its manifest after the last one.
"""

import functools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback, TrainerState

from ..arguments import write_yaml
from ..checkpointing.checkpoints import branch_record, complete_checkpoints, recorded_branch, recorded_left_out
from ..checkpointing.saving import IDENTITY_VERSION, CheckpointCallback, choose_checkpoint
from ..checks import RunFailedError, StoppedResumable, beside_the_model, is_main_process
from ..distributed import check_ranks, from_first, is_lost_rank, leave_ranks
from ..energy.emissions import grid_intensity, place, read_emissions
from ..energy.ledger import ledger_files, read_starts
from ..gpus import describe_out_of_memory, device_name, is_out_of_memory, peak_flops, peak_gpu_memory_gb, peak_memory_gb
from ..model_files import is_local
from ..planning.memory import final_model_bytes, row_divisors
from ..presets import MFU_CONVENTIONS, count_parameters, flops_per_token, matrix_flops_per_token
from ..stage_folder import (
    CONFIG_NAME,
    EMISSIONS_NAME,
    ENVIRONMENT_NAME,
    METRICS_NAME,
    StageFolder,
    lock_run_folder,
    sha256_file,
    write_json,
)
from ..watching.trackers import TrackersCallback, take_reporters
from .caps import CapCallback, SpendingCallback, apply_decision, earlier_decision, has_caps, hours_until_cap
from .decay import LeaseCallback, can_begin_early
from .guards import with_returns
from .library import check_plain_weights
from .metrics import Evaluation, MetricsCallback, describe_turn, lowest_held_out, read_jsonl, speeds_of_steps
from .run_plan import Resolved, RunPlan, describe_continuation, size_of_checkpoint
from .speed import zero_stage_of
from .trainer import Clock, EnergyCallback, IntervalsCallback, QueueCallback, SampleCallback, StopCallback
from .trials import OUT_OF_MEMORY_HELP, micro_batch_record, settle_micro_batch

# The scores in a manifest where nothing was evaluated.
NOT_EVALUATED: dict[str, Any] = {"bits_per_byte": None, "perplexity": None, "per_source": {}}

Plan = TypeVar("Plan", bound=RunPlan)


@dataclass(frozen=True)
class Run:
    """The live objects of a run in one process."""

    trainer: Any
    evaluation: Any
    energy: EnergyCallback
    cap: CapCallback | None
    stop: StopCallback
    banner: "BannerCallback"
    trackers: TrackersCallback

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
        evaluation: scores held-out data.
        samples: writes texts of the model at every evaluation.
        banner_lines: banner lines of this stage, besides those of every run.
        metrics: more arguments of `MetricsCallback`.
    """
    trainer.clock = Clock()
    energy, stop = EnergyCallback(plan.folder, config), StopCallback()
    spending, cap = SpendingCallback(energy.spent, config.price, trainer.pauses), None
    if has_caps(config):
        spending.hours_left = functools.partial(hours_until_cap, config)
    if has_caps(config) or can_begin_early(config):
        asked_in = plan.folder if can_begin_early(config) else None
        cap = CapCallback(config, spending, config.early_end, energy.has_failed, asked_in)
    banner = BannerCallback(trainer, config, plan, banner_lines)
    tokens_per_step = config.rows_per_step * config.tokens_per_row
    records = MetricsCallback(plan.folder, tokens_per_step, evaluation, spending, **metrics)
    trackers = TrackersCallback(plan.folder, take_reporters(trainer), records)
    trainer.add_callback(IntervalsCallback())
    trainer.add_callback(QueueCallback())  # the first one, and not timed as a callback: its waiting is training time
    # The order matters: sampling comes before energy is measured, measuring before adding up and reporting, and a
    # checkpoint is marked complete after all other callbacks have written into the folder.
    for callback in (
        banner,
        stop,
        samples,
        energy,
        spending,
        *([cap] if cap else []),
        *(records, trackers),
        _checkpoint_callback(trainer, config, plan, evaluation, spending),
    ):
        part = "samples" if callback is samples else "callbacks"
        trainer.add_callback(trainer.clock.watch(callback, part))
    return Run(trainer, evaluation, energy, cap, stop, banner, trackers)


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

    zero_stage = zero_stage_of(config) or 0
    needed_bytes = size_of_checkpoint(config, plan.model_config, zero_stage)
    keep, final_bytes = config.save_checkpoints_kept, final_model_bytes(count_parameters(plan.model_config))
    return CheckpointCallback(plan.folder, keep, zero_stage, needed_bytes, final_bytes, figures, trainer.clock)


def execute(
    config: Any,
    make_plan: Callable[[Any, Resolved | None], Plan],
    given: Resolved | dict[str, Any],
    build: Callable[[Any, Plan], Run],
    finish: Callable[[Run, Any, Plan, float], None],
) -> Path:
    """Plan a run and train in this process (one of its ranks), or resume, and return the run's folder.

    Args:
        config: a `RunSettings`, with everything derived.
        make_plan: checks the config against its files, unless state and identity of the run were resolved before.
        given: the keys as the user gave them, for `config.yaml`; or all that was resolved before (`read_run`).
        build: makes Trainer and callbacks, once the micro-batch is settled.
        finish: is called after the last step with the seconds of training, to score and save the final model; not
            called after a signal.

    Raises:
        InputError: a folder in which another process trains, or ranks or memory that do not fit.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite, memory ran out, or another rank has ended.
    """
    known, given_keys = (given, given.given) if isinstance(given, Resolved) else (None, given)
    plan = make_plan(config, known)
    if plan.state == "complete":
        if is_main_process():
            print(f"{plan.folder} is complete; {describe_continuation(plan.folder)}")
        return plan.folder
    check_ranks(config)
    settle_micro_batch(config, plan)
    check_plain_weights(config)

    def attempt() -> Run:
        with ExitStack() as held:  # is given back in the reverse order
            lease = held.enter_context(ExitStack())
            checkpoint = choose_checkpoint(config, plan, zero_stage_of(config) or 0, lease)
            apply_decision(config, from_first(lambda: earlier_decision(config, plan.folder, checkpoint)))
            run = build(config, plan)
            run.trainer.add_callback(LeaseCallback(lease))
            if run.trainer.is_world_process_zero():
                held.callback(lock_run_folder(plan.folder).release)
                _open_run_folder(config, plan, given_keys, checkpoint)
            held.callback(run.stop.restore_handlers)
            held.callback(run.energy.stop)
            held.callback(run.trackers.close)
            _train(run, config, plan, checkpoint, finish)
            return run

    run = with_returns(attempt)
    leave_ranks()
    if run.stopped:
        why = "" if run.stop.stopped else f"{run.stopped}; "
        raise StoppedResumable(
            f"{why}saved {plan.folder}/checkpoint-{run.trainer.state.global_step}; the same command goes on from there"
        )
    return plan.folder


def _train(
    run: Run, config: Any, plan: Plan, checkpoint: Path | None, finish: Callable[[Run, Any, Plan, float], None]
) -> None:
    """Train from a checkpoint, or from the beginning, and finish a run that nothing stopped."""
    run.banner.checkpoint = checkpoint
    config.eval_on_start = config.eval_on_start and checkpoint is None
    start = time.time()
    try:
        with run.trainer.clock.part("training"):
            run.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not run.stopped:
            finish(run, config, plan, time.time() - start)
    except (RuntimeError, MemoryError) as error:
        if is_lost_rank(error):
            raise RunFailedError("another rank has ended, and this one waited for it.") from error
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_failure(error, config, plan.folder) from error


def _open_run_folder(config: Any, plan: RunPlan, given: dict[str, Any], checkpoint: Path | None) -> None:
    """Write the config and the environment of a run; delete the manifest of a shorter run that is to become longer."""
    place = StageFolder(plan.folder, "training", "run")
    place.reopen()
    environment = {
        "identity_version": IDENTITY_VERSION,
        "device": device_name(),
        "precision": config.precision,
        "micro_batch": micro_batch_record(config),
        "branch": branch_record(plan.folder, checkpoint),
        "left_out": recorded_left_out(plan.folder),
    }
    place.begin(plan.identity, environment)  # first: after a kill the same command knows the folder by it
    write_yaml(plan.folder / CONFIG_NAME, config.to_yaml_values(given))


def close_run_folder(
    run: Run,
    config: Any,
    plan: RunPlan,
    stage: str,
    describe: Callable[[list[dict[str, Any]]], dict[str, Any]],
    lines: dict[str, str],
) -> None:
    """Write the manifest of a run whose model is saved, and print where the time went.

    Args:
        run: the run; its energy meter is stopped here, after all work.
        config: its config.
        plan: its plan.
        stage: `pretrain`, `sft` or `dpo`.
        describe: returns the manifest's content for the records of `metrics.jsonl`; called on rank 0 alone.
        lines: printed last, by their names.
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
    StageFolder(plan.folder, stage, "run").finish(manifest)
    with beside_the_model("a word on the held-out scores"):
        turn = describe_turn(plan.folder, records, manifest["training"]["epochs"])
        if turn is not None:
            print(f"{'held out':10} {turn}", flush=True)
    seconds = run.trainer.clock.seconds
    whole = sum(seconds.values())
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    print(f"time       {', '.join(f'{name} {100 * spent / whole:.2f} %' for name, spent in parts)} of {whole:,.0f} s")
    print("".join(f"{name:10} {text}\n" for name, text in lines.items()), end="", flush=True)


def _incomplete_energy(folder: Path) -> dict[str, Any] | None:
    """Return since which step energy is missing from the account of a run and why, or None where none is."""
    starts = [start for path in ledger_files(folder) for start in read_starts(path, strict=False)]
    step, reason = min((start.incomplete for start in starts if start.incomplete), default=(0, ""))
    return {"since_step": step, "reason": reason} if reason else None


class BannerCallback(TrainerCallback):
    """Print the banner once the Trainer has made its engine; refuse an engine of another ZeRO stage than planned."""

    def __init__(self, trainer: Any, config: Any, plan: RunPlan, lines: dict[str, str]) -> None:
        """Describe this run, with the lines of its stage; `execute` sets `checkpoint` to the one it resumes from."""
        self.trainer, self.config, self.plan, self.lines = trainer, config, plan, lines
        self.checkpoint: Path | None = None

    def on_train_begin(self, args: Any, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Print the banner on rank 0.

        Raises:
            RunFailedError: accelerate's file asks for a ZeRO stage that the engine does not run.
        """
        planned, live = zero_stage_of(self.config) or 0, live_zero_stage(self.trainer)
        if planned != live:
            raise RunFailedError(f"ZeRO stage {planned} was asked for and the engine runs stage {live}.")
        if state.is_world_process_zero:
            print("\n".join(f"{name:10} {text}" for name, text in self._all_lines().items()), flush=True)

    def _all_lines(self) -> dict[str, str]:
        """Return ranks, backend and ZeRO stage as the live objects have them, precision, sizes and arithmetic."""
        trainer, config, plan = self.trainer, self.config, self.plan
        shape = plan.model_config
        parameters = count_parameters(shape)  # under ZeRO 3 a rank's own count would be of its part
        peak, peak_source = peak_flops(device_name())
        return {
            "model": f"{getattr(config, 'preset', None) or config.model_name_or_path}: {parameters:,} parameters, "
            f"{shape.num_hidden_layers} layers x {shape.hidden_size}, "
            f"context {shape.max_position_embeddings}, vocabulary {shape.vocab_size}",
            "ranks": f"{config.world_size} (backend {_backend()}, {trainer.accelerator.distributed_type.value}, ZeRO "
            f"stage {live_zero_stage(trainer) or 'none'}, {type(trainer.model_wrapped).__name__}) on {device_name()}",
            "precision": f"{config.precision} ({config.precision_reason})",
            "batch": f"{config.rows_per_step * config.tokens_per_row:,} tokens a step = "
            f"{config.per_device_train_batch_size} rows x {config.gradient_accumulation_steps} accumulation x "
            f"{config.world_size} ranks x {config.tokens_per_row} tokens "
            f"({'; '.join(filter(None, (config.micro_batch_reason, config.batch_reason)))})",
            **self.lines,
            "MFU": f"by {MFU_CONVENTIONS['mfu']}, {flops_per_token(shape) / 1e9:.4g} GFLOP; and by "
            f"{MFU_CONVENTIONS['mfu_matrix_products']}, {matrix_flops_per_token(shape) / 1e9:.4g} GFLOP; peak "
            f"{peak / 1e12:.3g} TFLOP/s a rank ({peak_source})",
            "energy": f"offline, grid of {place(config.country_iso_code, config.region)} at "
            f"{grid_intensity(config.country_iso_code, config.region):.1f} g CO2e/kWh (country_iso_code, region), "
            f"PUE {config.pue:g}",
            "start": f"resumed from {self.checkpoint}" if self.checkpoint else "from the beginning",
            "folder": str(plan.folder),
        }


def live_zero_stage(trainer: Any) -> int:
    """Return the ZeRO stage of the engine that trains (0 without DeepSpeed); there is one once training begins."""
    engine: Any = trainer.model_wrapped
    return int(engine.zero_optimization_stage()) if hasattr(engine, "zero_optimization_stage") else 0


def _backend() -> str:
    import torch.distributed as dist

    return str(dist.get_backend()) if dist.is_available() and dist.is_initialized() else "none"


def describe_length(config: Any, plan: RunPlan, rows: int) -> str:
    """Return steps, tokens and epochs of a run over so many rows of data."""
    tokens = config.max_steps * config.rows_per_step * config.tokens_per_row
    return (
        f"{config.max_steps:,} steps = {tokens:,} tokens = {tokens / count_parameters(plan.model_config):.1f} per "
        f"parameter = {planned_epochs(config, rows):.2f} epochs of {rows:,} rows"
    )


def planned_epochs(config: Any, rows: int) -> float:
    """Return how often a run will read each of so many rows."""
    return float(config.max_steps * config.rows_per_step / rows)


def describe_model(config: Any, plan: RunPlan) -> dict[str, Any]:
    """Return the manifest's record of the model."""
    return {
        "preset": getattr(config, "preset", None),
        "base_model": config.model_name_or_path,
        "base_is_local": is_local(config.model_name_or_path),
        "num_parameters": count_parameters(plan.model_config),
        "num_hidden_layers": plan.model_config.num_hidden_layers,
        "hidden_size": plan.model_config.hidden_size,
        "vocab_size": plan.model_config.vocab_size,
        "context": plan.model_config.max_position_embeddings,
    }


def describe_training(
    trainer: Any, config: Any, plan: RunPlan, records: list[dict[str, Any]], seconds: float, rows: int
) -> dict[str, Any]:
    """Return the manifest's record of a run over so many rows of data.

    Of the speeds, `tokens_per_second` is the run's, by its tokens and all of its seconds; the others are of its steps.
    """
    train = [record for record in records if "loss" in record]
    energy = None
    with beside_the_model("reading the energy of all starts"):
        energy = read_emissions(plan.folder / EMISSIONS_NAME)
    steps, tokens_per_step = trainer.state.global_step, config.rows_per_step * config.tokens_per_row
    seconds = energy.duration_seconds if energy else seconds
    own_steps = steps - (recorded_branch(plan.folder) or {"step": 0})["step"]  # the others were another run's
    return {
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "tokens_per_step": tokens_per_step,
        "epochs": steps * config.rows_per_step / rows,
        "seconds": seconds,  # of all starts, repeated steps included
        "seconds_by_part_of_last_start": {name: round(spent, 3) for name, spent in trainer.clock.seconds.items()},
        "tokens_per_second": own_steps * tokens_per_step / seconds if seconds > 0 else None,  # all seconds, see above
        **speeds_of_steps(train),
        **{f"{name}_convention": text for name, text in MFU_CONVENTIONS.items()},
        "first_loss": train[0]["loss"] if train else None,
        "last_loss": train[-1]["loss"] if train else None,
        "lowest_held_out": lowest_held_out(records),
        "world_size": config.world_size,
        "backend": _backend(),
        "zero_stage": live_zero_stage(trainer),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "micro_batch_reason": config.micro_batch_reason,
        "precision": config.precision,
        "precision_reason": config.precision_reason,
        "hardware": device_name(),
        "peak_memory_gb": peak_memory_gb(),
        "peak_gpu_memory_gb": peak_gpu_memory_gb(),
    }


def out_of_memory_failure(error: BaseException, config: Any, folder: Path) -> RunFailedError:
    """Return what to end with when memory ran out in training; the next start then takes a smaller micro-batch.

    The rank that it happened to may not be rank 0, which alone prints what it raises, so it prints the message itself.
    """
    rows = int(config.per_device_train_batch_size or 1)
    saved = complete_checkpoints(folder)
    go_on = f"goes on from {saved[-1][1].name}" if saved else "starts again"
    if any(frame.name == "evaluation_loop" for frame in traceback.extract_tb(error.__traceback__)):
        where = "an evaluation"
        fix = f"Lower per_device_eval_batch_size (now {config.per_device_eval_batch_size}); the same command {go_on}."
    elif smaller := [n for n in row_divisors(config.rows_per_step // config.world_size) if n < rows]:
        where = f"training with micro-batches of {rows} rows"
        fix = f"The same command {go_on} with {smaller[-1]}; tokens a step stay the same."
        remember_failed_rows(folder / ENVIRONMENT_NAME, rows)
    else:
        where = "training with micro-batches of one row"
        fix = f"{OUT_OF_MEMORY_HELP} The same command {go_on}."
    message = f"out of memory in {where} ({describe_out_of_memory(error)}). {fix}"
    if not is_main_process():
        print(f"failed: {message}", file=sys.stderr, flush=True)
    return RunFailedError(message)


def remember_failed_rows(path: Path, rows: int) -> None:
    """Write into a run's `environment.json` which micro-batch ran out of memory; several ranks may do so at once."""
    environment = json.loads(path.read_text(encoding="utf-8"))
    environment["micro_batch"]["failed_rows"] = rows
    write_json(path, environment, f".{os.getpid()}.partial")
