"""The engine of the corpus stage: datatrove's executors run the tasks of a phase, here, by Slurm or by Ray.

A phase is a function of this package that works on one task. It is called with a few texts and numbers, so a task can
run on any machine that sees the folder. datatrove keeps which tasks are complete, and Slurm's executor a pickle of the
phase, both in the phase's own folder. That folder's name holds a hash of all that decides the phase: other settings
have another folder.
"""

import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger
from numpy.typing import NDArray

from ..checks import InputError, RunFailedError, available_cores, ensure, ensure_packages, near_name
from ..progress import progress
from ..stage_folder import write_json
from .documents import SHARES_NAME

logger.disable("datatrove")  # it speaks of every task on the terminal; what users see is ours
ExecutorName = Literal["local", "slurm", "ray"]
_LOGS = "tasks"
_REFUSED = "InputError"
_BAR_SECONDS = 0.5  # between two looks at how far the tasks are
# Of Slurm's settings, what datatrove must have, and the rest with its defaults.
_SLURM_NEEDS = ("partition", "time")
_SLURM_NUMBERS = ("cpus_per_task", "mem_per_cpu_gb", "max_array_size", "tasks_per_job")
_SLURM_TEXTS = ("job_name", "qos", "env_command", "condaenv", "venv_path", "mail_user", "mail_type")


class PhaseStep(PipelineStep):  # type: ignore[misc]
    """A phase as a step of a datatrove pipeline: it reads and writes files, and passes no documents on."""

    name = "phase"
    type = "corpus"

    def __init__(self, function: str, arguments: dict[str, Any], folder: str) -> None:
        """Take `module:function` of this package, what it is called with beside `task`, and a folder for failures."""
        super().__init__()
        self.function, self.arguments, self.folder = function, arguments, folder
        self.place = os.getcwd()  # paths of the config may be relative to it, and a job begin elsewhere

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do one task."""
        os.chdir(self.place)
        module, _, name = self.function.partition(":")
        failure = Path(self.folder) / f"failed-{rank:05d}.txt"
        failure.unlink(missing_ok=True)
        try:
            getattr(importlib.import_module(f"teenytinyllama.{module}"), name)(task=rank, **self.arguments)
        except BaseException as error:
            # The first line is for `_raise_failure`: what refuses the user's input differs from what fails.
            kind = _REFUSED if isinstance(error, InputError) else type(error).__name__
            failure.write_text(f"{kind}: {error}\n\n{traceback.format_exc()}", encoding="utf-8")
            raise
        yield from data or ()


class LocalExecutor(LocalPipelineExecutor):  # type: ignore[misc]
    """Runs the tasks of a phase in processes of this machine, which end with this one.

    datatrove's own waits without end for a task whose process was killed, as the system does when memory is short.
    """

    def run(self) -> None:
        """Run the tasks that are not complete.

        Raises:
            RunFailedError: a process was killed.
        """
        ranks = self.get_incomplete_ranks()
        if self.workers == 1:
            for rank in ranks:
                self._run_for_rank(rank, 1)
        if not ranks or self.workers == 1:
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, f"{__package__}.phases"])  # imported once, for all phases
        pool = ProcessPoolExecutor(min(self.workers, len(ranks)), context, _begin_process)
        try:
            for done in as_completed([pool.submit(self._run_for_rank, rank, 1) for rank in ranks]):
                done.result()
        except BrokenProcessPool as error:
            raise RunFailedError(
                "a process was killed, most likely because memory was short. What is complete is kept; the same "
                f"command goes on. Give it fewer workers than {self.workers}, or a smaller shard_rows_megabytes."
            ) from error
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal: nobody waits for what is half done
                for child in multiprocessing.active_children():
                    child.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    """Let a process end when the one that started it does, and leave the keys of the terminal to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


@contextmanager
def started_engine(kind: ExecutorName, workers: int | None, slurm: dict[str, Any]) -> Iterator[None]:
    """Have what the executors of this kind need: for Ray its cluster, which `RAY_ADDRESS` names, or one made here.

    The one made here has no dashboard, sends no usage reports, and listens on this machine alone.

    Raises:
        InputError: Ray or Slurm's commands are not installed, or a setting of Slurm's cannot be.
    """
    if kind == "slurm":
        slurm_settings(slurm)
        ensure(
            shutil.which("sbatch"),
            "executor=slurm: the command sbatch is not here. Start ttl on a node that hands in jobs, or set executor: "
            "local.",
        )
    if kind != "ray":
        yield
        return
    ensure_packages("corpus,ray", "ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    has_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if not has_cluster:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # so that Ray listens on 127.0.0.1 alone
    import ray

    own: dict[str, Any] = {"address": "local", "num_cpus": workers or available_cores(), "include_dashboard": False}
    ray.init(**({} if has_cluster else own), log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def make_executor(
    kind: ExecutorName,
    folder: Path,
    function: str,
    tasks: int,
    arguments: dict[str, Any],
    workers: int | None,
    slurm: dict[str, Any],
    depends: PipelineExecutor | None = None,
) -> PipelineExecutor:
    """Return the executor of a phase.

    Args:
        kind: who runs the tasks.
        folder: of the phase.
        function: `module:function` below this package; called with `task` and the arguments.
        tasks: how many there are.
        arguments: texts and numbers.
        workers: tasks at once; None: one a core, on a cluster no limit.
        slurm: settings of Slurm's executor.
        depends: the phase before, which Slurm waits for.

    Raises:
        InputError: a setting of Slurm's that is missing or unknown, or Ray that is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    steps, logs = [PhaseStep(function, arguments, str(folder))], str((folder / _LOGS).absolute())
    if kind == "slurm":
        # A job that waits for one that failed is ended, and not kept in the queue for ever.
        return SlurmPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers or -1, logging_dir=logs,
                                     depends=depends, sbatch_args={"kill-on-invalid-dep": "yes"},
                                     **slurm_settings(slurm))  # fmt: skip
    if kind == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        # Memory is not reserved: a machine that cannot reserve it would wait without end.
        return RayPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers or -1, logging_dir=logs,
                                   mem_per_cpu_gb=0)  # fmt: skip
    return LocalExecutor(pipeline=steps, tasks=tasks, workers=min(tasks, workers or available_cores()),
                         logging_dir=logs)  # fmt: skip


def slurm_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of Slurm's executor.

    Raises:
        InputError: one is missing, unknown or no number.
    """
    known = (*_SLURM_NEEDS, *_SLURM_NUMBERS, *_SLURM_TEXTS)
    unknown = [name for name in given if name not in known]
    near = near_name(str((unknown or [""])[0]), known)
    ensure(not unknown, f"slurm.{(unknown or [''])[0]}: unknown key.{near} Known are {', '.join(known)}.")
    missing = [name for name in _SLURM_NEEDS if name not in given]
    ensure(not missing, f"slurm.{(missing or [''])[0]}: is missing. executor: slurm needs partition and time.")
    settings: dict[str, Any] = {"job_name": "ttl-corpus", "qos": ""}
    if not {"env_command", "condaenv", "venv_path"} & set(given):  # jobs run in the environment of this process
        settings["env_command"] = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
    settings |= {name: str(value) for name, value in given.items()}
    for name in set(_SLURM_NUMBERS) & set(given):
        ensure(
            settings[name].isdigit() and int(settings[name]) > 0,
            f"slurm.{name}={given[name]}: must be a number above 0.",
        )
        settings[name] = int(settings[name])
    return settings


def run_executor(executor: PipelineExecutor, phase: str, sizes: list[float] | None = None) -> None:
    """Run the tasks of a phase that are not complete yet; with Slurm hand them in and come back.

    Args:
        executor: of the phase.
        phase: its name.
        sizes: bytes of the input of each task, for the bar; None: no bar.

    Raises:
        InputError: a task refused what the user gave.
        RunFailedError: a task failed; its log says why.
    """
    folder = Path(executor.pipeline[0].folder)
    if not isinstance(executor, SlurmPipelineExecutor):  # whose jobs may be at work
        for old in (*folder.glob("failed-*.txt"), *folder.glob("*.partial")):
            old.unlink()
    try:
        with _phase_bar(folder, phase, [] if isinstance(executor, SlurmPipelineExecutor) else sizes or []):
            executor.run()
    except (InputError, RunFailedError):
        raise
    except subprocess.CalledProcessError as error:  # of sbatch
        raise InputError(
            f"slurm: {error.cmd[0]} refused the jobs of {phase} (exit code {error.returncode}) and said why above. "
            "Check slurm.partition, slurm.time and the other settings."
        ) from error
    except Exception as error:
        _raise_failure(folder, phase, error)
        raise  # not of a task
    if not isinstance(executor, SlurmPipelineExecutor):
        # Ray's executor ends without an error when tasks fail.
        missing = missing_tasks(folder, executor.world_size)
        if missing:
            _raise_failure(folder, phase, None)
            raise RunFailedError(f"{phase}: {missing} of {executor.world_size} tasks were not done and left no reason.")


@contextmanager
def _phase_bar(folder: Path, phase: str, sizes: list[float]) -> Iterator[None]:
    """Show meanwhile how much of the input a phase has worked through, all its processes together."""
    with progress(None, phase, "B", total=sum(sizes), done=_worked_through(folder, sizes, None)) as bar:
        if bar.disable or not sizes:
            yield
            return
        shares: NDArray[Any] = np.memmap(folder / SHARES_NAME, dtype="<f8", mode="w+", shape=len(sizes))
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_BAR_SECONDS):
                bar.n = _worked_through(folder, sizes, shares)
                bar.refresh()

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()
            (folder / SHARES_NAME).unlink(missing_ok=True)


def _worked_through(folder: Path, sizes: list[float], shares: NDArray[Any] | None) -> float:
    """Return the bytes of complete tasks, and of the others the shares that they have noted."""
    done = folder / _LOGS / "completions"
    complete = {int(path.name) for path in done.iterdir() if path.name.isdigit()} if done.is_dir() else set()
    return float(sum(size if task in complete else size * shares[task] if shares is not None else 0
                     for task, size in enumerate(sizes)))  # fmt: skip


def _raise_failure(folder: Path, phase: str, cause: Exception | None) -> None:
    """Raise what the first task that failed has left; nothing where none has.

    Raises:
        InputError: the task refused what the user gave.
        RunFailedError: it failed.
    """
    failures = sorted(folder.glob("failed-*.txt"))
    if not failures:
        return
    reason = failures[0].read_text(encoding="utf-8").partition("\n\nTraceback")[0]
    if reason.startswith(f"{_REFUSED}: "):
        raise InputError(reason.removeprefix(f"{_REFUSED}: ")) from cause
    raise RunFailedError(
        f"{phase}: a task failed: {reason}. All of it is in {failures[0]}. What is complete is kept; the same command "
        "goes on."
    ) from cause


def say_failures(folder: Path, phase: str) -> None:
    """Print why tasks of a phase failed that was handed in before; they are handed in again."""
    for path in sorted(folder.glob("failed-*.txt")):
        reason = path.read_text(encoding="utf-8").partition("\n\nTraceback")[0]
        print(f"{phase}: a task failed: {reason}. All of it is in {path}.", flush=True)


def missing_tasks(folder: Path, tasks: int) -> int:
    """Return how many tasks of a phase are not complete."""
    done = folder / _LOGS / "completions"
    return tasks - (sum(1 for path in done.iterdir()) if done.is_dir() else 0)


def jobs_in_queue(path: Path) -> list[str]:
    """Return the jobs handed in before that Slurm still has in its queue, waiting or running.

    Args:
        path: the file that `note_jobs` wrote.
    """
    if not path.exists() or shutil.which("squeue") is None:
        return []
    queue = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True, check=False)
    return [job for job in json.loads(path.read_text(encoding="utf-8")) if job in queue.stdout.split()]


def note_jobs(path: Path, executors: list[PipelineExecutor]) -> list[str]:
    """Write the numbers of the jobs just handed in, and return them."""
    jobs = [str(executor.job_id) for executor in executors if executor.job_id not in (None, -1)]
    write_json(path, jobs)
    return jobs
