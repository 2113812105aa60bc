"""The computer: its versions and hardware for a bug report, without names of people and places; and the network.

What is measured between ranks runs in the ranks themselves (`measure_network`), which the launcher starts.
"""

import contextlib
import getpass
import json
import os
import platform
import re
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..checks import available_cores, counted, format_bytes, free_disk_bytes
from ..distributed import exit_rank, leave_ranks, prepare_rank
from ..energy.meter import load_nvml
from ..gpus import device_name
from ..planning.free_memory import free_memory_bytes
from ..stage_folder import __version__, package_commit, utc_now, versions
from .findings import Diagnosis, State

# Libraries that decide what a run does, beside those of every manifest.
_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "deepspeed", "trl", "peft", "datasets", "datatrove",
              "huggingface_hub", "safetensors", "numpy", "pyarrow", "codecarbon", "matplotlib", "gradio", "lm_eval",
              "triton", "flash_attn", "liger_kernel")  # fmt: skip
# Variables that change how a run computes and hold no secret.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "NCCL_P2P_DISABLE",
              "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # fmt: skip


def machine_report() -> list[str]:
    """Return versions and hardware as lines to paste into a bug report: no path, no name of a person or computer."""
    import psutil
    import torch

    installed = versions(_LIBRARIES)
    source = f"commit {package_commit()}" if package_commit() else "installed"
    memory = psutil.virtual_memory()
    free = free_memory_bytes(torch.device("cpu"))
    lines = {
        "version": f"teenytinyllama {__version__} ({source}), python {installed.pop('python')}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "libraries": ", ".join(f"{name} {version}" for name, version in installed.items()),
        "torch": f"CUDA {torch.version.cuda or 'none'}, ROCm {torch.version.hip or 'none'}, "
        f"{counted(torch.get_num_threads(), 'thread')}",
        **_gpus(),
        "processor": f"{_processor()}, {available_cores()} of {counted(os.cpu_count() or 1, 'core')} usable",
        "memory": f"{format_bytes(memory.total)}, {format_bytes(free)} of them free for a process",
        "disk": f"{format_bytes(free_disk_bytes(Path.cwd()))} free in this folder, "
        f"{format_bytes(free_disk_bytes(tempfile.gettempdir()))} in that for temporary files",
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "none",
        "time": utc_now(),
    }
    return [scrub(f"{name:10} {text}") for name, text in lines.items()]


def _processor() -> str:
    import torch

    if not torch.cuda.is_available():
        return device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> dict[str, str]:
    """Return a line for each GPU by its name, and one for the driver."""
    import torch

    if not torch.cuda.is_available():
        other = torch.accelerator.current_accelerator(check_available=True)
        return {"GPU": f"none{f' of CUDA; torch sees {other.type}' if other else ''}"}
    found = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"GPU {index}"] = (
            f"{torch.cuda.get_device_name(index)}, {format_bytes(total)}, {format_bytes(free)} of them free"
        )
    nvml = load_nvml()
    if nvml is not None:
        driver = nvml.nvmlSystemGetDriverVersion()
        found["driver"] = driver.decode() if isinstance(driver, bytes) else str(driver)
    return found


def scrub(text: str) -> str:
    """Return a text without the path of the home folder, the user's name and the computer's name.

    A user's name is left out where it is a part of a path, and where it is long enough to be no word by chance.
    """
    home, host = str(Path.home()), platform.node()
    names = {os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), Path(home).name}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        names.add(getpass.getuser())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", "USER", text)
        if len(name) >= 5:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", "USER", text)
    for name in sorted({host, host.partition(".")[0]} - {"", "localhost"}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "HOST", text)
    return text


NETWORK_SECONDS = 60
_ROUNDS = 5
_REDUCED_BYTES = {"cuda": 256_000_000, "cpu": 16_000_000}
_SLOW_NETWORK = 0.1e9  # bytes a second: a line of 1 Gbit/s, over which gradients take longer than the step
# What a rank runs: `python -c RANK_PROGRAM FILE DEVICE`.
RANK_PROGRAM = "import sys; from teenytinyllama.doctor.host import measure_network; measure_network(*sys.argv[1:])"


def measure_network(path: str, device_type: str) -> None:
    """Add up numbers over all ranks a few times, write how long it took into a file, and end this process.

    Args:
        path: of the JSON file that rank 0 writes.
        device_type: cuda: over NCCL; cpu: over gloo.

    Raises:
        RuntimeError: a rank did not answer within a minute.
    """
    prepare_rank()
    import torch
    from torch import distributed

    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if device_type == "cuda" else "cpu")
    if device_type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device_type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=NETWORK_SECONDS))

    def seconds(num_bytes: int) -> float:
        tensor = torch.ones(num_bytes // 4, device=device)
        distributed.all_reduce(tensor)  # connects
        best = float("inf")
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            distributed.all_reduce(tensor)
            float(tensor[0])  # waits for the GPU
            best = min(best, time.perf_counter() - start)
        return best

    size = _REDUCED_BYTES[device_type]
    found = {"backend": backend, "bytes": size, "seconds": seconds(size), "latency_seconds": seconds(4)}
    if distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(found), encoding="utf-8")
    leave_ranks()
    exit_rank(0)


def network_command(path: Path, device_type: str) -> list[str]:
    """Return the command of a rank that measures the network."""
    return [sys.executable, "-c", RANK_PROGRAM, str(path), device_type]


def judge_network(found: dict[str, Any] | None, num_ranks: int, gradient_bytes: int, log: str) -> Diagnosis:
    """Return what the times of all-reduces mean for a training.

    The bandwidth is that of each rank's line: all-reduces by a ring send 2 (n - 1) / n of the bytes over it.

    Args:
        found: what rank 0 has written; None: the ranks did not come together.
        num_ranks: that took part.
        gradient_bytes: that a step adds up over the ranks; 0: not known.
        log: what the ranks said.
    """
    if found is None:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "they said nothing")
        return Diagnosis(
            "network", "stop", f"{num_ranks} ranks could not add up numbers within {NETWORK_SECONDS} s: {last[:200]}",
            "Is a firewall between them, or another interface needed (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)?",
        )  # fmt: skip
    bandwidth = 2 * (num_ranks - 1) / num_ranks * found["bytes"] / found["seconds"]
    text = (
        f"{num_ranks} ranks over {found['backend']}: {format_bytes(round(bandwidth))}/s, "
        f"{1000 * found['latency_seconds']:.2f} ms at least"
    )
    if gradient_bytes:
        seconds = gradient_bytes / found["bytes"] * found["seconds"]
        text += f"; the gradients of a step, {format_bytes(gradient_bytes)}, take {seconds:.3g} s"
    state: State = "warning" if bandwidth < _SLOW_NETWORK else "ok"
    fix = "" if state == "ok" else "Use ranks of one machine or a faster line, or more tokens a step"
    return Diagnosis("network", state, text, fix)
