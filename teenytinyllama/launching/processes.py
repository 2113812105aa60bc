"""Processes: the signals that stop any work, forks of this process, and the ranks of a training, which end together.

A rank is a child of this process: a new Python process, or on Linux a fork of this one, which has imported the
libraries already. All of them have one exit code (`supervise`).
"""

import atexit
import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..checks import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
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
            raise SystemExit(f"the process {parent} that started this one is gone")


class ForkedChild:
    """A fork of this process, with the part of `subprocess.Popen` that `supervise` uses.

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


# The process id of `ttl`, for `distributed.prepare_rank`.
SUPERVISOR_VARIABLE = "TTL_SUPERVISOR_PID"


_POLL_SECONDS = 0.05
_GO_ON = "The same command goes on from the newest complete checkpoint, or begins again without one."
# How long the other ranks may go on after one failed: they mostly wait for it in a collective that never ends.
_FAILURE_GRACE_SECONDS = 5.0
# Bad input is met by every rank, but not at the same moment.
_BAD_INPUT_GRACE_SECONDS = 30.0


def supervise(
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    log: Path | None = None,
    *,
    forks: bool = False,
    elsewhere: Callable[[], str | None] = lambda: None,
) -> int:
    """Run one process per environment and return the exit code of the whole.

    Each process has a session of its own, so the terminal's Ctrl-C reaches only this process, and what a rank started
    ends with it. TERM, INT, USR1 and HUP are handed on once, as TERM: all mean "save and stop", and TERM ends a rank
    without a traceback as long as it has nothing to save. A second TERM or INT kills.

    Args:
        command: the same for all ranks: Python, a script and its arguments.
        environments: whole environment of each rank, in order of rank.
        log: file for what they write to stdout and stderr; None: where this process writes.
        forks: fork this process, which must allow it (see `ForkServer`), instead of starting Python anew.
        elsewhere: asked all the time; returns why ranks on other machines ended without these, or None.

    Returns:
        0: all done. 2: a rank refused its input. 75: stopped by a signal, the same command resumes (or starts again,
        if the signal came before training began). 1: anything else, with one line on stderr.
    """
    ranks: list[Child] = []
    with _received_signals() as received, contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        try:
            for environment in environments:
                environment = environment | {SUPERVISOR_VARIABLE: str(os.getpid())}
                if forks:
                    ranks.append(_fork_script(command, environment, output.fileno() if output else None))
                    continue
                ranks.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )
            return _watch(ranks, received, elsewhere)
        finally:
            _kill(ranks)


Child = ForkedChild | subprocess.Popen[bytes]


def _fork_script(command: Sequence[str], environment: dict[str, str], output: int | None) -> ForkedChild:
    """Fork a rank, which runs the script of a command in its environment."""
    script = list(command[1:])

    def work() -> None:
        os.environ.clear()
        os.environ.update(environment)
        torch = sys.modules.get("torch")
        if torch and torch.cuda._is_in_bad_fork():  # the driver was asked for GPUs here, because NVML did not answer
            os.execve(command[0], [*command], environment)
        if torch and "OMP_NUM_THREADS" in environment:  # OpenMP itself has read the parent's environment
            torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        sys.argv = script
        sys.path[0] = str(Path(script[0]).resolve().parent)
        runpy.run_path(script[0], run_name="__main__")

    return ForkedChild(work, output)


@contextlib.contextmanager
def _received_signals() -> Iterator[list[signal.Signals]]:
    """Collect the stop signals in a list instead of ending."""
    received: list[signal.Signals] = []
    previous = take_stop_signals(lambda number, frame: received.append(signal.Signals(number)))
    try:
        yield received
    finally:
        give_back_signals(previous)


def _watch(
    ranks: Sequence[Child], received: list[signal.Signals], elsewhere: Callable[[], str | None] = lambda: None
) -> int:
    """Wait for the ranks, hand on signals, and end those that wait for a dead one."""
    seen, deadline, first_failed = 0, float("inf"), None
    while any(rank.poll() is None for rank in ranks):
        time.sleep(_POLL_SECONDS)
        new, stopping = received[seen:], seen > 0
        seen += len(new)
        if stopping and any(STOP_SIGNALS[number] for number in new):
            _say(f"killed at the second signal: what was computed after the last complete checkpoint is lost. {_GO_ON}")
            return EXIT_FAILED
        if new and not stopping:
            _say(f"{new[0].name}: asking {_all_of(ranks)} to save and stop; send it again to kill.")
            _send(ranks, signal.SIGTERM)
        if first_failed is None:
            first_failed = _first_failed(ranks, stopping=seen > 0)
            if first_failed is not None:
                refused = ranks[first_failed].returncode == EXIT_BAD_INPUT
                deadline = time.monotonic() + (_BAD_INPUT_GRACE_SECONDS if refused else _FAILURE_GRACE_SECONDS)
        if trouble := elsewhere():
            return _end_for_others(ranks, trouble)
        if time.monotonic() > deadline:
            _kill(ranks)
    if first_failed is None:
        first_failed = _first_failed(ranks, stopping=seen > 0)
    return _outcome(ranks, first_failed, stopping=seen > 0)


def _first_failed(ranks: Sequence[Child], *, stopping: bool) -> int | None:
    """Return the rank to blame among those that have ended, or None.

    A crash of one rank soon makes the others fail too, so a death by signal goes before bad input, and that before
    other exit codes. A rank that dies of our own TERM before it could handle it is the last to blame.
    """

    def blame(rank: int) -> int:
        code = ranks[rank].returncode or 0
        if stopping and code == -signal.SIGTERM:
            return 3
        return 0 if code < 0 else 1 if code == EXIT_BAD_INPUT else 2

    failed = [i for i, rank in enumerate(ranks) if rank.poll() not in (None, EXIT_DONE, EXIT_RESUMABLE)]
    return min(failed, key=blame, default=None)


def _outcome(ranks: Sequence[Child], failed: int | None, *, stopping: bool) -> int:
    """Return the exit code of the whole once all ranks have ended, and say why if none of them could."""
    if failed is None:
        return EXIT_RESUMABLE if any(rank.returncode == EXIT_RESUMABLE for rank in ranks) else EXIT_DONE
    code = ranks[failed].returncode or 0
    if code == EXIT_BAD_INPUT:
        return EXIT_BAD_INPUT
    if stopping and code == -signal.SIGTERM:
        _say("stopped while not training: nothing on disk was lost, the same command starts again or resumes.")
        return EXIT_RESUMABLE
    who = f"rank {failed} of {len(ranks)}" if len(ranks) > 1 else "the training process"
    others = "; the other ranks were ended" if len(ranks) > 1 else ""
    if code < 0:
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        _say(f"error: {who} was killed by {signal.Signals(-code).name}{hint}{others}. {_GO_ON}")
    else:
        _say(f"error: {who} ended with exit code {code}, its message is above{others}.")
    return EXIT_FAILED


def _end_for_others(ranks: Sequence[Child], trouble: str) -> int:
    """End ranks that wait for those of another machine, and say why."""
    deadline = time.monotonic() + _FAILURE_GRACE_SECONDS
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _kill(ranks)
    _say(f"error: {trouble}; the ranks here were ended. The same command on all machines resumes.")
    return EXIT_FAILED


def _all_of(ranks: Sequence[Child]) -> str:
    return f"all {len(ranks)} ranks" if len(ranks) > 1 else "the training"


def _send(ranks: Sequence[Child], number: signal.Signals) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)


def _kill(ranks: Sequence[Child]) -> None:
    """Kill what is left of the ranks and of all that they started, and wait for the ranks."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.pid, signal.SIGKILL)
    for rank in ranks:
        rank.wait()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
