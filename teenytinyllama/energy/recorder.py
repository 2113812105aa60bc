"""Recording: a meter and its ledger together, for a run's callback and for stages that train nothing."""

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
from ..energy import ledger
from ..stage_folder import EMISSIONS_NAME, scratch_folder
from .emissions import GridSettings, drop_torn_row, emission_files
from .meter import EnergyMeter, EnergyReading

# When the time began that is paid and not yet in any account, in seconds since the epoch; ranks inherit it.
STARTED_VARIABLE = "TTL_STARTED"


@contextmanager
def counted_time() -> Iterator[None]:
    """Count the time of the block, a `ttl` command, as time that is paid: the accounts opened in it begin with it."""
    before = os.environ.get(STARTED_VARIABLE)
    os.environ[STARTED_VARIABLE] = repr(time.time())
    try:
        yield
    finally:
        os.environ.pop(STARTED_VARIABLE, None)
        if before is not None:
            os.environ[STARTED_VARIABLE] = before


def count_from_now() -> None:
    """Say that all time until now is in an account."""
    if STARTED_VARIABLE in os.environ:
        os.environ[STARTED_VARIABLE] = repr(time.time())


def seconds_unmeasured() -> float:
    """Return how long this command has run without a meter: imports, checks, the building of a model.

    0 outside of a `ttl` command, as in a notebook, where nobody knows what the time was for.
    """
    try:
        return max(0.0, time.time() - float(os.environ[STARTED_VARIABLE]))
    except (KeyError, ValueError):
        return 0.0


class Recorder:
    """Measures one start on one machine and writes its rows; a meter that fails ends the measuring, not the work.

    Attributes:
        failure: why nothing is measured any more, or an empty text.
    """

    def __init__(
        self, folder: Path, grid: GridSettings, machine: int = 0, first_step: int = 0, num_gpus: int = 1
    ) -> None:
        """Begin measuring into a folder that exists, from a step on.

        Args:
            folder: exists.
            grid: where the machine stands.
            machine: its number.
            first_step: the step that the start begins at.
            num_gpus: that are paid for on this machine; 1 where there is none.
        """
        self.failure = ""  # why nothing is measured any more
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
        """Measure no more: what is on record stays and is the least that was used, which every reader is told."""
        self.failure = self.failure or reason
        print("energy     warning: NOTHING IS MEASURED FROM HERE ON; the run's account is incomplete", flush=True)
        meter, self._meter = self._meter, None
        if meter is not None:
            with contextlib.suppress(Exception):  # it has failed; its thread should end all the same
                meter.stop()

    @property
    def seconds_since(self) -> float:
        """Return how old the last row is."""
        return time.monotonic() - self._flushed

    @property
    def is_due(self) -> bool:
        """Return whether the last row is so old that a kill would lose more than is promised."""
        return self.seconds_since > ledger.FLUSH_SECONDS

    def write(self, step: int = 0, phase: ledger.Phase | None = None, last: bool = False) -> EnergyReading:
        """Append a row and return its sums, those of this start.

        Args:
            step: the step that was reached.
            phase: what went on since the row before.
            last: stop measuring.
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
        """Append a row with the sums of before, and their seconds by the clock: hours are still counted."""
        now = time.monotonic()
        self._reading = replace(self._reading, seconds=self._reading.seconds + now - self._flushed)
        self._flushed = now
        if self._ledger is not None:
            with contextlib.suppress(OSError):  # whoever trains was warned
                self._ledger.write(step, self._reading, last, phase, incomplete=self.failure)


class StageMeter:
    """Measures a stage that trains nothing, such as packing: its files lie in `folder` however it ends."""

    def __init__(self, folder: Path, grid: GridSettings) -> None:
        """Measure into a folder that exists when the stage begins."""
        self.folder, self.grid = folder, grid

    def __enter__(self) -> "StageMeter":
        """Begin measuring."""
        self._recorder = Recorder(self.folder, self.grid)
        return self

    def tick(self) -> None:
        """Write a row if the last one is old; call it now and then, so that a kill loses little."""
        if self._recorder.is_due:
            self._recorder.write()

    def __exit__(self, *error: object) -> None:
        """Write the last row."""
        self._recorder.write(last=True)


@contextmanager
def measured_into(output: Path, grid: GridSettings) -> Iterator[None]:
    """Measure the block, and put what was measured into `output` if it ends well; nothing is there before."""
    with scratch_folder() as scratch:
        with StageMeter(scratch, grid):
            yield
        output.mkdir(parents=True, exist_ok=True)
        move_energy_files(scratch, output)


def move_energy_files(source: Path, target: Path) -> None:
    """Move what a stage measured to another folder."""
    for path in (*emission_files(source), *ledger.ledger_files(source)):
        shutil.move(path, target / path.name)


def add_speed_test(source: Path, target: Path) -> None:
    """Add what a speed test measured in a folder of its own to the account of the run that it was made for.

    What is there already, of a call that was cut off, is not added again.

    Args:
        source: the test's folder, with measurements or none; what a kill tore is left out.
        target: the run's, on the same machine; nothing may be measuring there.
    """
    rows, account = source / EMISSIONS_NAME, ledger.ledger_path(source, 0)
    for path in (rows, account, target / rows.name, target / account.name):
        drop_torn_row(path)
    if rows.is_file():
        _append_rows(rows, target / rows.name)  # of equal ones the last counts
    if account.is_file():
        ledger.append_speed_test(account, target / account.name)


def _append_rows(source: Path, target: Path) -> None:
    """Append codecarbon's rows; a target that another version of it wrote is moved aside first, as it does itself."""
    head, *rows = source.read_bytes().splitlines(keepends=True)
    if target.is_file() and target.read_bytes().splitlines(keepends=True)[0] != head:
        aside = [target.with_name(f"{target.name}.bak{f'_{number}' if number else ''}") for number in range(1000)]
        target.rename(next(path for path in aside if not path.exists()))
    with target.open("ab") as file:
        file.writelines(rows if file.tell() else [head, *rows])
