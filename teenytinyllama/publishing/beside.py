"""Start `ttl publish --follow` beside a training that has `hub_model_id`, and say at the end where it stands."""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import EXIT_DONE
from ..supervision import SUPERVISOR_VARIABLE
from .publish import PublishConfig, command_for, command_words
from .refusals import check_repository, check_token

LOG_NAME = "publish.log"
# A training that has ended waits this long for its last upload, on a machine that may be paid by the hour.
_LAST_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Follower:
    """The process that publishes a run while it trains."""

    process: "subprocess.Popen[bytes]"
    run: Path
    config: PublishConfig


def check_follower(values: dict[str, Any]) -> PublishConfig | None:
    """Return how a training with these values is to be published while it runs, or None; asks nobody.

    Raises:
        InputError: `hub_model_id` is no repository, there is no token, or the Hub client is offline.
    """
    repository = values.get("hub_model_id")
    if not repository:
        return None
    check_repository(str(repository), "hub_model_id")
    check_token()
    return PublishConfig(to=str(repository), follow=True, public=values.get("hub_private_repo") is False)


def start_follower(run: Path, config: PublishConfig) -> Follower:
    """Start a process that publishes the run, in a session of its own, and return at once.

    It is no rank: nothing waits for it, its end changes nothing, and neither Ctrl-C nor a lost terminal reaches it.
    """
    run.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        SUPERVISOR_VARIABLE: str(os.getpid()),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # its output is a file
        "OMP_NUM_THREADS": "1",
    }
    with (run / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__.split(".")[0], *command_words(run, config)[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"publishing to {config.to} in a process of its own ({process.pid}), see {run / LOG_NAME}", flush=True)
    return Follower(process, run, config)


def report_follower(follower: Follower, code: int) -> None:
    """Say how far publishing has come, after a short wait if the run is finished; never wait for it to end."""
    wait_seconds = _LAST_WAIT_SECONDS if code == EXIT_DONE and follower.process.poll() is None else 0.0
    if wait_seconds:
        print(f"waiting up to {wait_seconds:.0f} s for the last upload; Ctrl-C leaves it to itself", flush=True)
    until = time.monotonic() + wait_seconds
    with contextlib.suppress(KeyboardInterrupt):  # the user need not wait either
        while follower.process.poll() is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
    lines = (follower.run / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    last = lines[-1] if lines else "no word yet"
    ended = follower.process.poll()
    if ended == EXIT_DONE:
        print(f"published  {follower.config.to}; {last}", flush=True)
    elif ended is None:
        print(
            f"publishing goes on by itself in process {follower.process.pid} ({last}). If this machine ends first: "
            f"{command_for(follower.run, follower.config)}",
            flush=True,
        )
    else:
        print(f"publishing ended with code {ended}: {last}", flush=True)
