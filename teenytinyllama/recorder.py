"""Recording: a meter and its ledger together, for a run's callback and for stages that train nothing."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import ledger
from .emissions import EMISSIONS_NAME, drop_torn_row, emission_files
from .grid import GridSettings
from .locks import scratch_folder
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
    """Measures one start on one machine and writes its rows."""

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
        self._meter = EnergyMeter(folder, grid, machine)
        self._meter.start()
        self.num_gpus, self.starting_seconds = num_gpus, seconds_unmeasured()
        about = {"num_gpus": num_gpus, "starting_seconds": round(self.starting_seconds, 3)}
        self._ledger = ledger.LedgerWriter(folder, machine, first_step, {**self._meter.about(), **about})
        self._flushed = time.monotonic()
        others = self._meter.others()
        for alert in [*self._meter.alerts(), *([ledger.OTHERS.format(others)] if others else [])]:
            print(f"energy     warning: {alert}", flush=True)

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
        others = self._meter.others()
        if last:
            self._meter.stop()
        else:
            self._meter.flush()
        reading = self._meter.reading()
        self._ledger.write(step, reading, last, phase, others, self._meter.counter_reason)
        self._flushed = time.monotonic()
        if last:
            count_from_now()
        return reading


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
