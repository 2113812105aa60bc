"""The energy meter: one offline codecarbon tracker per machine, checked against the GPUs' own energy counters.

Every setting of codecarbon is given here, because it reads settings that it is not given from `~/.codecarbon.config`,
`./.codecarbon.config` and variables CODECARBON_*. Such a file can send figures over the network (`emissions_endpoint`,
an Electricity Maps token), change them (`pue`, `force_cpu_power`), make a second tracker measure nothing and say so in
a log only (`allow_multiple_runs=false`), or take over the signals of the process (the same key).

The energy counters inside NVIDIA GPUs are the one cross-check. codecarbon reads the same counters where there are some,
so the check finds GPUs that codecarbon left out or counted too many of, gaps, and errors in its sums. It says nothing
about the accuracy of the counters.
"""

import configparser
import contextlib
import csv
import importlib
import inspect
import logging
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..checks import InputError, RunFailedError, ensure
from ..stage_folder import EMISSIONS_NAME
from .emissions import GridSettings, drop_torn_row, grid_intensity, tell_processor_model

_MEASURE_SECONDS = 15  # codecarbon's own default interval


def make_tracker(folder: Path, file_name: str, grid: GridSettings, gpu_ids: list[Any] | None) -> Any:
    """Return a tracker of codecarbon, not started, that appends its rows to a CSV file.

    Args:
        folder: the folder of the file, which exists.
        file_name: name of the file.
        grid: where the machine stands.
        gpu_ids: GPUs whose energy counts, as codecarbon names them; None for all that it finds.
    """
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output import OutputMethod

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    # codecarbon 3.3 keeps the hardware that the first tracker of a process found. The next tracker takes an empty list
    # of GPUs in it for "all GPUs".
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("codecarbon.core.hardware_cache").clear_cache()
    tell_processor_model()
    ours = {
        "project_name": folder.name or "run",
        "country_iso_code": grid.country_iso_code,
        "region": grid.region,
        "pue": grid.pue,
        "output_dir": str(folder),
        "output_file": file_name,
        "output_methods": [OutputMethod.CSV],
        "output_handlers": [],  # the tracker fills it
        "gpu_ids": gpu_ids,
        "measure_power_secs": _MEASURE_SECONDS,
        "log_level": "error",
    }
    # With an argument that it does not know, another version of codecarbon would fail to start without a message.
    bases = [base for base in OfflineEmissionsTracker.__mro__ if base is not object]
    known = {name for base in bases for name in inspect.signature(base).parameters}
    return OfflineEmissionsTracker(**{name: value for name, value in {**NEUTRAL, **ours}.items() if name in known})


# Every other argument of codecarbon 3.3.2's tracker, at its default or without effect. Tokens are empty texts: for None
# codecarbon looks for a token under an older name (`_configure_electricitymaps_token`).
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("cloud_provider", "cloud_region", "country_2letter_iso_code", "force_carbon_intensity_g_co2e_kwh",
                     "emissions_endpoint", "force_cpu_power", "force_ram_power", "logging_logger", "metadata")),
    **dict.fromkeys(("api_endpoint", "api_key", "electricitymaps_api_token", "prometheus_url", "logger_preamble"), ""),
    **dict.fromkeys(("force_mode_cpu_load", "rapl_include_dram", "rapl_prefer_psys"), False),
    "allow_multiple_runs": True,
    "api_call_interval": -1,
    "experiment_id": "",
    "experiment_name": "",
    "on_csv_write": "append",
    "tracking_mode": "machine",
    "wue": 0.0,
}  # fmt: skip


def ignored_settings() -> list[str]:
    """Return the keys, never the values, of the user's own codecarbon configuration, none of which is used here.

    Raises:
        InputError: a file cannot be read; codecarbon would fail to start without a message.
    """
    from codecarbon.core.config import get_hierarchical_config

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    try:
        return sorted(get_hierarchical_config())
    except (configparser.Error, OSError, UnicodeDecodeError) as error:  # the error's text may hold a token
        raise InputError(
            f".codecarbon.config: cannot be read ({type(error).__name__}), in the home folder or here. Mend or delete "
            "it; nothing in it is used here."
        ) from None


class Neighbours:
    """Counts the other meters of this user on this machine; each meter locks a file of its own while it measures.

    Trackers outside this package lock no such file; codecarbon's own lock file says at most that there is one.
    """

    def __init__(self) -> None:
        """Lock a file for this meter, in the system's folder for temporary files."""
        self._folder = Path(tempfile.gettempdir()) / f"teenytinyllama-meters-{getattr(os, 'getuid', lambda: 0)()}"
        self._own: FileLock | None = None
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._is_ours():
            handle, name = tempfile.mkstemp(suffix=".lock", dir=self._folder)
            os.close(handle)
            self._own = FileLock(name)
            self._own.acquire()

    def _is_ours(self) -> bool:
        """Return whether this user made the folder; another user could have made it as a trap."""
        state = self._folder.lstat()
        return not self._folder.is_symlink() and (not hasattr(os, "getuid") or state.st_uid == os.getuid())

    def count(self) -> int:
        """Return how many other meters measure now; files that killed processes have left are deleted."""
        if self._own is None:
            return 0
        others = 0
        for path in self._folder.glob("*.lock"):
            if str(path) == self._own.lock_file:
                continue
            lock = FileLock(path)
            try:
                with lock.acquire(timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                others += 1
        return others

    def leave(self) -> None:
        """Delete the file of this meter and release its lock."""
        if self._own is not None:
            Path(self._own.lock_file).unlink(missing_ok=True)
            self._own.release()
            self._own = None

    @staticmethod
    def foreign() -> bool:
        """Return whether codecarbon's lock file says that a tracker outside this package runs, or was killed."""
        from codecarbon.lock import LOCKFILE

        return Path(LOCKFILE).exists()


_MILLIJOULES_PER_KWH = 3.6e9
# The variable that limits CUDA programs to some GPUs: indices or beginnings of UUIDs, up to the first invalid one.
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
    """Return the indices of the GPUs that this process may use, and why their counters cannot be used, or "".

    codecarbon cannot read UUIDs in the variable: version 3.3.2 strips letters off them, finds no such GPU and counts 0.

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
            break  # CUDA ignores all GPUs from the first invalid one on
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
    """The energy of this process's GPUs since `start`, by the counters inside the GPUs.

    Attributes:
        gpus: NVML's indices of the GPUs; None when they are not known.
        reason: why the energy is not known, or not any more; an empty text while it is known.
    """

    def __init__(self, nvml: Any) -> None:
        """Find the GPUs; an error is kept in `reason` and not raised.

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
        """Begin: the energy is counted from now on."""
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
        """Call `step` unless an earlier step failed; an error of NVML ends this cross-check and not the run."""
        if self.reason:
            return
        try:
            step()
        except self._nvml.NVMLError as error:
            self.reason = f"a counter cannot be read ({error})"


_TAIL_BYTES = 65_536  # of codecarbon's file: more than a row, which has about 700
_COLUMNS = ("energy_consumed", "cpu_energy", "gpu_energy", "ram_energy", "emissions", "duration")


@dataclass(frozen=True)
class EnergyReading:
    """Sums since one start of the meter; energy in kWh, emissions in kg CO2e, time in seconds.

    Attributes:
        gpu_counter_kwh: what the GPUs' own counters say instead of `gpu_kwh`, with the same PUE; None: not known.
    """

    energy_kwh: float
    cpu_kwh: float
    gpu_kwh: float
    ram_kwh: float
    emissions_kg: float
    seconds: float
    gpu_counter_kwh: float | None = None


def check_energy(grid: GridSettings) -> None:
    """Check the settings and the configuration that energy is measured by, before any work.

    Raises:
        InputError: an unknown country or region, a PUE (energy of the building over energy of its machines) below 1, or
            a codecarbon configuration that cannot be read.
    """
    grid_intensity(grid.country_iso_code, grid.region)
    ensure(
        math.isfinite(grid.pue) and grid.pue >= 1,
        f"pue={grid.pue}: a building draws at least what its machines do. Give 1 (the machine alone) or more, such as "
        "1.2.",
    )
    ignored_settings()


class EnergyMeter:
    """An offline codecarbon tracker that appends to a folder's `emissions.csv`. Start one per machine, not per rank."""

    def __init__(self, folder: Path, grid: GridSettings, machine: int = 0, nvml: Any = None) -> None:
        """Measure this machine's CPU, GPUs and memory from `start()` on.

        Args:
            folder: exists.
            grid: where the machine stands.
            machine: number of the machine; each machine writes a file of its own.
            nvml: NVIDIA's management library; by default the installed one, where there is a driver.
        """
        self.path = folder / (EMISSIONS_NAME if machine == 0 else f"emissions-{machine}.csv")
        drop_torn_row(self.path)
        self._pue = grid.pue
        self._counter = GpuCounter(load_nvml() if nvml is None else nvml)
        self._line, self._row = b"", dict[str, str]()  # the row that codecarbon appended last
        self._neighbours = Neighbours()
        self._ignored = ignored_settings()
        # codecarbon takes an empty list for all GPUs; with a name that no GPU has it counts none.
        gpu_ids = ["none"] if self._counter.gpus == [] else self._counter.gpus
        self._tracker = make_tracker(folder, self.path.name, grid, gpu_ids)

    def start(self) -> None:
        """Begin measuring."""
        self._tracker.start()
        self._counter.start()

    def flush(self) -> None:
        """Append a row with the energy so far.

        Raises:
            RunFailedError: codecarbon wrote nothing.
        """
        self._tracker.flush()
        self._read_row()

    def stop(self) -> None:
        """Append the last row and stop measuring.

        Raises:
            RunFailedError: codecarbon wrote nothing.
        """
        self._tracker.stop()
        self._neighbours.leave()
        self._read_row()

    def reading(self) -> EnergyReading:
        """Return the sums of this start, as in the row that was written last."""
        kwh, cpu, gpu, ram, kg, seconds = (float(self._row[column]) for column in _COLUMNS)
        counted = self._counter.kwh()
        return EnergyReading(kwh, cpu, gpu, ram, kg, seconds, None if counted is None else self._pue * counted)

    def others(self) -> int:
        """Return how many other meters of this package measure on this machine now."""
        return self._neighbours.count()

    def about(self) -> dict[str, Any]:
        """Return how the started meter measures and what its figures leave out, for the ledger."""
        return {
            "methods": self.methods(),
            "warnings": self.warnings(),
            "counter_reason": self.counter_reason,
            "run_id": str(getattr(self._tracker, "run_id", "")),
        }

    @property
    def counter_reason(self) -> str:
        """Return why codecarbon's figures are not checked by the GPUs' counters; an empty text where they are."""
        return self._counter.reason

    def methods(self) -> list[str]:
        """Return what is measured and how, as codecarbon calls it: `GPU(...)`, `CPU(Intel RAPL)`, `RAM()`."""
        found = getattr(self._tracker, "_conf", {}).get("hardware", [])  # codecarbon has no public name for it
        return [str(name) for name in found]

    def warnings(self) -> list[str]:
        """Return what codecarbon's figures leave out or estimate on this machine."""
        torch = sys.modules.get("torch")  # a stage that has not loaded torch uses no GPU
        methods = " ".join(self.methods())
        found = []
        if (
            torch is not None
            and torch.accelerator.is_available()
            and ("GPU" not in methods or self._counter.gpus == [])
        ):
            found.append("the GPU's energy is missing: its counters cannot be read, so it counts as 0")
        if "MIG" in self._counter.reason:
            found.append("the energy of whole GPUs is counted, also of slices (MIG) that others use")
        if "RAPL" not in methods and "Power Gadget" not in methods:
            found.append("the processor's energy is estimated from its load, not measured: it has no readable counter")
        found.append("the memory's energy is a model of its size, not a measurement")
        return [*found, *self.alerts()]

    def alerts(self) -> list[str]:
        """Return the warnings about other programs and settings of this machine, which its user can change."""
        found = []
        if self._ignored:
            found.append(f"a codecarbon configuration is there and not used: {', '.join(self._ignored)}")
        if self._neighbours.foreign():
            found.append("codecarbon's lock file says that another tracker runs here, or was killed: what both count "
                         "is in both")  # fmt: skip
        return found

    def _read_row(self) -> None:
        """Read the row that codecarbon has just appended; it has no public name for these figures before it stops.

        Raises:
            RunFailedError: the last row of the file is not a new one of this start.
        """
        head = line = b""
        if self.path.is_file():
            with self.path.open("rb") as file:
                head = file.readline()
                file.seek(max(len(head), self.path.stat().st_size - _TAIL_BYTES))  # a run of a month has many rows
                line = (file.read().splitlines() or [b""])[-1]
        names, values = csv.reader([text.decode(errors="replace") for text in (head, line)])
        found = dict(zip(names, values, strict=False))
        if line == self._line or found.get("run_id") != str(getattr(self._tracker, "run_id", "")):
            raise RunFailedError(
                f"{self.path}: codecarbon wrote no row, so this energy would count as 0. The disk may be full, or the "
                "folder gone."
            )
        self._line, self._row = line, found
