"""Emissions: the carbon intensity of a machine's grid, and the totals of codecarbon's files over starts and machines.

Intensities come from the tables inside codecarbon, without a network. A run has one file a machine, `emissions.csv` and
`emissions-N.csv`; a restarted run appends to them.
"""

import contextlib
import csv
import math
import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checks import ensure, near_name
from ..gpus import processor_model

# Countries for whose regions codecarbon has intensities without a network. Source: codecarbon 3.3.2, core/emissions.py,
# `get_private_infra_emissions` and `_NORDIC_REGIONS_BY_COUNTRY` (the price zones of the Nordic power market).
_NORDIC_ZONES = {"SWE": "SE", "NOR": "NO", "FIN": "FI"}
REGION_COUNTRIES = ("CAN", "CHN", *sorted(_NORDIC_ZONES), "USA")


@dataclass(kw_only=True)
class GridSettings:
    """Where the machine stands: keys in the config of every stage whose energy is measured."""

    country_iso_code: str = field(
        default="BRA", metadata={"help": "three-letter country of the machine, for the grid's carbon intensity"}
    )
    region: str | None = field(
        default=None,
        metadata={"help": f"its state, province or price zone, in {', '.join(REGION_COUNTRIES)}; null: the country's "
                          "mean"},
    )  # fmt: skip
    pue: float = field(
        default=1.0,
        metadata={"help": "what the building draws for each kWh of the machine; all energy is multiplied by it"},
    )


GRID_KEYS = frozenset(item.name for item in fields(GridSettings))


def tell_processor_model() -> None:
    """Tell codecarbon the processor's model where Linux names it.

    codecarbon asks py-cpuinfo, which finds the same words and beside them, for a second, the rate of the clock. The
    answer is kept by codecarbon's own cache of the function that asks (`core.util.detect_cpu_model` of 3.3.2).
    """
    model = processor_model()
    if model is None:
        return
    with contextlib.suppress(ImportError, AttributeError):
        import cpuinfo
        from codecarbon.core.util import detect_cpu_model

        ask = cpuinfo.get_cpu_info
        try:
            cpuinfo.get_cpu_info = lambda: {"brand_raw": model}
            detect_cpu_model()
        finally:
            cpuinfo.get_cpu_info = ask


def grid_intensity(country_iso_code: str, region: str | None = None, key: str = "country_iso_code") -> float:
    """Return the intensity of a grid in g CO2e per kWh, from the tables inside codecarbon (no network).

    Args:
        country_iso_code: three capital letters (ISO 3166).
        region: a state, province or price zone that codecarbon knows; None for the country's mean.
        key: the config key of the country, for messages.

    Raises:
        InputError: codecarbon knows no such country, or no such region of it.
    """
    from codecarbon.input import DataSource

    tables = DataSource()
    mix = tables.get_global_energy_mix_data()
    ensure(
        country_iso_code in mix,
        f"{key}={country_iso_code}: unknown country; three capital letters (ISO 3166) such as BRA or PRT."
        f"{near_name(country_iso_code, mix)}",
    )
    if region is None:
        return float(mix[country_iso_code]["carbon_intensity"])
    return _region_intensity(tables, country_iso_code, region, key)


def place(country_iso_code: str, region: str | None) -> str:
    """Return a country with its region as reports show it: `USA (california)`."""
    return f"{country_iso_code} ({region})" if region else country_iso_code


def known_regions(tables: Any, country_iso_code: str) -> list[str]:
    """Return the regions of a country that codecarbon has an intensity for, in small letters.

    Args:
        tables: codecarbon's `DataSource`.
        country_iso_code: three capital letters.
    """
    if country_iso_code == "USA":
        found = tables.get_country_emissions_data("usa")
        return sorted(name for name in found if not name.startswith("_") and name != "usa")
    if country_iso_code == "CAN":
        return sorted(tables.get_country_energy_mix_data("can"))
    if country_iso_code == "CHN":
        provinces = tables.get_china_provincial_emissions_data()["data"].values()
        return sorted(name for province in provinces for name in province["names"])
    if prefix := _NORDIC_ZONES.get(country_iso_code):
        return sorted(zone.lower() for zone in tables.get_nordic_country_energy_mix_data()["data"]
                      if zone.startswith(prefix))  # fmt: skip
    return []


def _region_intensity(tables: Any, country_iso_code: str, region: str, key: str) -> float:
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata

    known = known_regions(tables, country_iso_code)
    ensure(
        known,
        f"region={region}: {key}={country_iso_code} has one intensity only; regions are known of "
        f"{', '.join(REGION_COUNTRIES)}. Leave region out.",
    )
    ensure(
        region.lower() in known,
        f"region={region}: unknown region of {country_iso_code}; one of {', '.join(known)}."
        f"{near_name(region.lower(), known)}",
    )
    # codecarbon's own arithmetic, which the tracker uses too: some tables hold a mix of sources and no intensity.
    where = GeoMetadata(country_iso_code=country_iso_code, region=region)
    return 1000 * float(Emissions(tables).get_region_emissions(Energy.from_energy(kWh=1), where))


# `-1` and so on: of further machines. `.bak`: moved aside by codecarbon, another version of which wrote other columns.
_EMISSION_FILES = re.compile(r"emissions(-(?P<machine>\d+))?\.csv(\.bak(_\d+)?)?")


_SUMMED = ("energy_consumed", "cpu_energy", "gpu_energy", "ram_energy", "emissions", "duration")
_NEEDED = ("run_id", "country_iso_code", *_SUMMED)
_ROUNDING = 1e-9  # relative error of figures that were written as text
_LINE_FIX = (
    "Restore the file from a copy, or remove that line: rows are sums, so only the last one of a start counts, and "
    "whether it is there is checked against the ledger."
)


@dataclass(frozen=True)
class EmissionsTotal:
    """Sums over all starts and machines of a run; energy in kWh, emissions in kg CO2e.

    Attributes:
        duration_seconds: time by the clock over all starts of the first machine.
        num_starts: starts of the first machine.
        num_machines: machines that were measured.
        energy_kwh: energy of the machines times the building's factor (PUE), like that of the parts.
        machine_kwh: energy of the machines alone.
        run_kwh: `energy_kwh` of each start, by codecarbon's name of it (`run_id`).
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


def drop_torn_row(path: Path) -> None:
    """Remove an unfinished last row, which a full disk or a power cut can leave, from a file that rows are appended to.

    Otherwise the next row would be appended to the unfinished one and be lost as well.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if not whole:
        path.unlink()  # not even the first row is whole
    elif whole < len(content):
        os.truncate(path, whole)


def _row_fault(head: list[str], row: list[str], found: dict[str, str], before: dict[str, str] | None) -> str:
    """Return why a row of codecarbon's file is impossible, or an empty text.

    Args:
        head: names of the columns.
        row: the values of the row.
        found: the row by column.
        before: the row before it of the same start; the sums in it can only grow.
    """
    if row == head:
        return "is a second row of names"
    if len(row) != len(head):
        return f"has {len(row)} columns and not {len(head)}"
    if not found["run_id"]:
        return "names no start (run_id)"
    for column in (*_SUMMED, "pue"):
        text = found.get(column) or ("1" if column == "pue" else "")
        try:
            value = float(text)
        except ValueError:
            return f"has {column}={text!r}, which is no number"
        if not 0 <= value < math.inf:
            return f"has {column}={text}, which must be a finite number, 0 or above"
        if column == "pue":
            return "" if value > 0 else "has pue=0"
        if before is not None and value < float(before[column]) * (1 - _ROUNDING):
            return f"has {column}={text} after {before[column]} of the same start, and such sums never fall"
    return ""


def close_line(path: Path) -> None:
    """Append a line break if the last line has none, so that the next row stands on a line of its own."""
    if is_torn(path):
        with path.open("ab") as file:
            file.write(b"\n")


def is_torn(path: Path) -> bool:
    """Return whether the last row of a file is unfinished: it has no line break."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def emission_files(folder: Path) -> list[Path]:
    """Return codecarbon's files in a folder, those that it moved aside first."""
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
        InputError: a file is not codecarbon's, or has an impossible row; the message names file and line.
    """
    last: dict[str, dict[str, str]] = {}
    machines: dict[str, int] = {}
    for file in emission_files(path.parent):
        content = file.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()  # another machine may be writing the last row just now
        head: list[str] = []
        for number, line in enumerate(lines, start=1):
            row = next(csv.reader([line.decode(errors="replace")]), [])
            if not row:
                continue
            if not head:
                head = row
                lacking = ", ".join(name for name in _NEEDED if name not in head)
                ensure(not lacking, f"{file}: not a codecarbon file: has no column {lacking}. Move it away.")
                continue
            found = dict(zip(head, row, strict=False))
            name = found["run_id"]
            fault = _row_fault(head, row, found, last.get(name))
            ensure(not fault, f"{file}: line {number} {fault}. {_LINE_FIX}")
            last[name], machines[name] = found, _machine_of(file)
    return _total(last, machines) if last else None


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
