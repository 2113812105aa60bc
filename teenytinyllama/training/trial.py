"""One micro-batch before training, to see whether it fits, and what running out of memory looks like."""

import contextlib
import copy
import gc
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from .loss import has_chunked_loss
from .memory import MemoryNeed, virtual_memory_bytes
from .plan import RunPlan
from .speed import SpeedPlan, apply_speed, eager

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
