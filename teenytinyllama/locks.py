"""What belongs to one process: locks of the kernel, which end with it, and scratch folders, which a later one clears.

Nothing is ever deleted that this package did not make. A scratch folder says so itself: it holds a mark that names the
process that made it.
"""

import contextlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import InputError

if TYPE_CHECKING:
    from filelock import FileLock

_SCRATCH_PREFIX = "ttl-"
_MARK_NAME = "made-by-teenytinyllama.json"


def take_lock(path: Path, refusal: str, seconds: float = 0) -> "FileLock":
    """Take the lock of a file, which is made with its folder; release it after.

    Args:
        path: of the lock.
        refusal: the message when another process holds it.
        seconds: how long to wait for that one.

    Raises:
        InputError: another process holds it.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout as error:
        raise InputError(refusal) from error
    return lock


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give the block an empty folder of its own, and delete it after.

    What a process that was killed has left in `parent` is deleted first: only folders with our mark in them, made by
    this user on this machine, by a process that lives no longer.

    Args:
        parent: exists; the system's folder for temporary files by default.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_dead(place)
    # A name that nobody can foresee: what lies under it was made by this process.
    top = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=place))
    try:
        (top / _MARK_NAME).write_text(json.dumps(_this_process()) + "\n", encoding="utf-8")
        content = top / "content"
        content.mkdir()
        yield content
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _clear_dead(place: Path) -> None:
    for folder in place.glob(f"{_SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # no mark of ours: not our folder
            mark = folder / _MARK_NAME
            if folder.is_symlink() or mark.is_symlink() or {folder.stat().st_uid, mark.stat().st_uid} != {_user()}:
                continue
            if _is_dead(json.loads(mark.read_text(encoding="utf-8"))):
                shutil.rmtree(folder, ignore_errors=True)


def _user() -> int:
    return int(getattr(os, "getuid", lambda: 0)())  # Windows has none, and gives every file to user 0


def _this_process() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Return what tells this machine, since it was booted, and its numbers of processes from others."""
    names = [platform.node()]
    with contextlib.suppress(OSError):  # Linux alone has both; a container counts processes by itself
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _started(pid: int) -> float | None:
    """Return when a process began, which tells it from a later one of the same number; None: there is none."""
    import psutil  # comes with codecarbon

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # somebody else's, so it lives
        return float("nan")


def _is_dead(mark: dict[str, Any]) -> bool:
    if mark["machine"] != _machine():
        return False
    started = _started(int(mark["pid"]))
    return started is None or abs(started - float(mark["started"])) > 1
