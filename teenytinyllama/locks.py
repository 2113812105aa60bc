"""Locks between processes: of the kernel, so that they end with the process that holds them, however that ends."""

from pathlib import Path
from typing import TYPE_CHECKING

from .checks import InputError

if TYPE_CHECKING:
    from filelock import FileLock


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
