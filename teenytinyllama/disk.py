"""The disk: files that are replaced as a whole, files and folders that a power cut must not lose, scratch folders.

A scratch folder holds a mark that names the process that made it, by which a later process knows what a killed one
left.
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
from typing import Any

_SCRATCH_PREFIX = "ttl-"
_MARK_NAME = "made-by-teenytinyllama.json"


def replace_file(path: Path, content: bytes | str, suffix: str = ".partial") -> None:
    """Write a file so that a reader, also after a kill or a power cut, sees the old one or the whole new one.

    Args:
        path: the file.
        content: bytes, or a text that is written in UTF-8.
        suffix: of the file that becomes `path`; processes that may write at the same moment need their own.
    """
    partial = path.with_name(path.name + suffix)
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_to_disk(path: Path) -> None:
    """Wait until the system has written a file, or the names in a folder, from its memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Give the block an empty folder of its own, and delete it afterwards.

    First, what killed processes have left in `parent` is deleted: only folders with a mark of this package, made by
    this user on this machine, whose process has ended.

    Args:
        parent: an existing folder; the system's folder for temporary files by default.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_abandoned(place)
    # Nobody can foresee this name, so nobody else has put anything there.
    top = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=place))
    try:
        process = {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}
        (top / _MARK_NAME).write_text(json.dumps(process) + "\n", encoding="utf-8")
        content = top / "content"
        content.mkdir()
        yield content
    finally:
        shutil.rmtree(top, ignore_errors=True)


def _clear_abandoned(place: Path) -> None:
    for folder in place.glob(f"{_SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # no mark: not a folder of this package
            mark = folder / _MARK_NAME
            if folder.is_symlink() or mark.is_symlink() or {folder.stat().st_uid, mark.stat().st_uid} != {_user()}:
                continue
            if _has_ended(json.loads(mark.read_text(encoding="utf-8"))):
                shutil.rmtree(folder, ignore_errors=True)


def _user() -> int:
    return int(getattr(os, "getuid", lambda: 0)())  # Windows has none, and gives every file to user 0


def _machine() -> str:
    """Return a name for this machine since its last boot, and for its container, which numbers processes by itself."""
    names = [platform.node()]
    with contextlib.suppress(OSError):  # only Linux has these files
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)


def _started(pid: int) -> float | None:
    """Return when a process began, which differs for a later process of the same number; None: there is no process."""
    import psutil  # comes with codecarbon

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:  # another user's process, which is alive
        return float("nan")


def _has_ended(mark: dict[str, Any]) -> bool:
    """Return whether the process of a mark is known to have ended; of another machine's processes nothing is known."""
    started = _started(int(mark["pid"])) if mark["machine"] == _machine() else float("nan")
    return started is None or abs(started - float(mark["started"])) > 1
