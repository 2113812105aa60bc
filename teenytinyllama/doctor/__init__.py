"""Before a run: what can go wrong is looked for while it costs nothing (`ttl doctor`).

Here is what each check says, and the checks of rows, clock, disk and learning rate.

`ttl doctor` makes them all; `ttl pretrain` makes these few by itself before a run of hours (`look_briefly`).
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checks import InputError, ensure_folder, format_bytes, nearest_existing
from ..data.packed import PackedCorpus, RowLook, look_at_rows
from ..disk import scratch_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

State = Literal["ok", "warning", "stop"]


@dataclass(frozen=True)
class Diagnosis:
    """What one check found.

    Attributes:
        name: of the check.
        state: ok; warning: the run can start, and somebody should look first; stop: it would fail, or be of no use.
        text: what was found, and for a stop the reason.
        fix: what to do about it; empty where all is well.
        figure: a measured number that later checks use; the check says which.
    """

    name: str
    state: State
    text: str
    fix: str = ""
    figure: float = 0.0

    @property
    def line(self) -> str:
        """Return the finding as a line of the report."""
        return f"{self.state:8} {self.name:10} {self.text}{f'. {self.fix}' if self.fix else ''}"


def refusal_of(name: str, error: InputError) -> Diagnosis:
    """Return the finding for what the training itself would refuse: its message has reason and fix."""
    return Diagnosis(name, "stop", str(error))


# Shares of all tokens of the rows. A tokenizer of ours has none that is unknown, because it falls back to bytes. A
# letter in a thousand that is lost is worth a look; one token in twenty is another language or a broken encoding.
# Byte tokens stand for characters outside of the vocabulary, two to four for each. Assumed.
UNKNOWN_SHARES = (0.001, 0.05)
BYTE_SHARE = 0.2
# Shares of the rows that equal an earlier row: more than repeated forms and licences; the corpus given twice. Assumed.
REPEATED_SHARES = (0.01, 0.5)


def _state(value: float, bounds: tuple[float, float]) -> State:
    return "ok" if value < bounds[0] else "warning" if value < bounds[1] else "stop"


def show_rows(look: RowLook) -> list[str]:
    """Return the decoded rows of a look as lines."""
    return [f"row {number:<8,} {text}" for number, text in look.shown]


def judge_rows(look: RowLook) -> list[Diagnosis]:
    """Return what a look at packed rows says about tokens and about rows that come twice."""
    tokens = f"{100 * look.unknown_share:.3f} % unknown tokens and {100 * look.byte_share:.2f} % byte tokens"
    state, fix = _state(look.unknown_share, UNKNOWN_SHARES), ""
    if state != "ok":
        fix = "Use a tokenizer with byte_fallback (`ttl tokenizer` makes one), or look at the encoding of the texts"
    elif look.byte_share >= BYTE_SHARE:
        state, fix = "warning", "Is the text in the tokenizer's language, and in UTF-8? Look at the rows above"
    found = [Diagnosis("tokens", state, f"{tokens} in {look.tokens:,}", fix)]
    share = look.repeated / look.rows
    state = _state(share, REPEATED_SHARES)
    fix = "" if state == "ok" else "Leave out inputs that are given twice; `ttl corpus` removes duplicates"
    whole = (
        f"{look.rows:,} rows" if look.rows == look.all_rows else f"the first {look.rows:,} of {look.all_rows:,} rows"
    )
    text = f"{look.repeated:,} of {whole} equal an earlier one ({100 * share:.2f} %)"
    found.append(Diagnosis("duplicates", state, text, fix))
    if not look.documents:
        text = f"the tokenizer's end token stands nowhere in {look.rows:,} rows"
        found.append(Diagnosis("documents", "warning", text, "The model cannot learn where a text ends: pack again"))
    return found


# Nothing of this package is older than the first date; beyond the second the clock is broken.
_EARLIEST, _LATEST = datetime(2026, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
# Seconds between the clock of this computer and that of a file server. The times of files in FAT have steps of two
# seconds; NTP keeps clocks within a second.
_SKEW_SECONDS = (5.0, 3600.0)


def judge_clock(now: float, file_time: float) -> Diagnosis:
    """Return what a date and the time of a file that was just written say.

    Args:
        now: seconds since 1970 by this computer's clock.
        file_time: the same moment by the clock of the file system.
    """
    date, skew = datetime.fromtimestamp(now, UTC), file_time - now
    text = f"{date:%Y-%m-%d %H:%M:%S} UTC, the run folder's file system differs by {abs(skew):,.1f} s"
    if not _EARLIEST <= date <= _LATEST:
        return Diagnosis(
            "clock", "stop", text, "Set the clock (`timedatectl set-ntp true`): energy and cards are dated"
        )
    state = _state(abs(skew), _SKEW_SECONDS)
    fix = "" if state == "ok" else "Set the clocks of this computer and of the file server by NTP"
    return Diagnosis("clock", state, text, fix)


def check_clock(folder: Path) -> Diagnosis:
    """Check the date, and the clock of the file system that holds a run's folder or would hold it.

    A file is written beside the run's folder where that does not exist yet, and deleted.
    """
    try:
        ensure_folder("output_dir", folder)
        with scratch_folder(nearest_existing(folder)) as scratch:
            file = scratch / "clock"
            before = time.time()
            file.write_bytes(b"x")
            return judge_clock((before + time.time()) / 2, file.stat().st_mtime)
    except InputError as error:
        return refusal_of("clock", error)
    except OSError as error:
        return _cannot_write("clock", folder, error)


WRITE_BYTES = 64_000_000
_BRIEF_BYTES, _BRIEF_SECONDS = 16_000_000, 0.5
_PART_BYTES = 4_000_000
# Bytes a second. A laptop's old hard disk writes 50 to 100 MB/s, a network drive over a slow line less than ten.
_SLOW_WRITES, _STALLED_WRITES = 20e6, 1e6


def measure_writing(folder: Path, size_bytes: int = WRITE_BYTES, most_seconds: float = 30.0) -> float:
    """Return the bytes a second that reach the disk of a folder; the file is deleted.

    Args:
        folder: exists.
        size_bytes: to write.
        most_seconds: no further part is written after so long.

    Raises:
        OSError: the disk is full or broken.
    """
    part = os.urandom(_PART_BYTES)  # some file systems compress
    with scratch_folder(folder) as scratch, (scratch / "writes").open("wb") as file:
        written, start = 0, time.perf_counter()
        while written < size_bytes and time.perf_counter() - start < most_seconds:
            written += file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return written / (time.perf_counter() - start)


def judge_writing(bytes_per_second: float, checkpoint_bytes: int) -> Diagnosis:
    """Return what a speed of writing means for checkpoints of so many bytes; the speed is the figure."""
    seconds = checkpoint_bytes / bytes_per_second
    text = f"{format_bytes(round(bytes_per_second))}/s reach the run folder's disk"
    text += f": a checkpoint of {format_bytes(checkpoint_bytes)} takes {seconds:,.1f} s" if checkpoint_bytes else ""
    state: State = (
        "stop" if bytes_per_second < _STALLED_WRITES else "warning" if bytes_per_second < _SLOW_WRITES else "ok"
    )
    fix = "" if state == "ok" else "Choose an output_dir on a local disk, or save less often (save_steps)"
    return Diagnosis("writing", state, text, fix, bytes_per_second)


def check_writing(folder: Path, checkpoint_bytes: int, *, brief: bool = False) -> Diagnosis:
    """Check how fast the disk takes bytes that holds a run's folder, or would hold it.

    Args:
        folder: of the run; it need not exist.
        checkpoint_bytes: of a checkpoint of the run; 0: not known.
        brief: less than a second on a disk that answers.
    """
    size, seconds = (_BRIEF_BYTES, _BRIEF_SECONDS) if brief else (WRITE_BYTES, 30.0)
    try:
        ensure_folder("output_dir", folder)
        return judge_writing(measure_writing(nearest_existing(folder), size, seconds), checkpoint_bytes)
    except InputError as error:
        return refusal_of("writing", error)
    except OSError as error:
        return _cannot_write("writing", folder, error)


def _cannot_write(name: str, folder: Path, error: OSError) -> Diagnosis:
    return Diagnosis(
        name, "stop", f"output_dir={folder}: {error.strerror}", "Free some space, or choose another folder"
    )


_POINTS = 500  # of the picture of the learning rate
_PICTURE_MARK = "teenytinyllama doctor"  # in the pictures that may be overwritten


def learning_rates(config: Any) -> Callable[[int], float] | None:
    """Return the learning rate of a step, as the Trainer's scheduler will set it; None: it depends on the scores.

    Args:
        config: a `RunSettings` with its length.
    """
    import torch
    from transformers import get_scheduler

    parameter = torch.zeros(1)
    scheduler = get_scheduler(
        config.lr_scheduler_type,
        torch.optim.SGD([parameter], lr=config.learning_rate),
        num_warmup_steps=config.get_warmup_steps(config.max_steps),
        num_training_steps=config.max_steps,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs or {},
    )
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return None
    share = scheduler.lr_lambdas[0]
    return lambda step: config.learning_rate * float(share(step))


def check_rate(config: Any, picture: str | None) -> Diagnosis:
    """Draw the learning rate of a run, and check its beginning, its peak and its end.

    Raises:
        InputError: the picture would overwrite a file.
    """
    name = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
    rate_of = learning_rates(config)
    if rate_of is None:
        return Diagnosis("rate", "warning", f"lr_scheduler_type={name} follows the scores, so no curve can be drawn")
    last = config.max_steps
    steps = sorted({round(place * last / _POINTS) for place in range(_POINTS + 1)})
    rates = [rate_of(step) for step in steps]
    peak, warmup = max(rates), config.get_warmup_steps(last)
    output = Path(str(config.output_dir))
    path = Path(picture) if picture else output.parent / f"{output.name}-learning-rate.png"
    state, fix = judge_rate(warmup, last, rates[-1] / peak if peak else 1.0, peak)
    drawn = f"drawn in {path}"
    try:
        draw_rate(path, steps, rates, name)
    except OSError as error:
        drawn = f"not drawn in {path} ({error.strerror})"
        state, fix = ("warning", "Give another file with --plot") if state == "ok" else (state, fix)
    text = f"{name}: {rates[0]:.3g}, {peak:.3g} after {warmup:,} of {last:,} steps, {rates[-1]:.3g} at the end; {drawn}"
    return Diagnosis("rate", state, text, fix)


def judge_rate(warmup: int, steps: int, end_share: float, peak: float) -> tuple[State, str]:
    """Return what a curve of the learning rate means, and the fix.

    Args:
        warmup: steps of the warm-up.
        steps: of the run.
        end_share: of the peak, at the last step.
        peak: highest rate.
    """
    if warmup >= steps or not peak:
        return "stop", "The rate never reaches learning_rate: lower warmup_steps, or make the run longer"
    if warmup > 0.3 * steps:
        return "warning", "A third of the run or more is warm-up: lower warmup_steps"
    if end_share > 0.5:
        return "warning", "The rate hardly falls: a decay to a tenth or to zero gives a better model at the same cost"
    return "ok", ""


def draw_rate(path: Path, steps: list[int], rates: list[float], name: str) -> None:
    """Draw a curve of learning rates into a PNG.

    Raises:
        InputError: another file is there, or its folder is none.
    """
    from matplotlib.figure import Figure

    shown = f"plot={path}"
    if path.is_dir():
        raise InputError(f"{shown}: is a folder. Give the name of a PNG file.")
    if path.exists() and _PICTURE_MARK.encode() not in path.read_bytes()[:4096]:
        raise InputError(f"{shown}: is there and was not drawn by this command. Give another name with --plot.")
    figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, rates)
    axes.set(xlabel="step", ylabel="learning rate", title=name, ylim=(0, None))
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Description": _PICTURE_MARK})


_BRIEF_TOKENS = 20_000_000


def look_briefly(
    packed: PackedCorpus, tokenizer: "PreTrainedTokenizerBase", folder: Path, checkpoint_bytes: int, hours: float
) -> str:
    """Look at rows, clock and disk before a long run, print what was found, and return why not to start it, or "".

    Args:
        packed: the rows; the first twenty million tokens of them are read.
        tokenizer: of the rows.
        folder: of the run; it need not exist.
        checkpoint_bytes: of a checkpoint.
        hours: that the run will take, about.
    """
    print(f"before the run of about {show_hours(hours)} (`ttl doctor RUN.yaml` looks at more, and tests the speed)")
    look = look_at_rows(packed, tokenizer, _BRIEF_TOKENS)
    found = [*judge_rows(look), check_clock(folder), check_writing(folder, checkpoint_bytes, brief=True)]
    print("\n".join([*show_rows(look), *(item.line for item in found)]), flush=True)
    reasons = [f"{item.name}: {item.text}. {item.fix}" for item in found if item.state == "stop"]
    return f"{'; '.join(reasons)}. With preflight: false the run starts all the same." if reasons else ""


def show_hours(hours: float) -> str:
    """Return a time in the unit that a reader would choose."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
