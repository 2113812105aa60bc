"""Signals end a work whose finished parts are kept: with one line and the exit code that says it can go on."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from .checks import StoppedResumable

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stopped_by_signals(what_follows: str, on_signal: Callable[[], None] | None = None) -> Iterator[None]:
    """Turn TERM and INT into `StoppedResumable`; a decorator as well. Outside the main thread Python cannot do it.

    Args:
        what_follows: what is kept and how to go on, for the message.
        on_signal: called before, in the signal's handler.

    Raises:
        StoppedResumable: a signal came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if on_signal is not None:
            on_signal()
        raise StoppedResumable(f"{signal.Signals(number).name}; {what_follows}")

    in_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, stop) for number in _STOP_SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
