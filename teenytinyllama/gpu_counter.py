"""The energy counters inside NVIDIA GPUs, read beside codecarbon to check what it adds up.

codecarbon reads the same counters where there are some, so this finds GPUs that it left out or took too many of, gaps
and errors in its sums; it says nothing of the counters themselves.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

_MILLIJOULES_PER_KWH = 3.6e9
# What hides GPUs from CUDA programs: indices, or the beginnings of UUIDs, up to the first that is none.
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"


def load_nvml() -> Any:
    """Return NVIDIA's management library, ready for use, or None where there is no NVIDIA driver."""
    try:
        nvml = importlib.import_module("pynvml")  # codecarbon depends on it
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def visible_gpus(nvml: Any) -> tuple[list[int], str]:
    """Return the indices of the GPUs that this process may use, and why they cannot be counted, if they cannot.

    codecarbon 3.3.2 cannot be given UUIDs: it strips letters off them and then finds no such GPU, and counts 0.

    Args:
        nvml: NVIDIA's management library.
    """
    uuids = [_text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)))
             for index in range(nvml.nvmlDeviceGetCount())]  # fmt: skip
    named = os.environ.get(VISIBLE_VARIABLE)
    if named is None:
        return list(range(len(uuids))), ""
    found: list[int] = []
    for name in (part.strip() for part in named.split(",")):
        if name.startswith("MIG"):
            return _gpus_of_slices(nvml, named, uuids), "a slice of a GPU (MIG) has no counter of its own"
        index = int(name) if name.isdigit() else next((i for i, uuid in enumerate(uuids) if uuid.startswith(name)), -1)
        if not name or not 0 <= index < len(uuids):
            break  # CUDA, too, sees none from here on
        found.append(index)
    return sorted(set(found)), ""


def _gpus_of_slices(nvml: Any, named: str, uuids: list[str]) -> list[int]:
    """Return the GPUs that MIG slices belong to."""
    found = set()
    for name in named.split(","):
        slice_ = nvml.nvmlDeviceGetHandleByUUID(name.strip())
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_)
        found.add(uuids.index(_text(nvml.nvmlDeviceGetUUID(whole))))
    return sorted(found)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class GpuCounter:
    """Sums what the counters of this process's GPUs went up by since `start`.

    Attributes:
        gpus: indices of the GPUs, as NVML counts them; None when they cannot be told.
        reason: why there is no sum, or no sum any more; empty while there is one.
    """

    def __init__(self, nvml: Any) -> None:
        """Find the GPUs; nothing fails here, what is wrong is kept in `reason`.

        Args:
            nvml: NVIDIA's management library, or None.
        """
        self._nvml, self.reason = nvml, ""
        self.gpus: list[int] | None = None
        self._last: list[int] = []
        self._millijoules = 0
        if nvml is None:
            self.reason = "no NVIDIA GPU"
            return
        self._guarded(self._find)

    def _find(self) -> None:
        self.gpus, self.reason = visible_gpus(self._nvml)
        if not self.gpus:
            self.reason = self.reason or f"no GPU is visible ({VISIBLE_VARIABLE})"
        elif not self.reason and any(map(self._is_sliced, self.gpus)):
            self.reason = "a GPU is cut into slices (MIG), and its counter is of the whole"

    def _is_sliced(self, index: int) -> bool:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except self._nvml.NVMLError:  # a GPU without this feature
            return False

    def start(self) -> None:
        """Take the counters as zero."""
        self._guarded(lambda: setattr(self, "_last", self._read()))

    def kwh(self) -> float | None:
        """Return the kWh since `start` over all GPUs, or None when they are not known."""
        self._guarded(self._advance)
        return None if self.reason else self._millijoules / _MILLIJOULES_PER_KWH

    def _advance(self) -> None:
        now = self._read()
        if any(new < old for new, old in zip(now, self._last, strict=True)):
            self.reason = "a counter went backwards (the driver was loaded again)"
            return
        self._millijoules += sum(now) - sum(self._last)
        self._last = now

    def _read(self) -> list[int]:
        handles = map(self._nvml.nvmlDeviceGetHandleByIndex, self.gpus or [])
        return [int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles]

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step unless one failed before: the check ends then, and the run goes on."""
        if self.reason:
            return
        try:
            step()
        except self._nvml.NVMLError as error:
            self.reason = f"a counter cannot be read ({error})"
