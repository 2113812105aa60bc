"""Energy and carbon of a run as codecarbon's files have them: the totals over restarts and machines."""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .checks import InputError

EMISSIONS_NAME = "emissions.csv"
# Also those of further machines, and what codecarbon moved aside because another version of it writes other columns.
_EMISSION_FILES = re.compile(r"emissions(-(?P<machine>\d+))?\.csv(\.bak(_\d+)?)?")


@dataclass(frozen=True)
class EmissionsTotal:
    """Sums over all starts and machines of a run; energy in kWh, emissions in kg CO2e.

    Attributes:
        duration_seconds: by the clock: of the first machine, over its starts.
        num_starts: of the first machine.
        num_machines: that were measured.
        energy_kwh: of the machines and the building's share (PUE); so are those of the parts.
        machine_kwh: of the machines alone.
        run_kwh: `energy_kwh` by codecarbon's name of the start.
    """

    energy_kwh: float
    cpu_kwh: float
    gpu_kwh: float
    ram_kwh: float
    emissions_kg: float
    duration_seconds: float
    num_starts: int
    num_machines: int
    country_iso_code: str
    region: str
    machine_kwh: float
    run_kwh: dict[str, float]

    @property
    def pue(self) -> float:
        """Return what the building drew for each kWh of the machines."""
        return self.energy_kwh / self.machine_kwh if self.machine_kwh else 1.0


class EmissionRows:
    """The last row of each start in a folder's emission files; `update` reads only what was appended since.

    A row comes every half minute: read as a whole each time, the file of a month would cost a percent of the run.
    """

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self.folder = folder
        self.last: dict[str, dict[str, str]] = {}
        self.num_rows: dict[str, int] = {}
        self._machines: dict[str, int] = {}  # by run_id
        self._heads: dict[Path, list[str]] = {}
        self._offsets: dict[Path, int] = {}

    def update(self) -> None:
        """Read the rows that are new."""
        for path in emission_files(self.folder):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]  # another machine may be writing the rest
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            rows = list(csv.reader(whole.decode(errors="replace").splitlines()))
            if rows and path not in self._heads:
                self._heads[path] = rows.pop(0)
            for row in rows:
                found = dict(zip(self._heads[path], row, strict=False))
                name = found.get("run_id", "")
                self.last[name] = found
                self._machines[name] = _machine_of(path)
                self.num_rows[name] = self.num_rows.get(name, 0) + 1

    def total(self) -> EmissionsTotal | None:
        """Return the sums of the last rows, or None when there is no row.

        Raises:
            InputError: the file is not codecarbon's.
        """
        if not self.last:
            return None
        try:
            return _total(self.last, self._machines)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.folder / EMISSIONS_NAME}: not a codecarbon file ({error!r}). Move it away; the run writes its "
                "own."
            ) from error


def drop_torn_row(path: Path) -> None:
    """Cut a file that rows are appended to back to its last whole row: a full disk or a power cut can tear one.

    Appended behind it, the next row would be lost as well and the file damaged.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if not whole:
        path.unlink()  # not even the first row: what is written next begins the file
    elif whole < len(content):
        os.truncate(path, whole)


def emission_files(folder: Path) -> list[Path]:
    """Return codecarbon's files in a folder, the older first."""
    found = [path for path in folder.glob("emissions*") if _EMISSION_FILES.fullmatch(path.name)]
    return sorted(found, key=lambda path: (".bak" not in path.name, path.name))


def _machine_of(path: Path) -> int:
    found = _EMISSION_FILES.fullmatch(path.name)
    return int(found["machine"] or 0) if found else 0


def read_emissions(path: Path) -> EmissionsTotal | None:
    """Return the totals of an `emissions.csv` and those beside it, or None when there is no file or no row.

    codecarbon's figures are cumulative within a `run_id` (one start of the tracker) and every flush appends a row, so
    the last row of each run_id counts and the run_ids are added.

    Raises:
        InputError: the file is not codecarbon's.
    """
    rows = EmissionRows(path.parent)
    rows.update()
    return rows.total()


def _total(last: dict[str, dict[str, str]], machines: dict[str, int]) -> EmissionsTotal:
    rows = list(last.values())
    first = [row for name, row in last.items() if machines[name] == min(machines.values())]

    def total(column: str) -> float:
        return sum(float(row[column]) for row in rows)

    return EmissionsTotal(
        energy_kwh=total("energy_consumed"),
        cpu_kwh=total("cpu_energy"),
        gpu_kwh=total("gpu_energy"),
        ram_kwh=total("ram_energy"),
        emissions_kg=total("emissions"),
        duration_seconds=sum(float(row["duration"]) for row in first),
        num_starts=len(first),
        num_machines=len(set(machines.values())),
        country_iso_code=", ".join(sorted({row["country_iso_code"] for row in rows})),
        region=", ".join(sorted({row.get("region", "") for row in rows} - {""})),
        machine_kwh=sum(float(row["energy_consumed"]) / float(row.get("pue") or 1) for row in rows),
        run_kwh={row["run_id"]: float(row["energy_consumed"]) for row in rows},
    )
