"""Supervision: the ranks of a training as child processes that end together, with one exit code.

A child is a new Python process, or on Linux a fork of this one (`processes`).
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..checks import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
)
from .processes import STOP_SIGNALS, ForkedChild, give_back_signals, take_stop_signals

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
