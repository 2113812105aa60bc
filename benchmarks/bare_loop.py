"""A bare PyTorch loop over packed rows: what a training step costs without a Trainer, callbacks and checks.

    python benchmarks/bare_loop.py --preset 160m --tokenizer outputs/tokenizer --packed outputs/packed --with layers

prints one JSON object. `training_step.py` and `gpu/speed.py` run it beside `ttl pretrain`. Weights are float32; on a
GPU the forward pass runs in bfloat16 by autocast, as in the Trainer.
"""

import argparse
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHOICES = {
    "layers": "each layer compiled",
    "loss": "torch's chunked loss (2.13)",
    "head": "head and cross-entropy compiled together",
    "liger-loss": "Liger's fused head and cross-entropy",
    "liger": "all of Liger's kernels",
    "cudnn": "attention by cuDNN",
    "flash": "attention by torch's own flash kernel",
}
WARM_UP_STEPS = 5


def build_model(preset: str, shape: dict[str, int], tokenizer: str, context: int) -> Any:
    """Return a fresh model of a preset, its shape changed."""
    from transformers import LlamaForCausalLM

    from teenytinyllama.models import load_tokenizer
    from teenytinyllama.presets import preset_config

    config = preset_config(preset, load_tokenizer("tokenizer", tokenizer))
    for name, value in {**shape, "max_position_embeddings": context}.items():
        setattr(config, name, value)
    if shape:
        config.head_dim = config.hidden_size // config.num_attention_heads
    return LlamaForCausalLM(config)


def apply_choices(model: Any, choices: list[str]) -> None:
    """Change a model as the choices say, in place."""
    from teenytinyllama.training.speed import fuse_loss, skip_mask

    skip_mask(model)
    if "liger" in choices or "liger-loss" in choices:
        from transformers.integrations.liger import apply_liger_kernel

        only = {"rope": False, "rms_norm": False, "swiglu": False, "fused_linear_cross_entropy": True}
        apply_liger_kernel(model, None if "liger" in choices else only)
    if "layers" in choices:
        for layer in model.model.layers:
            layer.compile()
    if "loss" in choices:
        fuse_loss(model, "chunked")


def loss_function(model: Any, choices: list[str]) -> Callable[[Any], Any]:
    """Return what makes the mean loss of rows of tokens."""
    import torch

    if "head" not in choices:
        return lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss

    @torch.compile
    def head(hidden: Any, weight: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight).float(), targets)

    def loss(ids: Any) -> Any:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        return head(hidden[:, :-1].flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())

    return loss


@contextlib.contextmanager
def attention_by(choices: list[str]) -> Any:
    """Prefer a kernel for attention, where one is chosen.

    Torch's cache of compiled code does not know which kernel it was compiled for and would bring back that of an
    earlier process (pytorch issue 185449), so it is left out.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    chosen = [kernels[name] for name in choices if name in kernels]
    if not chosen:
        yield
        return
    backends = [*chosen, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with torch.compiler.config.patch(force_disable_caches=True), sdpa_kernel(backends, set_priority=True):
        yield


def train(arguments: Any) -> dict[str, Any]:
    """Train for some steps and return the seconds of each, the losses, the peak memory and, if asked for, a profile."""
    import numpy as np
    import torch

    rows = np.load(Path(arguments.packed) / "train.npy", mmap_mode="r")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model(arguments.preset, arguments.shape, arguments.tokenizer, rows.shape[1]).to(device)
    model.train()
    apply_choices(model, arguments.choices)
    loss_of = loss_function(model, arguments.choices)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    marks, losses, first = [_mark(device)], [], 0

    def step() -> None:
        nonlocal first
        for _ in range(arguments.accumulation):
            batch = torch.from_numpy(rows[first : first + arguments.rows].astype(np.int64))
            first = (first + arguments.rows) % (len(rows) - arguments.rows)
            batch = batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(batch)
            (loss / arguments.accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        marks.append(_mark(device))

    with attention_by(arguments.choices):
        for _ in range(arguments.steps):
            step()
        profile = _profile(step, arguments.profile) if arguments.profile else None
    if device.type == "cuda":
        torch.cuda.synchronize()
    marks = marks[: arguments.steps + 1]
    seconds = [_between(before, after) for before, after in itertools.pairwise(marks)]
    return {
        "seconds": seconds,
        "tokens_per_step": arguments.rows * arguments.accumulation * rows.shape[1],
        "last_loss": float(losses[arguments.steps - 1]),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "profile": profile,
    }


def _mark(device: Any) -> Any:
    """Return the time now, on the device's own clock."""
    import torch

    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(before: Any, after: Any) -> float:
    return after - before if isinstance(before, float) else float(before.elapsed_time(after)) / 1e3


def _profile(step: Callable[[], None], most: int) -> list[dict[str, Any]]:
    """Return the kernels of two steps that take most time, each with its share of all kernels' time."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        step()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    whole = sum(event.self_device_time_total for event in kernels)
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key[:120], "calls": event.count, "ms": event.self_device_time_total / 1e3,
         "share": event.self_device_time_total / whole}
        for event in kernels[:most]
    ]  # fmt: skip


def main() -> None:
    """Print what was measured as one JSON object."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--preset", default="160m")
    options.add_argument("--shape", type=json.loads, default={}, help="changes to the preset's shape, as JSON")
    options.add_argument("--tokenizer", required=True, help="folder of the tokenizer")
    options.add_argument("--packed", required=True, help="folder of packed rows")
    options.add_argument("--rows", type=int, default=4, help="rows computed at once")
    options.add_argument("--accumulation", type=int, default=1, help="micro-batches a step")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--with", dest="choices", nargs="*", choices=CHOICES, default=[], help=str(CHOICES))
    options.add_argument("--profile", type=int, default=0, metavar="N", help="the N kernels that take most time")
    print(json.dumps(train(options.parse_args())))


if __name__ == "__main__":
    main()
