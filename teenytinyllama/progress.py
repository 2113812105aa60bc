"""Bars while something works: how far it is, and how long the rest takes.

Bars are on standard error and on a terminal alone: neither a pipe nor a log gets one. Work of less than a second shows
none. All bars are made by `progress` but those of a training, whose callbacks begin and end them.
"""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import is_main_process

if TYPE_CHECKING:
    from tqdm import tqdm

BAR_DELAY = 1.0  # seconds of work before its bar appears, so that short work shows none
_READERS: list[Callable[[float], object]] = []  # who is told of bytes that are read, the newest last


def has_colours(stream: Any) -> bool:
    """Return whether a stream is a terminal that shows colours, and nobody has forbidden them by NO_COLOR."""
    is_terminal = bool(getattr(stream, "isatty", lambda: False)())
    return is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def progress(
    items: Iterable[Any] | None, description: str, unit: str, *, total: float | None = None, done: float = 0
) -> "tqdm[Any]":
    """Return a bar for work that can take over ten seconds; it yields the items and counts them, or `update` counts.

    With a total (or items that have a length) it shows the share, the rate and the time left; without one a counter
    and the rate. It goes away when the work ends or is stopped. Lines that are printed meanwhile go through `say`.
    Nothing is shown where standard error is no terminal, by ranks other than the first, or in another thread than the
    main one.

    Args:
        items: what is worked on, or None.
        description: a word or two in front.
        unit: what is counted, in the plural; `B` for bytes.
        total: how many there are; by default the items' length, if they have one.
        done: how many of them an earlier start has done.
    """
    is_silent = not is_main_process() or threading.current_thread() is not threading.main_thread()
    return _bar_class()(items, description, total, initial=done, unit="B" if unit == "B" else f" {unit}",
                        unit_scale=unit == "B", leave=False, delay=BAR_DELAY, mininterval=0.5, miniters=1,
                        dynamic_ncols=True, disable=True if is_silent else None)  # fmt: skip


@functools.cache
def _bar_class() -> "type[tqdm[Any]]":
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar that is drawn after its delay alone, also when a line is printed or another process has moved it."""

        last_print_t: float
        monitor_interval = 0  # no thread that looks for slow bars: it would keep this process from being forked

        def display(self, *args: Any, **kwargs: Any) -> Any:
            """Draw the bar; `close` clears those alone whose last print is later than their delay."""
            now = time.time()
            shown = getattr(self, "start_t", now) + self.delay  # the first time it is not begun yet
            if now < shown:
                return None
            self.last_print_t = max(getattr(self, "last_print_t", 0), shown)
            return super().display(*args, **kwargs)

    return Bar


def say(text: str) -> None:
    """Print a line on standard output, above the bar where one is shown."""
    import multiprocessing

    from tqdm import tqdm

    if multiprocessing.parent_process() is not None and has_colours(sys.stdout):
        text = f"\r\033[K{text}"  # the bar is of the process that started this one, and is drawn again within a second
    tqdm.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def told_of_reads(listener: Callable[[float], object]) -> Iterator[None]:
    """Call the listener with the bytes of input files that are read within the block, as they lie on the disk."""
    _READERS.append(listener)
    try:
        yield
    finally:
        _READERS.remove(listener)


def tell_read(num_bytes: float) -> None:
    """Tell whoever listens that so many bytes more of an input file have been read."""
    if _READERS:
        _READERS[-1](num_bytes)


@contextlib.contextmanager
def reading_bar(paths: Iterable[Path], description: str) -> Iterator[None]:
    """Show while the block reads these files how many of their bytes it has read, and how long the rest takes."""
    total = sum(path.stat().st_size for path in paths)
    with (
        progress(None, description, "B", total=total) as bar,
        told_of_reads(lambda num_bytes: bar.update(min(num_bytes, total - bar.n))),
    ):
        yield
