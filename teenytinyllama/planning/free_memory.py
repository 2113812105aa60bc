"""Free memory: how many bytes a process may still allocate on a CPU or a GPU, and a limit on what it allocates."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import torch


def free_memory_bytes(device: "torch.device", ranks_here: int = 1) -> int:
    """Return the bytes that this process may still allocate on a device.

    A GPU is asked, and its memory is this rank's alone; Apple's is the computer's, so both are asked. A CPU's is the
    least of what the system, its containers and this process's own limit leave, shared by the ranks on this machine.
    """
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
