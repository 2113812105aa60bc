"""How faults come about: at a named point, by signals at a moment, on a full disk, in a damaged file."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from works import SAVE_STEPS, TIMEOUT_SECONDS, Work, losses

# What of a run's files, of its rows and its tokenizer may be damaged; the first seven lie in every checkpoint.
CHECKPOINT_FILES = (
    "model.safetensors", "optimizer/00001.safetensors", "optimizer/state.json", "trainer_state.json", "complete.json",
    "scheduler.pt", "rng_state.pth", "config.json",
)  # fmt: skip
RUN_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "ledger.jsonl", "emissions.csv", "samples.jsonl")
INPUT_FILES = (
    "packed/train.npy", "packed/validation.npy", "packed/validation_documents.npy", "packed/run.json",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
)  # fmt: skip


@dataclass
class Struck:
    """What a fault has left.

    Attributes:
        where: the point or moment, and the file, for the record.
        code: exit code of the command that was struck.
        mend: undoes what is to be undone before the command can go on: frees the disk, restores the file.
        damaged: the file that was damaged, or None.
        is_fine: whether the struck command is expected to end with 0.
        loses_more: saves were left out, so that more steps than between two saves may be lost.
    """

    where: str
    code: int
    mend: Callable[[], None] = lambda: None
    damaged: Path | None = None
    is_fine: bool = False
    loses_more: bool = False


Strike = Callable[[Work, Random, dict[str, Any]], Struck]


def at_point(where: str, **fault: Any) -> Strike:
    """Strike the process at a named point, see `sitecustomize`; `{out}` in a text is the work's folder."""

    def strike(work: Work, draw: Random, twin: dict[str, Any]) -> Struck:
        return Struck(where, work.run(_with_folder(fault, str(work.out))))

    return strike


def _with_folder(value: Any, out: str) -> Any:
    if isinstance(value, dict):
        return {_with_folder(key, out): _with_folder(item, out) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_folder(item, out) for item in value]
    return value.replace("{out}", out) if isinstance(value, str) else value


@dataclass(frozen=True)
class Moment:
    """When a signal is sent: so many seconds after the start, after the training has begun or after a step."""

    after: str
    seconds: float = 0.0
    step: int = 0

    def wait(self, process: Any, work: Work) -> bool:
        """Wait for it; return whether the command still runs."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while process.poll() is None and time.monotonic() < deadline and not self._has_come(work):
            time.sleep(0.002)
        end = time.monotonic() + self.seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        return process.poll() is None

    def _has_come(self, work: Work) -> bool:
        if self.after == "training":
            return (work.out / "environment.json").is_file()
        if self.after == "step":
            return len(losses(work.out)) >= self.step
        if self.after == "output":
            return work.out.is_dir()
        return True

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s after {self.after}{f' {self.step}' if self.step else ''}"


def random_moment(work: Work, draw: Random, twin: dict[str, Any]) -> Moment:
    """Return a moment of a work: for a training three times in four after it has begun."""
    if work.name == "pretrain":
        is_training = draw.random() < 0.75
        return (
            Moment("training", draw.uniform(0, twin["seconds"]))
            if is_training
            else Moment("start", draw.uniform(0, twin["before_seconds"]))
        )
    if work.name == "publish":
        return Moment("start", draw.uniform(0.2, 1) * twin["seconds"])
    return Moment("output", draw.uniform(0, 0.5 * twin["seconds"]))


def ranks_of(pid: int) -> list[int]:
    """Return the processes of a `ttl` that lead a session of their own: its ranks."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if os.getsid(int(child)) == int(child)]
    return []


def wait_for_ends(pids: list[int]) -> None:
    """Wait until processes have ended that are no children of this one."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(_lives(pid) for pid in pids):
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def by_signals(target: str, *numbers: signal.Signals, moment: Moment | None = None, is_fine: bool = False) -> Strike:
    """Send signals, a second apart, to `ttl`, to a `rank`; or first to a rank, then to its ttl (`rank, ttl`)."""

    def strike(work: Work, draw: Random, twin: dict[str, Any]) -> Struck:
        when = moment or random_moment(work, draw, twin)
        fault = {"set": {"teenytinyllama.data.pack:CHUNK_BYTES": 5_000}} if work.name == "pack" else None
        process = work.start(fault)
        when.wait(process, work)
        ranks = ranks_of(process.pid)
        for place, number in enumerate(numbers):
            if place:
                time.sleep(1)
            wants_rank = target == "rank" or (target == "rank, ttl" and place == 0)
            pid = draw.choice(ranks) if wants_rank and ranks else process.pid
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        code = process.wait(TIMEOUT_SECONDS)
        wait_for_ends(ranks)
        return Struck(str(when), code, is_fine=is_fine)

    return strike


def by_full_disk(work: Work, draw: Random, twin: dict[str, Any]) -> Struck:
    """Fill the disk, which must be small, at a moment of the training, and free it afterwards."""
    when = Moment("training", draw.uniform(0, 0.8 * twin["seconds"]))
    process = work.start()
    filler = work.place / "filler"
    if when.wait(process, work):
        fill(filler)
    code = process.wait(TIMEOUT_SECONDS)
    return Struck(f"full {when}", code, mend=lambda: filler.unlink(missing_ok=True), loses_more=True)


def fill(file: Path) -> None:
    """Write zeros until the disk is full."""
    assert os.statvfs(file.parent).f_blocks * os.statvfs(file.parent).f_frsize < 2**27, "this is no small disk"
    block = 1 << 16
    with file.open("wb", buffering=0) as output:
        while block:
            try:
                output.write(bytes(block))
            except OSError:
                block //= 2


def by_little_room(share: float) -> Strike:
    """Start on a small disk with little room, a share of what the undisturbed result takes; free it afterwards."""

    def strike(work: Work, draw: Random, twin: dict[str, Any]) -> Struck:
        filler = work.place / "filler"
        fill(filler)
        room_bytes = int(share * draw.uniform(0.02, 1) * 1_000_000)
        os.truncate(filler, max(filler.stat().st_size - room_bytes, 0))
        return Struck(f"{room_bytes / 1e3:,.0f} kB free", work.run(), mend=lambda: filler.unlink(missing_ok=True))

    return strike


def flip_a_bit(file: Path, draw: Random) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, draw: Random) -> None:
    """Cut a file off somewhere, at its beginning as well."""
    os.truncate(file, draw.randrange(max(file.stat().st_size, 1)))


@dataclass(frozen=True)
class Damage:
    """Kill a training between two saves, then damage a file of one kind; which one is drawn."""

    how: Callable[[Path, Random], None]
    names: tuple[str, ...]
    where: str = "run"  # run, checkpoint or input
    moment: Moment = field(default=Moment("step", step=3 * SAVE_STEPS - 1))

    def __call__(self, work: Work, draw: Random, twin: dict[str, Any]) -> Struck:
        """Kill and damage."""
        by_signals("rank", signal.SIGKILL, moment=self.moment)(work, draw, twin)
        name = draw.choice(self.names)
        return damage(work, name, self.how, draw)


def newest_checkpoint(run: Path) -> Path:
    """Return the newest complete checkpoint of a run."""
    from teenytinyllama.checkpointing.checkpoints import complete_checkpoints

    return complete_checkpoints(run)[-1][1]


def damage(work: Work, name: str, how: Callable[[Path, Random], None], draw: Random) -> Struck:
    """Damage a file: of the newest checkpoint, of the run or of its inputs."""
    folder = work.place if name in INPUT_FILES else work.out if name in RUN_FILES else newest_checkpoint(work.out)
    file = folder / name
    before = file.read_bytes()
    how(file, draw)
    return Struck(f"{how.__name__} {name}", -signal.SIGKILL, mend=lambda: restore(file, before), damaged=file)


def restore(file: Path, content: bytes) -> None:
    """Put back what a file held, as from a copy."""
    if file.parent.is_dir():
        file.write_bytes(content)
