"""The recorder: an energy meter and its ledger together, for trainings and for stages that train nothing."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checks import beside_the_model
from ..disk import scratch_folder
from ..energy import ledger
from ..stage_folder import EMISSIONS_NAME
from .emissions import GridSettings, drop_torn_row, emission_files
from .meter import EnergyMeter, EnergyReading

# Time in seconds since the epoch from which on the command's time is in no ledger yet. Ranks inherit the variable.
STARTED_VARIABLE = "TTL_STARTED"


@contextmanager
def counted_time() -> Iterator[None]:
    """Count the time of the block, a `ttl` command: the first ledger that is written in it begins with that time."""
    before = os.environ.get(STARTED_VARIABLE)
    os.environ[STARTED_VARIABLE] = repr(time.time())
    try:
        yield
    finally:
        os.environ.pop(STARTED_VARIABLE, None)
        if before is not None:
            os.environ[STARTED_VARIABLE] = before


def count_from_now() -> None:
    """Remember that all time of the command until now is in a ledger."""
    if STARTED_VARIABLE in os.environ:
        os.environ[STARTED_VARIABLE] = repr(time.time())


def seconds_unmeasured() -> float:
    """Return how long this command has run without a meter: imports, checks, the building of a model.

    Outside of a `ttl` command, as in a notebook, it is 0: the time may have been spent on anything.
    """
    try:
        return max(0.0, time.time() - float(os.environ[STARTED_VARIABLE]))
    except (KeyError, ValueError):
        return 0.0


class Recorder:
    """Measures one start on one machine and writes its rows; an error of the meter ends the measuring, not the work.

    Attributes:
        failure: why nothing is measured any more, or an empty text.
    """

    def __init__(
        self, folder: Path, grid: GridSettings, machine: int = 0, first_step: int = 0, num_gpus: int = 1
    ) -> None:
        """Begin measuring.

        Args:
            folder: where the files are written; it exists.
            grid: where the machine stands.
            machine: number of the machine.
            first_step: the step that the start begins at.
            num_gpus: GPUs that are paid for on this machine, 1 on a machine without.
        """
        self.failure = ""
        self._meter: EnergyMeter | None = None
        self._ledger: ledger.LedgerWriter | None = None
        self._reading = EnergyReading(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self.num_gpus, self.starting_seconds = num_gpus, seconds_unmeasured()
        self._flushed = time.monotonic()
        with beside_the_model("measuring energy", self._fail):
            self._start(folder, grid, machine, first_step)

    def _start(self, folder: Path, grid: GridSettings, machine: int, first_step: int) -> None:
        about: dict[str, Any] = {"methods": [], "warnings": [], "run_id": ""}
        with beside_the_model("the energy meter", self._fail):
            meter = EnergyMeter(folder, grid, machine)
            meter.start()
            self._meter, about = meter, meter.about()
        about |= {"num_gpus": self.num_gpus, "starting_seconds": round(self.starting_seconds, 3)}
        if self.failure:
            about["incomplete"] = self.failure
        self._ledger = ledger.LedgerWriter(folder, machine, first_step, about)
        if self._meter is None:
            return
        others = self._meter.others()
        for alert in [*self._meter.alerts(), *([ledger.OTHERS.format(others)] if others else [])]:
            print(f"energy     warning: {alert}", flush=True)

    def _fail(self, reason: str) -> None:
        """Stop measuring for good: the rows written so far stay, and reports say that energy is missing."""
        self.failure = self.failure or reason
        print("energy     warning: NOTHING IS MEASURED FROM HERE ON; the run's account is incomplete", flush=True)
        meter, self._meter = self._meter, None
        if meter is not None:
            with contextlib.suppress(Exception):  # the meter has failed already; only its thread has to end
                meter.stop()

    @property
    def seconds_since(self) -> float:
        """Return the seconds since the last row was written."""
        return time.monotonic() - self._flushed

    @property
    def is_due(self) -> bool:
        """Return whether the last row is older than `FLUSH_SECONDS`, so that a new one has to be written."""
        return self.seconds_since > ledger.FLUSH_SECONDS

    def write(self, step: int = 0, phase: ledger.Phase | None = None, last: bool = False) -> EnergyReading:
        """Append a row and return its sums over this start.

        Args:
            step: the step that was reached.
            phase: what went on since the row before.
            last: whether to stop measuring.
        """
        with beside_the_model("measuring energy", self._fail):
            if self._meter is not None and self._ledger is not None:
                others = self._meter.others()
                if last:
                    self._meter.stop()
                else:
                    self._meter.flush()
                reading = self._meter.reading()
                self._ledger.write(step, reading, last, phase, others, self._meter.counter_reason)
                self._reading, self._flushed = reading, time.monotonic()
        if self.failure:
            self._write_unmeasured(step, phase, last)
        if last:
            count_from_now()
        return self._reading

    def _write_unmeasured(self, step: int, phase: ledger.Phase | None, last: bool) -> None:
        """Append a row after the meter has failed: the energy of the row before, and the seconds by the clock."""
        now = time.monotonic()
        self._reading = replace(self._reading, seconds=self._reading.seconds + now - self._flushed)
        self._flushed = now
        if self._ledger is not None:
            with contextlib.suppress(OSError):  # the warning of `_fail` has told the user
                self._ledger.write(step, self._reading, last, phase, incomplete=self.failure)


class StageMeter:
    """Measures a stage that trains nothing, such as packing, and writes its files into `folder`."""

    def __init__(self, folder: Path, grid: GridSettings) -> None:
        """Remember the folder, which must exist when measuring begins, and where the machine stands."""
        self.folder, self.grid = folder, grid

    def __enter__(self) -> "StageMeter":
        """Begin measuring."""
        self._recorder = Recorder(self.folder, self.grid)
        return self

    def tick(self) -> None:
        """Write a row if the last one is old; to be called often, so that little is missing after a kill."""
        if self._recorder.is_due:
            self._recorder.write()

    def __exit__(self, *error: object) -> None:
        """Write the last row."""
        self._recorder.write(last=True)


@contextmanager
def measured_into(output: Path, grid: GridSettings) -> Iterator[None]:
    """Measure the block; only if it ends without an error, `output` is made and gets the files of the measurement."""
    with scratch_folder() as scratch:
        with StageMeter(scratch, grid):
            yield
        output.mkdir(parents=True, exist_ok=True)
        move_energy_files(scratch, output)


def move_energy_files(source: Path, target: Path) -> None:
    """Move the energy files of a stage to another folder."""
    for path in (*emission_files(source), *ledger.ledger_files(source)):
        shutil.move(path, target / path.name)


def add_speed_test(source: Path, target: Path) -> None:
    """Add the energy of a speed test, measured in a folder of its own, to the files of the run that it was made for.

    Rows that an interrupted call has added already are not added again.

    Args:
        source: the test's folder, with or without energy files; unfinished last rows are left out.
        target: the run's folder, on the same machine; nothing may be measuring there.
    """
    rows, account = source / EMISSIONS_NAME, ledger.ledger_path(source, 0)
    for path in (rows, account, target / rows.name, target / account.name):
        drop_torn_row(path)
    if rows.is_file():
        _append_rows(rows, target / rows.name)  # a row that is there twice counts once: only a start's last one counts
    if account.is_file():
        ledger.append_speed_test(account, target / account.name)


def _append_rows(source: Path, target: Path) -> None:
    """Append codecarbon's rows; a target with other columns is moved aside first, as codecarbon does it."""
    head, *rows = source.read_bytes().splitlines(keepends=True)
    if target.is_file() and target.read_bytes().splitlines(keepends=True)[0] != head:
        aside = [target.with_name(f"{target.name}.bak{f'_{number}' if number else ''}") for number in range(1000)]
        target.rename(next(path for path in aside if not path.exists()))
    with target.open("ab") as file:
        file.writelines(rows if file.tell() else [head, *rows])
