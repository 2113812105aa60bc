"""Publishing a run while it trains: a process of its own reads the run's folder and shares nothing else with it.

It holds a checkpoint against deletion only while it uploads it, works at the lowest priority, and keeps what it has
published in `.publish/progress.json`, so that it can be ended at any moment and go on later. A training that has
`hub_model_id` starts `ttl publish --follow` beside it and says at its end how far publishing has come.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpointing.checkpoints import checkpoint_faults, complete_checkpoints, lease
from ..checks import EXIT_DONE, EXIT_RESUMABLE, InputError, RunFailedError, StoppedResumable, ensure
from ..launching.processes import SUPERVISOR_VARIABLE, stopped_by_signals
from ..stage_folder import (
    ENVIRONMENT_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    PROGRESS_FOLDER,
    PROGRESS_NAME,
    take_lock,
    write_json,
)
from .connection import Hub, open_hub
from .contents import index_upload, read_checkpoint, run_identity
from .hub import RepositoryState, check_distinct, kept_entries, merge_entries, prepare
from .publish import (
    PublishConfig,
    RunBucket,
    command_for,
    finishing_command,
    main_with_config,
    open_bucket,
    publish,
    push_and_say,
)
from .safety import check_repository, check_token

LOG_NAME = "publish.log"
# A training that has ended waits this long for its last upload, on a machine that may be paid by the hour.
_LAST_WAIT_SECONDS = 60.0
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.2, 600.0
# Passes over the run without success once it has ended, before the command to finish by hand is left to the user.
_PASSES_AFTER_END = 5
# How long an upload that cannot be interrupted may go on after a signal.
_END_SECONDS = 10.0


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
            [sys.executable, "-m", __name__.split(".")[0], *shlex.split(command_for(run, config))[1:]],
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
    until = time.monotonic() + wait_seconds
    with contextlib.suppress(KeyboardInterrupt):  # the user need not wait either, from the moment that this says so
        if wait_seconds:
            print(f"waiting up to {wait_seconds:.0f} s for the last upload; Ctrl-C leaves it to itself", flush=True)
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


@dataclass
class Progress:
    """What of a run is published already, kept in the run's folder.

    Attributes:
        path: of the file.
        repository: where to.
        identity: of the run.
        entries: of the checkpoints that are on the Hub.
        main: whether the finished run is on main, or in the bucket.
    """

    path: Path
    repository: str
    identity: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    main: bool = False

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {"repository": self.repository, "identity": self.identity, "checkpoints": self.entries}
        write_json(self.path, {**content, "main": self.main})


def read_progress(run: Path, repository: str) -> Progress:
    """Return what is published of a run in a repository; nothing, if the file is of another run or repository."""
    path = run / PROGRESS_FOLDER / PROGRESS_NAME
    new = Progress(path, repository, run_identity(run))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["repository"], content["identity"]) == (repository, new.identity):
            return Progress(path, repository, new.identity, list(content["checkpoints"]), False)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # none yet, or one that nobody can use: what is on the Hub is found there
    return new


def run_publish(run: Path, config: PublishConfig) -> None:
    """Publish a run, at once or while it trains: see `publish` and `follow`."""
    if config.follow:
        follow(run, config)
    else:
        publish(run, config)


def follow(run: Path, config: PublishConfig) -> None:
    """Publish each checkpoint of a run when it is complete, and the run when it has ended.

    Ends when the finished run is published, or, if `ttl` started it, when that has ended and nothing is left to do.

    Raises:
        InputError: the Hub refuses for good, or no run is there.
        StoppedResumable: a signal, or the training was stopped before its end; the same command goes on.
        RunFailedError: the training has ended and the Hub gives no good answers.
    """
    check_token()
    _lower_priority()
    command = command_for(run, config)
    with stopped_by_signals(f"what is published is recorded, this goes on: {command}", _force_end_later):
        has_ended, is_complete = _supervisor_watch(), _completion(run)
        ensure(run.is_dir() or not has_ended(), f"RUN={run}: no such folder. Give the output_dir of a run.")
        while not (run / ENVIRONMENT_NAME).is_file():
            ensure(not has_ended(), f"RUN={run}: no run began there.")
            time.sleep(min(1.0, config.poll_seconds))
        with _hold_run(run, config, has_ended), finishing_command(run, config):
            _follow(run, config, has_ended, is_complete)


def _completion(run: Path) -> Callable[[], bool]:
    """Return what says whether a run is finished.

    For a process that `ttl` started with the training, a manifest that was there before is that of a shorter run,
    which the training goes on from and will take away.
    """
    manifest = run / MANIFEST_NAME

    def found() -> tuple[int, int] | None:
        try:
            status = manifest.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    before = found() if SUPERVISOR_VARIABLE in os.environ else None
    return lambda: found() not in (None, before)


def _follow(run: Path, config: PublishConfig, has_ended: Callable[[], bool], is_complete: Callable[[], bool]) -> None:
    hub: Hub | None = None
    left_out: set[int] = set()
    failures = 0
    while True:
        ended, complete = has_ended(), is_complete()
        try:
            hub = hub or open_hub(config.limits())
            _publish_new(hub, run, config, complete, left_out)
            failures = 0
            if complete:
                return
            if ended:
                raise StoppedResumable(f"the training has stopped; later: {command_for(run, config)}")
        except RunFailedError as error:
            failures += 1
            if (ended or complete) and failures >= _PASSES_AFTER_END:
                raise
            _say(f"no connection: {error}")
        seconds = min(config.poll_seconds * 2 ** min(failures, 10), _LONGEST_POLL_SECONDS)
        _wait(seconds, lambda: (has_ended(), is_complete()))


def _wait(seconds: float, state: Callable[[], tuple[bool, bool]]) -> None:
    """Sleep, but not on when the training or the run ends meanwhile."""
    before, until = state(), time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and state() == before:
        time.sleep(min(1.0, left))


def _publish_new(hub: Hub, run: Path, config: PublishConfig, complete: bool, left_out: set[int]) -> None:
    """Publish what is complete and not on the Hub yet; the progress is kept after each checkpoint.

    Args:
        hub: see `open_hub`.
        run: its folder.
        config: how it is published.
        complete: whether the run is finished.
        left_out: steps of damaged checkpoints, said once; added to.
    """
    progress = read_progress(run, config.to)
    known = {entry["step"] for entry in progress.entries} | left_out
    new = [(step, folder) for step, folder in complete_checkpoints(run) if step not in known]
    is_tidy = not config.is_bucket or kept_entries(run, progress.entries) == progress.entries
    if not new and not complete and is_tidy:
        return
    if config.is_bucket:
        _mirror(open_bucket(hub, run, config), progress, complete, left_out)
        return
    # The repository is made, and is this run's, before anything is sent.
    claim = index_upload(run, config.to, progress.entries, [])
    state = prepare(hub, claim, private=not config.public, replace=config.replace)
    for step, folder in new:
        if not _publish_checkpoint(hub, run, folder, config, progress, state):
            left_out.add(step)
    if not complete:
        return
    entries = merge_entries(state.entries(), progress.entries)
    push_and_say(hub, main_with_config(run, entries, config), config)
    progress.main = True
    progress.save()


def _mirror(bucket: RunBucket, progress: Progress, complete: bool, left_out: set[int]) -> None:
    """Make a bucket hold what the run keeps; the progress is kept after each checkpoint. See `_publish_new`."""
    run, config = bucket.run, bucket.config
    progress.entries = bucket.entries
    known = {entry["step"] for entry in bucket.entries} | left_out
    for step, folder in [found for found in complete_checkpoints(run) if found[0] not in known]:
        with _hold_sound(folder) as is_sound:
            if is_sound:
                bucket.send_checkpoint(
                    read_checkpoint(run, folder, config.repository, config.base_model, config.optimizer_state)
                )
            elif is_sound is False:
                left_out.add(step)
        progress.entries = bucket.entries
        progress.save()
    if complete:
        bucket.send_model()
        progress.main = True
    elif kept_entries(run, bucket.entries) != bucket.entries:
        bucket.tidy()
    progress.entries = bucket.entries
    progress.save()


@contextlib.contextmanager
def _hold_sound(folder: Path) -> Iterator[bool | None]:
    """Hold a checkpoint against deletion; yield whether it is sound, or None if it is deleted or being deleted."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lease(folder))
        except InputError:
            yield None
            return
        faults = checkpoint_faults(folder)
        if faults:
            _say(f"{folder.name} is damaged and left out: {faults[0]}")
        yield not faults


def _publish_checkpoint(
    hub: Hub, run: Path, folder: Path, config: PublishConfig, progress: Progress, state: RepositoryState
) -> bool:
    """Publish one checkpoint, held against deletion meanwhile, and bring main's list up to date.

    Returns:
        False for a damaged one.
    """
    with _hold_sound(folder) as is_sound:
        if not is_sound:
            return is_sound is None
        checkpoint = read_checkpoint(run, folder, config.repository, config.base_model, config.optimizer_state)
        entries = merge_entries(state.entries(), progress.entries, [checkpoint.entry])
        check_distinct(entries)
        push_and_say(hub, checkpoint.upload, config)
    kept = (state.record or {}).get("files", [])
    push_and_say(hub, index_upload(run, config.to, entries, kept), config)
    progress.entries = merge_entries(progress.entries, [checkpoint.entry])
    progress.save()
    return True


def _supervisor_watch() -> Callable[[], bool]:
    """Return what says whether the `ttl` that started this process has ended; without one it never has."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    return lambda: supervisor is not None and os.getppid() != int(supervisor)


@contextlib.contextmanager
def _hold_run(run: Path, config: PublishConfig, has_ended: Callable[[], bool]) -> Iterator[None]:
    """Hold the run for this process; one that `ttl` started waits for another to end.

    Raises:
        InputError: another process publishes the run, and this one was started by hand.
    """
    refusal = f"RUN={run}: another process publishes it already. Wait for it or stop it."
    lock = None
    while lock is None:
        try:
            lock = take_lock(run / PROGRESS_FOLDER / LOCK_NAME, refusal)
        except InputError:
            if SUPERVISOR_VARIABLE not in os.environ or has_ended():
                raise
            time.sleep(min(1.0, config.poll_seconds))
    try:
        yield
    finally:
        lock.release()


def _force_end_later() -> None:
    """End the process a little later, if an upload that cannot be interrupted holds on until then."""
    end = threading.Timer(_END_SECONDS, os._exit, (EXIT_RESUMABLE,))
    end.daemon = True
    end.start()


def _lower_priority() -> None:
    """Let every other process of this machine go first, at the processor and at the disk."""
    import psutil  # comes with codecarbon

    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(psutil.Error, OSError, AttributeError):  # Linux alone has it
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
