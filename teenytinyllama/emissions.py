"""Energy and carbon of a run: one offline codecarbon tracker per machine, its file, and its totals over restarts."""

import csv
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import InputError, ensure, near_name

EMISSIONS_NAME = "emissions.csv"
_MEASURE_SECONDS = 15  # codecarbon's own default interval


@dataclass(frozen=True)
class EmissionsTotal:
    """Sums over all starts of a run; energy in kWh, emissions in kg CO2e, time in seconds."""

    energy_kwh: float
    cpu_kwh: float
    gpu_kwh: float
    ram_kwh: float
    emissions_kg: float
    duration_seconds: float
    num_starts: int
    country_iso_code: str


@dataclass(frozen=True)
class EnergyReading:
    """Sums since one start of the meter; energy in kWh, emissions in kg CO2e, time in seconds."""

    energy_kwh: float
    cpu_kwh: float
    gpu_kwh: float
    ram_kwh: float
    emissions_kg: float
    seconds: float


def read_emissions(path: Path) -> EmissionsTotal | None:
    """Return the totals of an `emissions.csv`, or None when there is no file or no row.

    codecarbon's figures are cumulative within a `run_id` (one start of the tracker) and every flush appends a row, so
    the last row of each run_id counts and the run_ids are added.

    Raises:
        InputError: the file is not codecarbon's.
    """
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        last = {row.get("run_id"): row for row in csv.DictReader(file)}
    if not last:
        return None

    def total(column: str) -> float:
        return sum(float(row[column]) for row in last.values())

    try:
        return EmissionsTotal(
            energy_kwh=total("energy_consumed"),
            cpu_kwh=total("cpu_energy"),
            gpu_kwh=total("gpu_energy"),
            ram_kwh=total("ram_energy"),
            emissions_kg=total("emissions"),
            duration_seconds=total("duration"),
            num_starts=len(last),
            country_iso_code=", ".join(sorted({row["country_iso_code"] for row in last.values()})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a codecarbon file ({error!r}). Move it away; the run writes its own.") from error


def grid_intensity(country_iso_code: str, key: str = "country_iso_code") -> float:
    """Return a country's grid intensity in g CO2e per kWh, from the tables inside codecarbon (no network).

    Args:
        country_iso_code: three capital letters (ISO 3166).
        key: what the config calls the country.

    Raises:
        InputError: codecarbon knows no such country.
    """
    from codecarbon.input import DataSource

    mix = DataSource().get_global_energy_mix_data()
    ensure(
        country_iso_code in mix,
        f"{key}={country_iso_code}: unknown country; three capital letters (ISO 3166) such as BRA or PRT."
        f"{near_name(country_iso_code, mix)}",
    )
    return float(mix[country_iso_code]["carbon_intensity"])


class EnergyMeter:
    """An offline codecarbon tracker that appends to a folder's `emissions.csv`. Start one per machine, not per rank."""

    def __init__(self, folder: Path, country_iso_code: str) -> None:
        """Measure this machine's CPU, GPUs and memory from `start()` on."""
        import os

        from codecarbon import OfflineEmissionsTracker
        from codecarbon.output import OutputMethod

        self.path = folder / EMISSIONS_NAME
        logging.getLogger("codecarbon").setLevel(logging.ERROR)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._tracker: Any = OfflineEmissionsTracker(
            project_name=folder.name or "run",
            country_iso_code=country_iso_code,
            output_dir=str(folder),
            output_file=EMISSIONS_NAME,
            output_methods=[OutputMethod.CSV],  # whatever a user's own codecarbon config says: no network here
            gpu_ids=visible.split(",") if visible else None,
            measure_power_secs=_MEASURE_SECONDS,
            log_level="error",
        )

    def start(self) -> None:
        """Begin measuring."""
        self._tracker.start()

    def flush(self) -> tuple[float, float]:
        """Append a row with the energy so far; return (kWh, kg CO2e) over all starts of the run."""
        self._tracker.flush()
        return self._totals()

    def stop(self) -> tuple[float, float]:
        """Append the last row and stop measuring; return (kWh, kg CO2e) over all starts of the run."""
        self._tracker.stop()
        return self._totals()

    def reading(self) -> EnergyReading:
        """Return the sums of this start as last written."""
        run_id = str(self._tracker.run_id)
        with self.path.open(newline="", encoding="utf-8") as file:
            row = [row for row in csv.DictReader(file) if row["run_id"] == run_id][-1]
        columns = ("energy_consumed", "cpu_energy", "gpu_energy", "ram_energy", "emissions", "duration")
        return EnergyReading(*(float(row[column]) for column in columns))

    def methods(self) -> list[str]:
        """Return what is measured and how, as codecarbon calls it: `GPU(...)`, `CPU(Intel RAPL)`, `RAM()`."""
        found = getattr(self._tracker, "_conf", {}).get("hardware", [])  # it has no public name for this
        return [str(name) for name in found]

    def warnings(self) -> list[str]:
        """Return what the figures leave out or guess on this machine."""
        torch = sys.modules.get("torch")  # a stage without it uses no GPU
        methods = " ".join(self.methods())
        found = []
        if torch is not None and torch.cuda.is_available() and "GPU" not in methods:
            found.append("the GPU's energy is missing: its counters cannot be read (NVML), so it counts as 0")
        if "RAPL" not in methods and "Power Gadget" not in methods:
            found.append("the processor's energy is estimated from its load, not measured: it has no readable counter")
        found.append("the memory's energy is a model of its size, not a measurement")
        return found

    def _totals(self) -> tuple[float, float]:
        # The tracker keeps its figures private until it stops; the file it has just written does not.
        total = read_emissions(self.path)
        return (total.energy_kwh, total.emissions_kg) if total else (0.0, 0.0)
