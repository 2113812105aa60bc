"""What the machine offers: precision, peak speed and a name for the reports."""

import functools
import platform
import sys
import time
from typing import Literal

from ..checks import available_cores
from ..gpus import find_gpu

Precision = Literal["bf16", "fp16", "fp32"]


def has_accelerator() -> bool:
    """Return whether torch sees a GPU (CUDA, ROCm, Apple or other)."""
    import torch

    return bool(torch.accelerator.is_available())


def choose_precision() -> tuple[Precision, str]:
    """Return the training precision that suits this machine, and why."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.get_device_capability() >= (8, 0):
            return "bf16", f"{name} computes bf16 natively, which needs no loss scaling"
        return "fp16", f"{name} has no native bf16 (compute capability below 8.0); fp16 with a loss scaler instead"
    if has_accelerator():
        return "fp32", f"mixed precision is not tested on {torch.accelerator.current_accelerator()}"
    return "fp32", "CPU: bf16 is emulated on most processors and slower there"


def device_name() -> str:
    """Return the GPU's name, or the processor's."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def peak_gpu_memory_gb() -> float | None:
    """Return the most memory that tensors of this process held on its GPU at once, in 10^9 bytes; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def wait_for_gpu() -> None:
    """Wait until the GPU, if there is one, has done all that this process has given it."""
    import torch

    if has_accelerator():
        torch.accelerator.synchronize()


def peak_memory_gb() -> float:
    """Return the most memory that this process held at once, in 10^9 bytes."""
    import resource  # not on Windows, where the module must still be importable

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def peak_flops(device: str) -> tuple[float, str]:
    """Return the peak of one device in FLOP/s and where the figure is from.

    A GPU's comes from `gpus.GPUS`. For any other it is measured by a short matrix product in the precision of the
    training, and for a CPU likewise, with the threads that training uses: what it can really reach.
    """
    found = find_gpu(device)
    if found is not None:
        return found[1].peak_flops, f"data sheet of the {found[1].device}"
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return _measured_peak_flops(torch.get_num_threads(), "cpu" if accelerator is None else accelerator.type)


@functools.cache  # who asks twice is told the same
def _measured_peak_flops(threads: int, device: str) -> tuple[float, str]:
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[choose_precision()[0]]
    size = 1024 if device == "cpu" else 8192  # a GPU is filled
    own = torch.Generator(device).manual_seed(0)  # the process's random numbers stay as they are
    a, b = (torch.randn(size, size, generator=own, device=device, dtype=kind) for _ in range(2))
    best, count, begin, begun = float("inf"), 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < 0.3:
        start = time.perf_counter()
        torch.mm(a, b)
        wait_for_gpu()
        best, count = min(best, time.perf_counter() - start), count + 1
    # Other programs may leave a processor no quiet moment: what its threads worked is theirs alone.
    worked = (time.process_time() - begun) / min(threads, available_cores())
    if device == "cpu" and worked > 0:
        best = min(best, worked / count)
    name = str(kind).removeprefix("torch.")
    return 2 * size**3 / best, f"measured: {name} product of {size} x {size} matrices"
