"""The micro-batch: chosen from the free memory, tried before training, and smaller after running out of memory.

It decides speed and memory alone: tokens a step stay as they are, accumulation makes up for it.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from ..checkpoints import complete_checkpoints
from ..checks import InputError, RunFailedError, is_main_process
from ..collectives import least_over_ranks
from ..manifest import write_json
from .batch import eval_rows, row_divisors
from .checkpoints import ENVIRONMENT_NAME
from .hardware import device_name
from .memory import Computation, MemoryNeed, choose_rows, free_memory_bytes, memory_need
from .plan import RunPlan
from .ranks import ranks_here
from .speed import SpeedPlan
from .trial import compiles_trial, describe_out_of_memory, recomputes_layers, try_rows

# A need of up to this share of the free memory is not tried: predictions were at most 16 % below measured peaks.
SURE_SHARE = 0.5
_HELP = "Set activation_checkpointing: true, take rows of a smaller context, or a smaller model."


def settle_micro_batch(config: Any, plan: RunPlan) -> None:
    """Set the micro-batch of a run, in place; call it on every rank once they are connected and before the Trainer.

    Not given, it is chosen from what is free on the rank with least, or is as before in a resumed run, so that sums
    keep their order. Given or chosen, one that might not fit is tried, and the next smaller one is taken, until one
    does. This happens before the Trainer is made, because that is when accumulation is read, and DeepSpeed's `auto`
    values are filled in from it.

    Args:
        config: a `RunSettings`, changed in place: the micro-batch, the accumulation, and why.
        plan: the checked plan.

    Raises:
        InputError: not even one row fits.
    """
    assert config.context is not None
    assert config.per_device_train_batch_size is not None
    device = config.device
    zero_stage = zero_stage_of(config)
    speed: SpeedPlan = config.speed_plan(plan.model_config, zero_stage or 0)
    how = Computation(
        precision=config.precision,
        zero_stage=zero_stage,
        world_size=config.world_size,
        loss="chunked" if config.use_liger_kernel else speed.loss,  # Liger keeps as little
        compiled=compiles_trial(speed, device),
        attention=config.attn_implementation,
        checkpointing=recomputes_layers(config),
        on_gpu=device.type != "cpu",
        frozen_share=config.frozen_share,
        reference_models=config.reference_models,
    )
    need = memory_need(plan.model_config, config.longest_row, how)
    least_over_ranks(0, device)  # the first collective makes buffers of its own: before the free memory is read
    free_bytes = least_over_ranks(free_memory_bytes(device, ranks_here()), device)
    before = _before(plan.folder, config, free_bytes)
    divisors = row_divisors(config.rows_per_step // config.world_size)
    rows, reason = config.per_device_train_batch_size, "as configured"
    failed = before.get("failed_rows")
    allowed = [n for n in divisors if failed is None or n < failed] or divisors[:1]
    config.micro_batch_failed_rows, config.micro_batch_free_bytes = failed, free_bytes
    if not config.micro_batch_given:
        rows = choose_rows(allowed, need, free_bytes, config.longest_row, device.type)
        reason = f"chosen: about {need.total_bytes(rows) / 1e9:.2f} of {free_bytes / 1e9:.1f} GB free"
        if before.get("rows") in allowed and need.total_bytes(before["rows"]) <= free_bytes:
            rows, reason = before["rows"], "as before"
    elif rows not in allowed:
        reason = f"{rows} as configured ran out of memory before"
        _say(f"micro-batch {rows} ran out of memory before ({plan.folder / ENVIRONMENT_NAME}): {allowed[-1]}")
        rows = allowed[-1]
    config.set_micro_batch(*_shrink_until_it_fits(config, plan, need, rows, reason))
    if not config.eval_batch_given:
        rows, vocab_size = config.per_device_train_batch_size, plan.model_config.vocab_size
        config.per_device_eval_batch_size = eval_rows(rows, config.longest_row, vocab_size, speed.loss == "whole")


def zero_stage_of(config: Any) -> int | None:
    """Return the ZeRO stage that accelerate's plugin asks for, or None without DeepSpeed."""
    plugin: Any = config.deepspeed_plugin
    return None if plugin is None else int(plugin.zero_stage)


def _shrink_until_it_fits(config: Any, plan: RunPlan, need: MemoryNeed, rows: int, reason: str) -> tuple[int, str]:
    free_bytes, device = config.micro_batch_free_bytes, config.device
    while True:
        sure = need.total_bytes(rows) <= SURE_SHARE * free_bytes and plan.model_config.model_type == "llama"
        # Under ZeRO 3 no rank could hold the whole model that a trial before the engine needs, and a trial knows of no
        # frozen weights and of no second model.
        if sure or zero_stage_of(config) == 3 or config.frozen_share or config.reference_models:
            return rows, reason
        failure = try_rows(config, plan, need, rows)
        if least_over_ranks(int(not failure), device):
            return rows, reason
        smaller = [n for n in row_divisors(config.rows_per_step // config.world_size) if n < rows]
        failure = failure or "on another rank"
        if not smaller:
            raise InputError(
                f"context={config.context}: not even one row of so many tokens fits into memory ({failure}; "
                f"{free_bytes / 1e9:.1f} GB were free, weights, gradients and optimizer states need about "
                f"{need.state_bytes / 1e9:.1f}). {_HELP}"
            )
        _say(f"micro-batch {rows} does not fit ({failure}): {smaller[-1]}")
        reason = f"{rows} did not fit"
        rows = smaller[-1]


def _before(folder: Path, config: Any, free_bytes: int) -> dict[str, Any]:
    """Return what the last start of this run on the same hardware recorded, if that still tells anything."""
    path = folder / ENVIRONMENT_NAME
    record = json.loads(path.read_text(encoding="utf-8")).get("micro_batch", {}) if path.is_file() else {}
    if (record.get("world_size"), record.get("device")) != (config.world_size, device_name()):
        return {}
    if free_bytes > 1.2 * record["free_bytes"]:
        record["failed_rows"] = None  # somebody else's memory is free now
    return dict(record)


def micro_batch_record(config: Any) -> dict[str, Any]:
    """Return what `environment.json` keeps for the next start."""
    return {
        "rows": config.per_device_train_batch_size,
        "failed_rows": config.micro_batch_failed_rows,
        "free_bytes": config.micro_batch_free_bytes,
        "world_size": config.world_size,
        "device": device_name(),
    }


def out_of_memory_failure(error: BaseException, config: Any, folder: Path) -> RunFailedError:
    """Return what to end with when memory ran out in training; the next start then takes a smaller micro-batch.

    The rank that it happened to may not be rank 0, which alone prints what it raises, so it says so itself.
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
        _remember_failure(folder / ENVIRONMENT_NAME, rows)
    else:
        where = "training with micro-batches of one row"
        fix = f"{_HELP} The same command {go_on}."
    message = f"out of memory in {where} ({describe_out_of_memory(error)}). {fix}"
    if not is_main_process():
        print(f"failed: {message}", file=sys.stderr, flush=True)
    return RunFailedError(message)


def _remember_failure(path: Path, rows: int) -> None:
    environment = json.loads(path.read_text(encoding="utf-8"))
    environment["micro_batch"]["failed_rows"] = rows
    write_json(path, environment, f".{os.getpid()}.partial")  # equal GPUs run out in the same moment


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)
