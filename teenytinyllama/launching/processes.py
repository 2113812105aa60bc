"""Processes: the signals that stop any work, and forks of this process, which has imported the libraries already."""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..checks import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    InputError,
    MissingFileError,
    MissingPackageError,
    RunFailedError,
    StoppedResumable,
)

# The signals that mean "save and stop", to ranks, to stages without ranks and to whoever supervises them; Windows lacks
# the last two. The value says whether a second one insists, and ends the process at once: USR1 is Slurm's usual warning
# before a job's time is over (`--signal=USR1@120`) and may be repeated; HUP is a lost terminal.
STOP_SIGNALS: dict[signal.Signals, bool] = {
    getattr(signal, name): insists
    for name, insists in {"SIGTERM": True, "SIGINT": True, "SIGUSR1": False, "SIGHUP": False}.items()
    if hasattr(signal, name)
}
Handler = Callable[[int, FrameType | None], None]
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in <linux/prctl.h>


def take_stop_signals(handler: Handler) -> dict[signal.Signals, Any]:
    """Let a function handle the stop signals, and return who handled them before, for `give_back_signals`.

    Outside the main thread Python cannot do it, and nothing is done. HUP stays ignored where it is (nohup). An ignored
    INT is taken: a script's background job is started so, but whoever sends one to this process means it.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    hangup = getattr(signal, "SIGHUP", None)
    kept = {hangup} if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN else set()
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS if number not in kept}


def give_back_signals(previous: dict[signal.Signals, Any]) -> None:
    """Give the stop signals back to whoever handled them before `take_stop_signals`."""
    for number, handler in previous.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def stopped_by_signals(kept: str, on_signal: Callable[[], None] | None = None) -> Iterator[None]:
    """Turn the stop signals into `StoppedResumable`; a decorator as well. Outside the main thread Python cannot do it.

    Args:
        kept: what is kept and how to go on, for the message.
        on_signal: called before, in the signal's handler.

    Raises:
        StoppedResumable: a signal came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if on_signal is not None:
            on_signal()
        raise StoppedResumable(f"{signal.Signals(number).name}; {kept}")

    previous = take_stop_signals(stop)
    try:
        yield
    finally:
        give_back_signals(previous)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Leave the block without an error at a stop signal: the usual end of what lasts until somebody ends it."""
    previous = take_stop_signals(signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        give_back_signals(previous)


def end_with(parent: int) -> None:
    """Let Linux send this process a TERM when its parent dies, even of `kill -9`.

    Raises:
        SystemExit: the parent is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit(f"the process {parent} that started this rank is gone")


class ForkedChild:
    """A fork of this process, with the part of `subprocess.Popen` that supervision uses.

    Attributes:
        pid: its process id, and that of its session.
        returncode: its exit code, or the number of the signal that killed it, negative; None while it runs.
    """

    def __init__(self, work: Callable[[], object], output: int | None = None) -> None:
        """Fork, and let the child do the work, with nothing to read, in a session of its own.

        The child ends as Python would: SystemExit gives its exit code, another exception a traceback and 1. It never
        comes back to the callers of this function, whose files and locks are not its own.

        Args:
            work: what the child does.
            output: descriptor for its stdout and stderr; None: where this process writes.
        """
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.returncode: int | None = None
        # A signal that comes while the child still has this process's handlers waits until it has its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _work_and_end(work, output, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int | None:
        """Return the exit code once it has ended."""
        return self._wait(0)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill_group(self) -> None:
        """Kill what is left of it and of all that it started, and wait for it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _work_and_end(work: Callable[[], object], output: int | None, mask: set[int | signal.Signals]) -> NoReturn:
    """Do the work in a process that was just forked, and end it."""
    code = EXIT_FAILED
    try:
        os.setsid()
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        code = _exit_code_of(work)
        # As multiprocessing does in its forks, for os._exit does neither: tell pools that are open to end their threads
        # (torch's compiler leaves one), wait for all threads that are no daemons, then call what is to be called.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a reader that has gone, a stream that is closed
                stream.flush()
        os._exit(code)


def _exit_code_of(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or EXIT_DONE
        print(end.code, file=sys.stderr)
        return EXIT_FAILED
    except BaseException:
        traceback.print_exc()
        return EXIT_FAILED
    return EXIT_DONE


class ForkServer:
    """This process as the parent of forks: it has imported what its children need, and has nothing that forks lose.

    A thread of a library, a lock that it holds and a context of a GPU do not survive a fork. So whatever may start one
    is done in a child too (`call`); threads that imports start belong to libraries that renew them after a fork
    (OpenBLAS, jemalloc, NVML).
    """

    def __init__(self, allowed: bool, modules: Sequence[str]) -> None:
        """Import the modules if this process may fork.

        Args:
            allowed: nothing else has happened in this process, so that threads beside Python's are those of imports.
            modules: what the children import first.
        """
        self._threads = 0
        if not allowed or sys.platform != "linux":
            return
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for GPUs must not start CUDA here
        for module in modules:
            importlib.import_module(module)
        if "torch" in sys.modules:
            sys.modules["torch"].accelerator.device_count()  # the driver starts a thread when it is asked
        self._threads = _count_threads()
        gc.freeze()  # what is shared with the children stays shared

    @property
    def can_fork(self) -> bool:
        """Return whether this process can still be forked."""
        if not self._threads or threading.active_count() > 1 or _count_threads() > self._threads:
            return False
        torch = sys.modules.get("torch")
        return torch is None or not torch.cuda.is_initialized()

    def call(self, function: Callable[[], Any], folder: Path) -> Any:
        """Return what a function returns, a JSON value, computed in a fork, or here where none can be made.

        A signal that ends the wait ends the child too.

        Args:
            function: may start threads.
            folder: exists; the result is handed over in a file there.

        Raises:
            InputError: as raised by the function.
            RunFailedError: as raised by the function, or the child died; then its message stands above.
        """
        if not self.can_fork:
            return function()
        answer = folder / "answer.json"
        answer.unlink(missing_ok=True)
        parent = os.getpid()

        def work() -> None:
            end_with(parent)
            with stopped_by_signals("the process that does it"):
                answer.write_text(json.dumps(_answer_of(function)), encoding="utf-8")

        child = ForkedChild(work)
        try:
            code = child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(StoppedResumable):  # a second signal: what it has begun is cut off
                child.wait()
            raise
        finally:
            child.kill_group()
        return _read_answer(code, answer)


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


# What a child may hand over as the reason why there is no result.
_REASONS = {kind.__name__: kind for kind in (InputError, MissingFileError, MissingPackageError, RunFailedError)}


def _answer_of(function: Callable[[], Any]) -> dict[str, Any]:
    """Return a function's result, and this package's variables, which say what time and rows are accounted for."""
    try:
        result = function()
        return {"result": result, "variables": {key: text for key, text in os.environ.items() if key[:4] == "TTL_"}}
    except tuple(_REASONS.values()) as error:
        kind = next(name for name, known in _REASONS.items() if type(error) is known)
        return {"error": kind, "text": str(error)}
    except StoppedResumable:  # the parent has got the signal, and says so
        raise SystemExit(EXIT_RESUMABLE) from None


def _read_answer(code: int | None, path: Path) -> Any:
    if code:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        raise RunFailedError(f"the process that checks and prepares was {how}{hint}; no training was started.")
    answer = json.loads(path.read_text(encoding="utf-8"))
    if "error" in answer:
        raise _REASONS[answer["error"]](answer["text"])
    os.environ.update(answer["variables"])
    return answer["result"]
