"""GPUs: the one table of peak, memory, power and price; what the device of this process is, can do and has free."""

import contextlib
import functools
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .checks import InputError, available_cores, near_name

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        device: the part of the driver's device name that names the model.
        peak_flops: dense 16-bit tensor-core peak in FLOP/s, without sparsity, added up in float32.
        memory_gb: memory in 10^9 bytes, as the data sheet counts.
        board_watts: the board's power limit.
        planned_watts: power that a plan counts for one GPU at work, with its share of the host.
        price_usd: a usual price of an hour; a plan for an offer replaces it. 0: a card that people own.
        source: of peak, memory and board power.
        watts_source: of `planned_watts`.
        price_source: of `price_usd`.
        has_bf16: whether it computes bf16; without, trainings are in fp16 with a loss scaler.
    """

    device: str
    peak_flops: float
    memory_gb: float
    board_watts: float
    planned_watts: float
    price_usd: float
    source: str
    watts_source: str
    price_source: str
    has_bf16: bool = True


# A GPU without a measurement: nine tenths of its power limit, as an H100 (620-680 of 700 W) and an A100 (330-370 of
# 400 W) use when they train, and 80 W of the host, the low end of 80-120 W.
_RULE = "0.9 x board power + 80 W of the host, the rule that fits H100 and A100"
_H100_WATTS = "GPU 620-680 W + 80-120 W of the host under training load"
_A100_WATTS = "GPU 330-370 W + 80 W of the host; TeenyTinyLlama-160m's log has 430 W (arXiv 2401.16640)"
_HOSTED = "offers of 2 to 3 USD; nanochat plans with 3"
_OWNED = "a card that people own; give --price for a rented one"
_V100 = "NVIDIA V100 data sheet, SXM2 (fp16; Volta has no bf16)"
_V100_PRICE = "median of GPUs of its age, May 2026: 0.97 USD (GPU index of aimultiple.com)"

GPUS: dict[str, Gpu] = {
    "h200": Gpu(
        "H200", 989.4e12, 141, 700, 750, 3.6,
        "NVIDIA H200 data sheet, SXM (1,979 TFLOP/s bf16 with sparsity)",
        f"as the H100, whose power limit it shares: {_H100_WATTS}",
        "RunPod, March 2026: 3.59 to 6.35 USD (as compared by deploybase.ai)",
    ),
    "h100": Gpu(
        "H100", 989.4e12, 80, 700, 750, 2.5,
        "NVIDIA H100 data sheet, SXM (1,979 TFLOP/s bf16 with sparsity)",
        _H100_WATTS,
        _HOSTED,
    ),
    "a100-80gb": Gpu(
        "A100", 312e12, 80, 400, 450, 1.5,
        "NVIDIA A100 data sheet, SXM 80 GB",
        _A100_WATTS,
        "offers of 1.2 to 1.8 USD",
    ),
    "a100-40gb": Gpu(
        "A100", 312e12, 40, 400, 450, 1.5,
        "NVIDIA A100 data sheet, SXM 40 GB",
        _A100_WATTS,
        "Lambda, May 2026: 1.48 USD (as compared by techbytes.app)",
    ),
    "rtx4090": Gpu(
        "RTX 4090", 165.2e12, 24, 450, 485, 0.6,
        "NVIDIA Ada GPU architecture white paper, table of the RTX 4090 (fp32 accumulation)",
        _RULE,
        "RunPod, March 2026: 0.34 to 0.60 USD (as compared by deploybase.ai)",
    ),
    "rtx3090": Gpu(
        "RTX 3090", 71e12, 24, 350, 395, 0.4,
        "NVIDIA Ampere GA102 white paper, table of the RTX 3090 (fp32 accumulation)",
        _RULE,
        "RunPod, March 2026: 0.22 to 0.39 USD (as compared by deploybase.ai)",
    ),
    "rtx4060": Gpu(
        "RTX 4060", 30.2e12, 8, 115, 184, 0.0,
        "15.1 TFLOP/s in fp32, twice as many in tensor cores with fp32 accumulation, as in the RTX 4090's white paper",
        _RULE,
        _OWNED,
    ),
    "rtx3060": Gpu(
        "RTX 3060", 25.5e12, 12, 170, 233, 0.0,
        "12.7 TFLOP/s in fp32, twice as many in tensor cores with fp32 accumulation, as in the RTX 3090's white paper",
        _RULE,
        _OWNED,
    ),
    "l4": Gpu(
        "L4", 121e12, 24, 72, 145, 0.8,
        "NVIDIA L4 data sheet (242 TFLOP/s bf16 with sparsity)",
        _RULE,
        "Modal, May 2026: 0.80 USD (as compared by techbytes.app)",
    ),
    "t4": Gpu(
        "T4", 65e12, 16, 70, 143, 0.6,
        "NVIDIA T4 data sheet (fp16; Turing has no bf16)",
        _RULE,
        "Modal, May 2026: 0.59 USD (as compared by techbytes.app)",
        has_bf16=False,
    ),
    "v100-32gb": Gpu("V100-SXM2", 125e12, 32, 300, 350, 1.0, _V100, _RULE, _V100_PRICE, has_bf16=False),
    "v100-16gb": Gpu("V100-SXM2", 125e12, 16, 300, 350, 1.0, _V100, _RULE, _V100_PRICE, has_bf16=False),
}  # fmt: skip

_ALSO = {"a100": "a100-80gb", "v100": "v100-16gb"}


def get_gpu(name: str) -> tuple[str, Gpu]:
    """Return the key and the record of a GPU; capitals, spaces and hyphens do not matter, and a100 has 80 GB.

    Raises:
        InputError: there is none of that name.
    """

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    known = {plain(key): key for key in GPUS} | {plain(short): key for short, key in _ALSO.items()}
    wanted = plain(name).removeprefix("nvidia").removeprefix("geforce")
    if wanted not in known:
        near = near_name(wanted, known)
        raise InputError(
            f"gpu={name}: must be one of {', '.join([*GPUS, 'cpu'])}.{near} Another one needs a "
            "measured run: leave --gpu out and give --calibrate RUN, a short one made on it."
        )
    return known[wanted], GPUS[known[wanted]]


def find_gpu(device: str) -> tuple[str, Gpu] | None:
    """Return the key and the record of the GPU that a driver's device name means, or None.

    Where there are two sizes of memory, the name usually has it (`NVIDIA A100-SXM4-40GB`); else the larger is meant.
    """
    # Whole words: an L40S is no L4. A Ti, a laptop's card or the PCIe and NVL forms of an H100 have another peak.
    found = [
        (key, gpu)
        for key, gpu in GPUS.items()
        if re.search(rf"(?<![A-Za-z0-9]){gpu.device}(?![A-Za-z0-9]|[ -](?:Ti|SUPER|D|Laptop|Max-Q|PCIe|NVL)\b)", device)
    ]
    named = [(key, gpu) for key, gpu in found if f"{gpu.memory_gb:.0f}GB" in device]
    return next(iter(named or found), None)


Precision = Literal["bf16", "fp16", "fp32"]


def has_accelerator() -> bool:
    """Return whether torch sees a GPU (CUDA, ROCm, Apple or other)."""
    import torch

    return bool(torch.accelerator.is_available())


def has_pinned_memory() -> bool:
    """Return whether copies to the GPU can go on beside other work, from pinned memory; Apple's shares the CPU's."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type != "mps"


def count_usable_gpus() -> int:
    """Return how many GPUs the ranks could use; Apple's does not count, it has no collectives."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return 0 if accelerator is None or accelerator.type == "mps" else torch.accelerator.device_count()


def named_gpus(environment: Mapping[str, str], usable: int) -> tuple[list[str], dict[str, str]]:
    """Return the names of the usable GPUs for CUDA_VISIBLE_DEVICES, and the variable that orders them as those names.

    Numbers are those of nvidia-smi, in which the meter counts; CUDA's own begin with the fastest GPU.
    """
    order = {} if "CUDA_DEVICE_ORDER" in environment or not usable else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    named = environment.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(usable)], order


def computes_bf16(device: "torch.device") -> bool:
    """Return whether a device computes bf16 itself: an NVIDIA GPU from Ampere on (capability 8.0), or one of AMD's.

    A T4 or V100 takes bf16 too, but emulates it; Apple's GPU has it only on newer systems.
    """
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def answering_device() -> "torch.device":
    """Return the device on which this process asks a model without a Trainer: an NVIDIA, AMD or Apple GPU, or the CPU.

    An Apple GPU counts for a process of one rank: it has no collectives.
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    found = torch.accelerator.current_accelerator(check_available=True)
    is_apple = found is not None and found.type == "mps" and int(os.environ.get("WORLD_SIZE", "1")) == 1
    return torch.device("mps" if is_apple else "cpu")


def choose_precision() -> tuple[Precision, str]:
    """Return the training precision that suits this machine, and why."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if computes_bf16(torch.device("cuda")):
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
    return processor_name()


def processor_name() -> str:
    """Return the processor's name, or that of its kind where the system tells no more."""
    return processor_model() or platform.processor() or platform.machine()


def processor_model() -> str | None:
    """Return the model of the processor as Linux names it, or None."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or None
    return None


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


@functools.cache  # so that every caller in a process gets the same figure
def _measured_peak_flops(threads: int, device: str) -> tuple[float, str]:
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[choose_precision()[0]]
    size = 1024 if device == "cpu" else 8192  # a GPU is filled
    own = torch.Generator(device).manual_seed(0)  # leaves the process's random state as it is
    a, b = (torch.randn(size, size, generator=own, device=device, dtype=kind) for _ in range(2))
    best, count, begin, begun = float("inf"), 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < 0.3:
        start = time.perf_counter()
        torch.mm(a, b)
        wait_for_gpu()
        best, count = min(best, time.perf_counter() - start), count + 1
    # Other programs may use the processor all the time: the processor time of this process's threads excludes them.
    worked = (time.process_time() - begun) / min(threads, available_cores())
    if device == "cpu" and worked > 0:
        best = min(best, worked / count)
    name = str(kind).removeprefix("torch.")
    return 2 * size**3 / best, f"measured: {name} product of {size} x {size} matrices"


_OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|not enough memory|ALLOC_FAILED|bad_alloc"
)


_ALLOCATION = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def describe_out_of_memory(error: BaseException) -> str:
    """Return the size of the allocation that failed, or the error's own words."""
    match = _ALLOCATION.search(str(error))
    return f"no room for {match[1]}" if match else f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


def free_memory_bytes(device: "torch.device", ranks_here: int = 1) -> int:
    """Return the bytes that this process may still allocate on a device.

    A GPU is asked, and its memory is this rank's alone; Apple's is the computer's, so both are asked. A CPU's is the
    least of what the system, its containers and this process's own limit leave, shared by the ranks on this machine.
    """
    import psutil  # comes with codecarbon
    import torch

    if device.type == "cpu":
        import resource  # not on Windows, where the module must still be importable

        shared = [
            psutil.virtual_memory().available,
            *container_free_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
        ]
        own = (
            [resource.getrlimit(resource.RLIMIT_AS)[0] - virtual_memory_bytes()]
            if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
            else []
        )
        return max(0, min([min(shared) // ranks_here, *own]))
    module: Any = getattr(torch, device.type)
    if device.type == "mps":
        own = module.recommended_max_memory() - module.driver_allocated_memory()
        return max(0, min(int(own), psutil.virtual_memory().available))
    return int(module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device))


def container_free_bytes(listing: Path, mount: Path) -> Iterator[int]:
    """Yield how much each control group of this process (a container's limit) leaves; reclaimable file cache is free.

    Args:
        listing: `/proc/self/cgroup`.
        mount: where control groups are mounted.
    """
    try:
        entries = [line.strip().split(":", 2) for line in listing.read_text(encoding="ascii").splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
        top = mount / "memory" if controllers else mount
        group = top / path.lstrip("/")
        # Inside a container the path may be the host's, and the container's own group is the mount itself.
        for folder in {top, group, *(parent for parent in group.parents if top in parent.parents)}:
            limit, used, cache = (_read_figure(folder, name) for name in (*names[:2], "memory.stat " + names[2]))
            if limit is not None and used is not None:
                yield limit - used + (cache or 0)


def _read_figure(folder: Path, name: str) -> int | None:
    """Return the number in a control group's file; of `FILE KEY`, that in the line of the file that begins with KEY."""
    file, _, key = name.partition(" ")
    try:
        text = (folder / file).read_text(encoding="ascii")
    except OSError:
        return None
    if key:
        text = next((line.split()[1] for line in text.splitlines() if line.split()[0] == key), "")
    return int(text) if text.strip().isdigit() else None  # "max": no limit


def virtual_memory_bytes() -> int:
    """Return the size of this process's address space."""
    import psutil

    return int(psutil.Process().memory_info().vms)


@contextlib.contextmanager
def limited_address_space(more_bytes: int) -> Iterator[None]:
    """Let this process grow by so many bytes only: an allocation beyond is an error, instead of a kill by Linux."""
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
