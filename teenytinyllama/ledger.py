"""The ledger of a run's energy: append-only, never rewound, so that repeated work is paid for and seen.

After a kill a run goes back to its last checkpoint: metrics, samples and token counts go back with it, what was
consumed does not. Each row of `ledger.jsonl` holds the sums of one start of the run so far and the step they belong to,
so that energy can be told apart that bought steps which were kept (useful) and steps that were done again (repeated).

    start A  step 0 ------- 40 (checkpoint) --- 55 killed          useful 0-40, repeated 40-55
    start B                 40 ----------------------------- 80    useful

One file a machine: `ledger.jsonl` of the first, `ledger-1.jsonl` of the second, and so on. Ranks on one machine share
it.
"""

import json
import shutil
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checks import InputError, ensure
from .emissions import EMISSIONS_NAME, EnergyMeter, EnergyReading, read_emissions

LEDGER_NAME = "ledger.jsonl"
FLUSH_SECONDS = 30  # between two rows while nothing else happens; at most so much is missing after a kill
_TOLERANCE = 1e-3  # of the sums of ledger and emissions.csv, which are written one after the other


@dataclass(frozen=True)
class Start:
    """What one start of a run consumed on one machine.

    Attributes:
        machine: its number.
        first_step: the step it began or resumed at.
        points: (step, kWh since its beginning) in the order they were written.
        total: its last reading.
        methods: how the figures came about, as codecarbon calls them.
        warnings: what they leave out.
        ended: whether it stopped by itself; after a kill, the time since its last row is missing.
        times: seconds since the epoch of the first and of the last row.
    """

    machine: int
    first_step: int
    points: list[tuple[int, float]]
    total: EnergyReading
    methods: list[str]
    warnings: list[str]
    ended: bool
    times: tuple[float, float]

    def kwh_until(self, step: int) -> float:
        """Return the kWh that had been consumed at a step, linear between rows."""
        before_step, before = self.first_step, 0.0
        for at_step, kwh in self.points:
            if at_step > step:
                return before + (kwh - before) * (step - before_step) / max(at_step - before_step, 1)
            before_step, before = at_step, kwh
        return before


@dataclass(frozen=True)
class Account:
    """The sums over all starts and machines; energy in kWh, emissions in kg CO2e, time in seconds.

    Attributes:
        useful_kwh: of steps that were kept, evaluations and the end included.
        repeated_kwh: of steps that were done again. Both add up to `total.energy_kwh`.
        seconds: of the first machine.
    """

    starts: list[Start]
    total: EnergyReading
    useful_kwh: float
    repeated_kwh: float
    seconds: float

    @property
    def num_kills(self) -> int:
        """Return how many starts ended without writing a last row."""
        return sum(not start.ended for start in self.starts)


def ledger_path(folder: Path, machine: int) -> Path:
    """Return the ledger of a machine in a run's folder."""
    return folder / (LEDGER_NAME if machine == 0 else f"ledger-{machine}.jsonl")


class LedgerWriter:
    """Appends the rows of one start on one machine."""

    def __init__(self, folder: Path, machine: int, first_step: int, methods: list[str], warnings: list[str]) -> None:
        """Open the ledger and write that a start began at a step."""
        self.path = ledger_path(folder, machine)
        self._start = uuid.uuid4().hex[:12]
        self._append({"event": "start", "machine": machine, "step": first_step, "methods": methods,
                      "warnings": warnings})  # fmt: skip

    def write(self, step: int, reading: EnergyReading, last: bool = False) -> None:
        """Append the sums of this start up to a step."""
        self._append({"event": "end" if last else "reading", "step": step, **asdict(reading)})

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"start": self._start, "time": round(time.time(), 3), **row}) + "\n")


class StageMeter:
    """Measures a stage that trains nothing, such as packing: its files lie in `folder` however it ends."""

    def __init__(self, folder: Path, country_iso_code: str) -> None:
        """Measure into a folder that exists when the stage begins."""
        self.folder, self.country_iso_code = folder, country_iso_code

    def __enter__(self) -> "StageMeter":
        """Begin measuring."""
        self._meter = EnergyMeter(self.folder, self.country_iso_code)
        self._meter.start()
        self._ledger = LedgerWriter(self.folder, 0, 0, self._meter.methods(), self._meter.warnings())
        self._flushed = time.monotonic()
        return self

    def tick(self) -> None:
        """Write a row if the last one is old; call it now and then, so that a kill loses little."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._meter.flush()
            self._ledger.write(0, self._meter.reading())
            self._flushed = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Write the last row."""
        self._meter.stop()
        self._ledger.write(0, self._meter.reading(), last=True)


def move_energy_files(source: Path, target: Path) -> None:
    """Move what a stage measured to another folder."""
    for name in (EMISSIONS_NAME, LEDGER_NAME):
        if (source / name).is_file():
            shutil.move(source / name, target / name)


def read_ledger(folder: Path) -> Account | None:
    """Return the account of a run's folder, or None when it has no ledger.

    Raises:
        InputError: a row is damaged, or the sums contradict `emissions.csv`.
    """
    paths = sorted(folder.glob("ledger*.jsonl"))
    starts = [start for path in paths for start in read_starts(path)]
    if not starts:
        return None
    total = total_of(starts)
    repeated = sum(_repeated_kwh(start, starts) for start in starts)
    seconds = sum(start.total.seconds for start in starts if start.machine == 0)
    _check_against_emissions(folder, starts)
    return Account(starts, total, total.energy_kwh - repeated, repeated, seconds)


def total_of(starts: list[Start]) -> EnergyReading:
    """Return the sums over starts; seconds too, so those of several machines overlap."""
    keys = list(EnergyReading.__dataclass_fields__)
    return EnergyReading(**{key: sum(getattr(start.total, key) for start in starts) for key in keys})


def _repeated_kwh(start: Start, starts: list[Start]) -> float:
    """Return what a start consumed for steps that a later start of the same machine did again."""
    later = [other.first_step for other in starts
             if other.machine == start.machine and other.times[0] > start.times[0]]  # fmt: skip
    kept_until = min(later, default=None)
    if kept_until is None:
        return 0.0
    return start.total.energy_kwh - start.kwh_until(max(kept_until, start.first_step))


def read_starts(path: Path) -> list[Start]:
    """Return the starts in one machine's ledger; no file, no starts.

    Raises:
        InputError: a row is damaged.
    """
    if not path.is_file():
        return []
    rows: dict[str, list[dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.setdefault(row["start"], []).append(row)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # cut off by a kill
                continue
            raise InputError(f"{path}: line {number} is damaged ({error!r}). Restore the file from a copy.") from error
    try:
        return [_read_start(found) for found in rows.values()]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: a row lacks what it must have ({error!r}). Restore the file from a copy.") from error


def _read_start(rows: list[dict[str, Any]]) -> Start:
    head, readings = rows[0], rows[1:]
    keys = EnergyReading.__dataclass_fields__
    last = {key: float(readings[-1][key]) for key in keys} if readings else dict.fromkeys(keys, 0.0)
    return Start(
        machine=int(head["machine"]),
        first_step=int(head["step"]),
        points=[(int(row["step"]), float(row["energy_kwh"])) for row in readings],
        total=EnergyReading(**last),
        methods=list(head["methods"]),
        warnings=list(head["warnings"]),
        ended=rows[-1]["event"] == "end",
        times=(float(head["time"]), float(rows[-1]["time"])),
    )


def _check_against_emissions(folder: Path, starts: list[Start]) -> None:
    """The first machine's ledger and codecarbon's own file say the same, or neither is believed."""
    found = read_emissions(folder / EMISSIONS_NAME)
    machines = {start.machine for start in starts}
    if found is None or len(machines) > 1:  # with several, all of them write into the one file
        return
    own = sum(start.total.energy_kwh for start in starts)
    ensure(
        abs(found.energy_kwh - own) <= _TOLERANCE * max(found.energy_kwh, own),
        f"{folder}: {EMISSIONS_NAME} adds up to {found.energy_kwh:.6g} kWh and {LEDGER_NAME} to {own:.6g}. One of the "
        "two was changed or is not of this run: restore it from a copy.",
    )
