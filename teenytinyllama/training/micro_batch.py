"""The micro-batch: chosen from the free memory, tried before training, and smaller after running out of memory.

It decides speed and memory alone: tokens a step stay as they are, accumulation makes up for it.

One micro-batch before training, to see whether it fits, and what running out of memory looks like.
"""

import contextlib
import copy
import gc
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import complete_checkpoints
from ..checks import InputError, RunFailedError, is_main_process
from ..distributed import least_over_ranks, ranks_here
from ..gpus import device_name
from ..planning.memory import (
    Computation,
    MemoryNeed,
    choose_rows,
    eval_rows,
    free_memory_bytes,
    memory_need,
    row_divisors,
    virtual_memory_bytes,
)
from ..stage_folder import ENVIRONMENT_NAME, write_json
from .run_plan import RunPlan
from .speed import SpeedPlan, apply_speed, eager, has_chunked_loss

# A GPU's allocator cannot use the last of its memory for one large tensor.
_FRAGMENTED_SHARE = 0.02

_OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|not enough memory|ALLOC_FAILED|bad_alloc"
)
_ALLOCATION = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def describe_out_of_memory(error: BaseException) -> str:
    """Return the size of the allocation that failed, or the error's own words."""
    match = _ALLOCATION.search(str(error))
    return f"no room for {match[1]}" if match else f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


def recomputes_layers(config: Any) -> bool:
    """Return whether layers are computed again in the backward pass; transformers renamed the key."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(bool(getattr(config, name, False)) for name in names)


def compiles_trial(speed: SpeedPlan, device: torch.device) -> bool:
    """Return whether a trial compiles the layers as the training will, and its memory is to be counted so.

    On a CPU it does not: the compiler would be under the trial's limit of the address space.
    """
    return speed.compile_layers and device.type != "cpu"


def try_rows(config: Any, plan: RunPlan, need: MemoryNeed, rows: int) -> str:
    """Compute one micro-batch of random rows with the memory of the optimizer held back.

    Random numbers go on afterwards as if nothing had been.

    Returns:
        Why it does not fit, or an empty text.

    Raises:
        RuntimeError: it fails for another reason than memory.
    """
    device = config.device
    speed: SpeedPlan = config.speed_plan(plan.model_config, 0)
    compiles = compiles_trial(speed, device)
    keeps_state = device.type not in ("cpu", "mps")  # Apple's generator has no index; the Trainer seeds it anyway
    devices, kind = ([device.index or 0], device.type) if keeps_state else ([], "cuda")
    try:
        with torch.random.fork_rng(devices=devices, device_type=kind):
            _try(config, plan, need, rows, replace(speed, compile_layers=compiles, reasons={}))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return describe_out_of_memory(error)
    finally:
        if compiles:  # or what is computed next counts as one more shape, and torch compiles for all of them
            torch.compiler.reset()
        gc.collect()
        if device.type != "cpu":
            getattr(torch, device.type).empty_cache()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    return ""


def _try(config: Any, plan: RunPlan, need: MemoryNeed, rows: int, speed: SpeedPlan) -> None:
    assert config.context is not None
    device, own_weights = config.device, config.deepspeed_plugin is not None
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.precision]
    with device:
        model = _build_model(config, plan, speed)
    model.to(device=device, dtype=kind if own_weights else None)
    vocab_size = plan.model_config.vocab_size

    def compute(rows: int, tokens: int) -> None:
        ids = torch.randint(0, vocab_size, (rows, tokens), device=device)
        with torch.autocast(device.type, kind, enabled=kind != torch.float32 and not own_weights):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    with eager() if speed.compile_layers else contextlib.nullcontext():
        compute(1, min(8, config.context))  # the gradients, and the libraries' own buffers
    state = need.state_bytes - sum(2 * parameter.nbytes for parameter in model.parameters())
    if device.type == "cpu":
        torch.empty(torch.get_num_threads() << 16).zero_()  # all threads: none can be made under the limit
        with _address_space(config.micro_batch_free_bytes - need.state_bytes):
            compute(rows, config.context)
        return
    if config.precision != "fp32" and not own_weights:
        state -= 2 * sum(parameter.numel() for parameter in model.parameters())  # autocast's copies are made here too
    state += int(_FRAGMENTED_SHARE * config.micro_batch_free_bytes)
    held_back = torch.empty(max(0, state), dtype=torch.uint8, device=device)
    compute(rows, config.context)
    getattr(torch, device.type).synchronize()
    del held_back


def _build_model(config: Any, plan: RunPlan, speed: SpeedPlan) -> Any:
    """Return a model that needs the memory of the one that will be trained; its weights are of no use.

    What is compiled for it lies in torch's cache when the training compiles the same.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(copy.deepcopy(plan.model_config)).float()
    model.set_attn_implementation(config.attn_implementation)
    loss = "whole" if speed.loss == "chunked" and not has_chunked_loss() else speed.loss
    apply_speed(model, replace(speed, loss=loss))
    if config.use_liger_kernel:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, config.liger_kernel_config)
    if recomputes_layers(config):
        model.gradient_checkpointing_enable()
    return model.train()


@contextlib.contextmanager
def _address_space(more_bytes: int) -> Iterator[None]:
    """Let this process grow by so many bytes only: what does not fit is then an error, where Linux would kill it."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = virtual_memory_bytes() + max(0, more_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


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
