"""The ledger: a run's energy over all of its starts, appended to and never rewound.

After a kill a run goes back to its last checkpoint: its metrics, samples and token counts go back with it, but the
energy is spent. Each row of `ledger.jsonl` holds the sums of one start so far and the step that it had reached. So the
energy of steps that were kept (useful) can be told from that of steps that were done again (repeated). A row also says
what went on since the row before it: training, evaluation or saving. The speed test that finds the length of a capped
run is a start of its own, whose steps are neither kept nor done again.

    start A  step 0 ------- 40 (checkpoint) --- 55 killed          useful 0-40, repeated 40-55
    start B                 40 ----------------------------- 80    useful

Each machine writes one file for all of its ranks: `ledger.jsonl` the first, `ledger-1.jsonl` the second, and so on.
"""

import json
import math
import re
import time
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..checks import ensure
from ..stage_folder import EMISSIONS_NAME, LEDGER_NAME, MANIFEST_NAME, numbered_jsonl_records
from .emissions import EmissionsTotal, close_line, drop_torn_row, emission_files, is_torn, read_emissions
from .meter import EnergyReading

_LEDGER_FILES = re.compile(r"ledger(-\d+)?\.jsonl")
FLUSH_SECONDS = 30  # most time between two rows, and so most time that is missing after a kill
_ROUNDING = 1e-9  # relative error of figures that were written as text
_TOLERANCE = 1e-3  # relative difference between ledger and emissions.csv, which are written one after the other
_SUMS = tuple(item.name for item in fields(EnergyReading) if item.name != "gpu_counter_kwh")
OTHERS = (
    "other measurements ran on the same machine ({}): each counts the whole processor, the memory and the GPUs that it "
    "sees, so these are in both"
)

SPEED_TEST = "speed test"
Phase = Literal["speed test", "training", "evaluation", "saving"]


@dataclass(frozen=True)
class Start:
    """What one start of a run consumed on one machine.

    Attributes:
        machine: its number.
        first_step: the step it began or resumed at.
        points: (step, kWh since the start began) of each row, in the order they were written.
        total: its last reading.
        methods: what was measured and how, as codecarbon calls it.
        warnings: what the figures leave out.
        ended: whether the start wrote its last row; after a kill, the time since the row before is missing.
        times: seconds since the epoch of the first and of the last row.
        phases_kwh: kWh by what went on; empty in older ledgers, and for stages that do one thing only.
        counter_reason: why the GPUs' own counters were not read, or not to the end; None in older ledgers.
        gpu_check: kWh of the GPUs by codecarbon and by their counters, in the last row with both; None: in no row.
        run_id: codecarbon's name of the start; empty in older ledgers.
        is_speed_test: whether the start was a speed test before the run.
        num_gpus: GPUs of the ranks on this machine, 1 for ranks without a GPU; None in older ledgers.
        starting_seconds: seconds from the start of the process until the meter's start, whose energy is not measured.
        incomplete: step from which on nothing was measured because the meter failed, and the reason; or None.
    """

    machine: int
    first_step: int
    points: list[tuple[int, float]]
    total: EnergyReading
    methods: list[str]
    warnings: list[str]
    ended: bool
    times: tuple[float, float]
    phases_kwh: dict[str, float]
    counter_reason: str | None
    gpu_check: tuple[float, float] | None
    run_id: str
    is_speed_test: bool
    num_gpus: int | None = None
    starting_seconds: float = 0.0
    incomplete: tuple[int, str] | None = None

    @property
    def paid_gpu_hours(self) -> float:
        """Return the hours times the GPUs of this machine (1 where there is none), from the start of the process on."""
        return (self.total.seconds + self.starting_seconds) / 3600 * (self.num_gpus or 1)

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
        useful_kwh: energy of steps that were kept, of evaluations and of the run's end.
        repeated_kwh: energy of steps that were done again.
        speed_test_kwh: energy of speed tests. The three add up to `total.energy_kwh`.
        seconds: time that was measured on the first machine.
        starting_seconds: time before the meter's start on the first machine; not in `seconds`.
        paid_gpu_hours: hours of all starts times their GPUs, over all machines; None: a start does not say its GPUs.
    """

    starts: list[Start]
    total: EnergyReading
    useful_kwh: float
    repeated_kwh: float
    speed_test_kwh: float
    seconds: float
    starting_seconds: float = 0.0
    paid_gpu_hours: float | None = None

    @property
    def num_kills(self) -> int:
        """Return how many starts ended without writing a last row."""
        return sum(not start.ended for start in self.starts)

    @property
    def incomplete(self) -> tuple[int, str] | None:
        """Return the first step from which on energy is missing from the sums, and the reason; None if none is."""
        return min((start.incomplete for start in self.starts if start.incomplete), default=None)

    @property
    def phases_kwh(self) -> dict[str, float]:
        """Return the kWh by what went on, repeated steps included, of the starts whose ledger says it."""
        sums: dict[str, float] = defaultdict(float)
        for start in self.starts:
            for phase, kwh in start.phases_kwh.items():
                sums[phase] += kwh
        return dict(sums)


def ledger_path(folder: Path, machine: int) -> Path:
    """Return the ledger of a machine in a run's folder."""
    return folder / (LEDGER_NAME if machine == 0 else f"ledger-{machine}.jsonl")


def ledger_files(folder: Path) -> list[Path]:
    """Return the ledgers of all machines in a run's folder."""
    return sorted(path for path in folder.glob("ledger*.jsonl") if _LEDGER_FILES.fullmatch(path.name))


class LedgerWriter:
    """Appends the rows of one start on one machine."""

    def __init__(self, folder: Path, machine: int, first_step: int, about: dict[str, Any]) -> None:
        """Open the ledger and write that a start began at a step, with what its meter says of itself (`about`)."""
        self.path = ledger_path(folder, machine)
        drop_torn_row(self.path)
        self._start = uuid.uuid4().hex[:12]
        self._append({"event": "start", "machine": machine, "step": first_step, **about})

    def write(
        self,
        step: int,
        reading: EnergyReading,
        last: bool = False,
        phase: Phase | None = None,
        others: int = 0,
        counter_reason: str = "",
        incomplete: str = "",
    ) -> None:
        """Append the sums of this start up to a step.

        Args:
            step: the step that was reached.
            reading: the sums.
            last: whether this is the last row of the start.
            phase: what went on since the row before.
            others: other meters of this package that measure on the machine now.
            counter_reason: why the reading has no figure of the GPUs' counters.
            incomplete: why nothing is measured any more; the sums are then those before, but for the seconds.
        """
        told = {"phase": phase, "others": others, "counter_reason": counter_reason, "incomplete": incomplete}
        self._append({"event": "end" if last else "reading", "step": step, **asdict(reading),
                      **{name: value for name, value in told.items() if value}})  # fmt: skip

    def _append(self, row: dict[str, Any]) -> None:
        close_line(self.path)  # a disk that was full may have torn the row before
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"start": self._start, "time": round(time.time(), 3), **row}) + "\n")


def read_ledger(folder: Path) -> Account | None:
    """Return the account of a run's folder, or None when it has no ledger.

    Raises:
        InputError: a row is damaged, or the sums contradict `emissions.csv`.
    """
    starts = [start for path in ledger_files(folder) for start in read_starts(path)]
    if not starts:
        return None
    total = total_of(starts)
    repeated = sum(_repeated_kwh(start, starts) for start in starts)
    tests = sum(start.total.energy_kwh for start in starts if start.is_speed_test)
    seconds = sum(start.total.seconds for start in starts if start.machine == 0)
    starting = sum(start.starting_seconds for start in starts if start.machine == 0)
    told = all(start.num_gpus is not None for start in starts)
    paid = sum(start.paid_gpu_hours for start in starts) if told else None
    _check_against_emissions(folder, starts)
    return Account(starts, total, total.energy_kwh - repeated - tests, repeated, tests, seconds, starting, paid)


def read_energy(folder: Path) -> tuple[EmissionsTotal | None, Account | None]:
    """Return what codecarbon's files and the ledgers of a run's folder say, for reports and cards.

    Returns:
        The sums of `emissions.csv`, None where nothing was measured, and the account, None without a ledger.

    Raises:
        InputError: a damaged or impossible row, a file that is cut off though the run has ended, or different sums in
            the two; the message names file and line.
    """
    if (folder / MANIFEST_NAME).is_file():
        for path in (*emission_files(folder), *ledger_files(folder)):
            ensure(
                not is_torn(path),
                f"{path}: is cut off within its last line, though the run has ended. Restore it from a copy.",
            )
    account, total = read_ledger(folder), read_emissions(folder / EMISSIONS_NAME)
    ensure(
        total is not None or account is None or account.total.energy_kwh == 0,
        f"{folder / EMISSIONS_NAME}: is missing or empty, and {LEDGER_NAME} has its energy. Restore it from a copy.",
    )
    return total, account


def describe_incomplete(account: Account | None) -> dict[str, Any] | None:
    """Return from which step on energy is missing from an account, and why; None if none is missing."""
    if account is None or account.incomplete is None:
        return None
    step, reason = account.incomplete
    return {"since_step": step, "reason": reason}


def append_speed_test(source: Path, target: Path) -> None:
    """Append the rows of a speed test's ledger to a run's ledger, marked as such; rows that are there are left out.

    Raises:
        InputError: a row of the run's ledger is damaged.
    """
    read_starts(target)  # refuses a damaged row by its line
    text = target.read_text(encoding="utf-8") if target.is_file() else ""
    known = {(row["start"], row["time"]) for row in map(json.loads, text.splitlines())}
    with target.open("a", encoding="utf-8") as file:
        for row in map(json.loads, source.read_text(encoding="utf-8").splitlines()):
            if (row["start"], row["time"]) not in known:
                file.write(json.dumps({**row, "step": 0, "phase": SPEED_TEST}) + "\n")


def num_speed_tests(folder: Path) -> int:
    """Return how many starts in the ledger of a folder's first machine were speed tests."""
    return sum(start.is_speed_test for start in read_starts(ledger_path(folder, 0)))


def total_of(starts: list[Start]) -> EnergyReading:
    """Return the sums over starts, also of their seconds, although those of several machines overlap."""
    return EnergyReading(**{key: sum(getattr(start.total, key) for start in starts) for key in _SUMS})


def _repeated_kwh(start: Start, starts: list[Start]) -> float:
    """Return what a start consumed for steps that a later start of the same machine did again."""
    later = [
        other.first_step
        for other in starts
        if other.machine == start.machine and other.times[0] > start.times[0] and not other.is_speed_test
    ]
    kept_until = min(later, default=None)
    if kept_until is None or start.is_speed_test:
        return 0.0
    return start.total.energy_kwh - start.kwh_until(max(kept_until, start.first_step))


def read_starts(path: Path, strict: bool = True) -> list[Start]:
    """Return the starts in one machine's ledger; no file, no starts.

    Args:
        path: of the ledger.
        strict: refuse a damaged row instead of leaving it out; a training leaves it out and goes on.

    Raises:
        InputError: a row is damaged.
    """
    rows: dict[str, list[dict[str, Any]]] = {}

    def check(row: dict[str, Any]) -> None:
        _check_row(row, rows.get(row.get("start", "")))

    fix = (
        "Restore the file from a copy, or remove that line: rows are sums, so only the last one of a start counts, "
        f"which {EMISSIONS_NAME} has as well."
    )
    for _, row in numbered_jsonl_records(path, check, fix if strict else None):
        rows.setdefault(row["start"], []).append(row)
    return [_read_start(found) for found in rows.values()]


def _check_row(row: dict[str, Any], before: list[dict[str, Any]] | None) -> None:
    """Check a row by itself and against those of the same start that come before it.

    Raises:
        ValueError, KeyError, TypeError: the row is impossible.
    """
    event, is_first = row["event"], before is None
    if not isinstance(row["start"], str) or event not in (("start",) if is_first else ("reading", "end")):
        raise ValueError(f"event {event!r} of start {row['start']!r}")
    for name in ("time", "step", *(("machine",) if is_first else _SUMS)):
        _check_figure(name, row[name])
    if is_first:
        if not all(isinstance(row[name], list) for name in ("methods", "warnings")):
            raise TypeError("methods or warnings are no lists")
        return
    assert before is not None
    for name in _SUMS if len(before) > 1 else ():
        if row[name] < before[-1][name] * (1 - _ROUNDING):
            raise ValueError(f"{name} falls from {before[-1][name]} to {row[name]} within a start")
    if row.get("gpu_counter_kwh") is not None:
        _check_figure("gpu_counter_kwh", row["gpu_counter_kwh"])


def _check_figure(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value!r} is no finite number, 0 or above")


def _read_start(rows: list[dict[str, Any]]) -> Start:
    head, readings = rows[0], rows[1:]
    last = {key: float(readings[-1][key]) for key in _SUMS} if readings else dict.fromkeys(_SUMS, 0.0)
    counted = [(float(row["gpu_kwh"]), float(row["gpu_counter_kwh"])) for row in readings
               if row.get("gpu_counter_kwh") is not None]  # fmt: skip
    failed = [(int(row["step"]), str(row["incomplete"])) for row in rows if row.get("incomplete")]
    reasons = [row["counter_reason"] for row in rows if row.get("counter_reason") is not None]
    others = max((int(row.get("others", 0)) for row in readings), default=0)
    return Start(
        machine=int(head["machine"]),
        first_step=int(head["step"]),
        points=[(int(row["step"]), float(row["energy_kwh"])) for row in readings],
        total=EnergyReading(**last),
        methods=list(head["methods"]),
        warnings=[*head["warnings"], *([OTHERS.format(others)] if others else [])],
        ended=rows[-1]["event"] == "end",
        times=(float(head["time"]), float(rows[-1]["time"])),
        phases_kwh=_read_phases(readings),
        counter_reason=reasons[-1] if reasons else None,
        gpu_check=counted[-1] if counted else None,
        run_id=str(head.get("run_id", "")),
        is_speed_test=head.get("phase") == SPEED_TEST,
        num_gpus=int(head["num_gpus"]) if head.get("num_gpus") is not None else None,
        starting_seconds=float(head.get("starting_seconds", 0.0)),
        incomplete=failed[0] if failed else None,
    )


def _read_phases(readings: list[dict[str, Any]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    before = 0.0
    for row in readings:
        if "phase" in row:
            sums[row["phase"]] += float(row["energy_kwh"]) - before
        before = float(row["energy_kwh"])
    return dict(sums)


def _check_against_emissions(folder: Path, starts: list[Start]) -> None:
    """Check that the ledgers and codecarbon's files have the same energy.

    Raises:
        InputError: they differ, so one of them was changed.
    """
    found = read_emissions(folder / EMISSIONS_NAME)
    if found is None:
        return
    own = sum(start.total.energy_kwh for start in starts)
    # codecarbon writes its row first: after a kill between the two writes, its sum is larger than the ledger's.
    own += sum(max(0.0, found.run_kwh.get(start.run_id, 0.0) - start.total.energy_kwh)
               for start in starts if not start.ended or start.incomplete)  # fmt: skip
    ensure(
        abs(found.energy_kwh - own) <= _TOLERANCE * max(found.energy_kwh, own),
        f"{folder}: {EMISSIONS_NAME} adds up to {found.energy_kwh:.6g} kWh and {LEDGER_NAME} to {own:.6g}. One of the "
        "two was changed or is not of this run: restore it from a copy.",
    )
