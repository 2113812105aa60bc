"""Refusals of bad input: one message that names the field, the value and the fix, and exit code 2.

Everything a user can get wrong raises `InputError`; everything else is a failure of the program and keeps its
traceback. Exit codes follow the design: 0 done, 1 failed, 2 bad input, 75 stopped and resumable.
"""

import difflib
import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

EXIT_DONE, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE = 0, 1, 2, 75
# Of cgroup 2: microseconds of all cores together, in a period of so many; or "max".
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class InputError(ValueError):
    """Bad input by the user: the message names the field, the value, what is allowed and the fix."""


class MissingFileError(InputError, FileNotFoundError):
    """A path given by the user does not exist."""


class MissingPackageError(InputError, ImportError):
    """An optional package is needed for what the user asked; the message has the pip line."""


class RunFailedError(RuntimeError):
    """The work failed for a reason that the message explains; a traceback would add nothing. Exit code 1."""


class StoppedResumable(Exception):
    """A signal stopped the work after everything was saved; the same command resumes it."""


def ensure(condition: object, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds.

    Raises:
        InputError: the condition is false.
    """
    if not condition:
        raise InputError(message)


def near_name(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name nearest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def ensure_packages(extra: str, *names: str) -> None:
    """Check that the packages of an extra are installed, without importing them.

    Raises:
        MissingPackageError: one is not; the message has the pip line.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"{', '.join(missing)}: not installed. Install what this needs: pip install 'teenytinyllama[{extra}]'"
        )


def ensure_file(field: str, path: str | Path, fix: str) -> Path:
    """Return `path` as a Path that exists.

    Raises:
        MissingFileError: nothing is there; `fix` says which command makes it.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{field}={path}: no such file or folder. {fix}")
    return path


def free_disk_bytes(folder: str | Path) -> int:
    """Return the bytes free on the disk that holds `folder`, or will."""
    return shutil.disk_usage(_nearest_existing(folder)).free


def _nearest_existing(folder: str | Path) -> Path:
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


def ensure_folder(field: str, folder: str | Path) -> None:
    """Check that `folder` is one, or could be made.

    Raises:
        InputError: it is a file, or would lie below one.
    """
    existing = _nearest_existing(folder)
    what = "" if existing == Path(folder).absolute() else f"{existing} "
    ensure(existing.is_dir(), f"{field}={folder}: {what}is a file. Choose a folder.")


def format_bytes(count: int) -> str:
    """Return a number of bytes in the unit that suits it, powers of ten: `312 bytes`, `4.2 MB`, `1,250 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:,.0f} {unit}" if value >= 99.95 else f"{value:.{1 if value >= 9.995 else 2}f} {unit}"
    return "1 byte" if count == 1 else f"{count} bytes"


def ensure_disk_space(field: str, folder: str | Path, needed_bytes: int, fix: str) -> None:
    """Check that the disk that will hold `folder` has `needed_bytes` free, plus five per cent.

    Raises:
        InputError: the disk is too full, or `folder` cannot be one.
    """
    ensure_folder(field, folder)
    needed_bytes = math.ceil(needed_bytes * 1.05)
    free_bytes = free_disk_bytes(folder)
    ensure(
        free_bytes >= needed_bytes,
        f"{field}={folder}: about {format_bytes(needed_bytes)} are needed there and {format_bytes(free_bytes)} are "
        f"free. {fix}",
    )


def available_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota
        return cores


def is_main_process() -> bool:
    """Return whether this process is rank 0 (or the only one), as the launcher's environment says."""
    return int(os.environ.get("RANK", "0")) == 0


def run_main(main: Callable[[], int | None]) -> int:
    """Run a program's main function and return its exit code; only outcomes of known cause become one message.

    Every rank of a distributed run meets the same bad input, so only rank 0 prints.
    """
    try:
        return main() or EXIT_DONE
    except BrokenPipeError:  # whoever read the output has seen enough, as in `ttl VERB --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter's last flush goes nowhere
        return EXIT_FAILED
    except InputError as error:
        if is_main_process():
            print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except StoppedResumable as stop:
        if is_main_process():
            print(f"stopped: {stop}", file=sys.stderr)
        return EXIT_RESUMABLE
    except RunFailedError as failure:
        if is_main_process():
            print(f"failed: {failure}", file=sys.stderr)
        return EXIT_FAILED
