"""Measuring: one offline codecarbon tracker per machine, and the GPUs' own counters beside it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import RunFailedError
from .emissions import EMISSIONS_NAME, EmissionRows, drop_torn_row
from .gpu_counter import GpuCounter, load_nvml
from .grid import GridSettings, check_pue, grid_intensity
from .tracker import Neighbours, ignored_settings, make_tracker

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
    """Check what energy is measured by; call it before any work.

    Raises:
        InputError: an unknown country or region, a PUE below 1, or a codecarbon configuration that cannot be read.
    """
    grid_intensity(grid.country_iso_code, grid.region)
    check_pue(grid.pue)
    ignored_settings()


class EnergyMeter:
    """An offline codecarbon tracker that appends to a folder's `emissions.csv`. Start one per machine, not per rank."""

    def __init__(self, folder: Path, grid: GridSettings, machine: int = 0, nvml: Any = None) -> None:
        """Measure this machine's CPU, GPUs and memory from `start()` on.

        Args:
            folder: exists.
            grid: where the machine stands.
            machine: its number; each has a file of its own.
            nvml: NVIDIA's management library; by default the installed one, where there is a driver.
        """
        self.path = folder / (EMISSIONS_NAME if machine == 0 else f"emissions-{machine}.csv")
        drop_torn_row(self.path)
        self._pue = grid.pue
        self._counter = GpuCounter(load_nvml() if nvml is None else nvml)
        self._rows = EmissionRows(folder)
        self._neighbours = Neighbours()
        self._ignored = ignored_settings()
        # Given an empty list, codecarbon would take all GPUs; a name that is no GPU's gives it none.
        gpu_ids = ["none"] if self._counter.gpus == [] else self._counter.gpus
        self._tracker = make_tracker(folder, self.path.name, grid, gpu_ids)

    def start(self) -> None:
        """Begin measuring."""
        self._tracker.start()
        self._counter.start()

    def flush(self) -> tuple[float, float]:
        """Append a row with the energy so far; return (kWh, kg CO2e) over all starts of the run.

        Raises:
            RunFailedError: codecarbon wrote nothing.
        """
        self._tracker.flush()
        return self._totals()

    def stop(self) -> tuple[float, float]:
        """Append the last row and stop measuring; return (kWh, kg CO2e) over all starts of the run.

        Raises:
            RunFailedError: codecarbon wrote nothing.
        """
        self._tracker.stop()
        self._neighbours.leave()
        return self._totals()

    def reading(self) -> EnergyReading:
        """Return the sums of this start as last written."""
        row = self._rows.last[str(self._tracker.run_id)]
        kwh, cpu, gpu, ram, kg, seconds = (float(row[column]) for column in _COLUMNS)
        counted = self._counter.kwh()
        return EnergyReading(kwh, cpu, gpu, ram, kg, seconds, None if counted is None else self._pue * counted)

    def others(self) -> int:
        """Return how many other measurements of ours run on this machine now."""
        return self._neighbours.count()

    def about(self) -> dict[str, Any]:
        """Return what the meter says of itself once it has started: how it measures, and what is missing."""
        return {
            "methods": self.methods(),
            "warnings": self.warnings(),
            "counter_reason": self.counter_reason,
            "run_id": str(getattr(self._tracker, "run_id", "")),
        }

    @property
    def counter_reason(self) -> str:
        """Return why the GPUs' own counters are not read beside codecarbon's figures; empty where they are."""
        return self._counter.reason

    def methods(self) -> list[str]:
        """Return what is measured and how, as codecarbon calls it: `GPU(...)`, `CPU(Intel RAPL)`, `RAM()`."""
        found = getattr(self._tracker, "_conf", {}).get("hardware", [])  # it has no public name for this
        return [str(name) for name in found]

    def warnings(self) -> list[str]:
        """Return what the figures leave out or guess on this machine."""
        torch = sys.modules.get("torch")  # a stage without it uses no GPU
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
        """Return those warnings that come from what else there is on the machine, which its user can change."""
        found = []
        if self._ignored:
            found.append(f"a codecarbon configuration is there and not used: {', '.join(self._ignored)}")
        if self._neighbours.foreign():
            found.append("codecarbon's lock file says that another tracker runs here, or was killed: what both count "
                         "is in both")  # fmt: skip
        return found

    def _totals(self) -> tuple[float, float]:
        # The tracker keeps its figures private until it stops; the file it has just written does not.
        name = str(getattr(self._tracker, "run_id", ""))
        before = self._rows.num_rows.get(name, 0)
        self._rows.update()
        if self._rows.num_rows.get(name, 0) <= before:
            raise RunFailedError(
                f"{self.path}: codecarbon wrote no row, so this energy would count as 0. The disk may be full, or the "
                "folder gone."
            )
        total = self._rows.total(strict=False)  # whoever reads the account refuses what an earlier start left damaged
        assert total is not None
        return total.energy_kwh, total.emissions_kg
