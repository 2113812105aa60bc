"""The engine of the corpus stage: datatrove's executors run the tasks of a phase, here, by Slurm or by Ray.

A phase is a function of this package that works on one task. It is called with a few texts and numbers, so a task can
run on any machine that sees the folder. datatrove keeps which tasks are complete, and Slurm's executor a pickle of the
phase, both in the phase's own folder. That folder's name holds a hash of all that decides the phase: other settings
have another folder.
"""

import importlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from ..checks import InputError, RunFailedError, available_cores, ensure

logger.disable("datatrove")  # it speaks of every task on the terminal; what users see is ours
ExecutorName = Literal["local", "slurm", "ray"]
_LOGS = "tasks"
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

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do one task."""
        module, _, name = self.function.partition(":")
        failure = Path(self.folder) / f"failed-{rank:05d}.txt"
        failure.unlink(missing_ok=True)
        try:
            getattr(importlib.import_module(f"teenytinyllama.{module}"), name)(task=rank, **self.arguments)
        except BaseException:
            failure.write_text(traceback.format_exc(), encoding="utf-8")
            raise
        yield from data or ()


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
    steps, logs = [PhaseStep(function, arguments, str(folder))], str(folder / _LOGS)
    if kind == "slurm":
        settings = slurm_settings(slurm)
        return SlurmPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers or -1, logging_dir=logs,
                                     depends=depends, **settings)  # fmt: skip
    if kind == "ray":
        try:
            from datatrove.executor.ray import RayPipelineExecutor
        except ImportError as error:
            raise InputError("executor=ray: Ray is not installed. pip install 'ray[default]'") from error
        return RayPipelineExecutor(pipeline=steps, tasks=tasks, workers=workers or -1, logging_dir=logs)
    return LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=min(tasks, workers or available_cores()),
                                 logging_dir=logs)  # fmt: skip


def slurm_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of Slurm's executor.

    Raises:
        InputError: one is missing, unknown or no number.
    """
    known = (*_SLURM_NEEDS, *_SLURM_NUMBERS, *_SLURM_TEXTS)
    missing = [name for name in _SLURM_NEEDS if name not in given]
    ensure(not missing, f"slurm.{(missing or [''])[0]}: is missing. executor: slurm needs partition and time.")
    unknown = [name for name in given if name not in known]
    ensure(not unknown, f"slurm.{(unknown or [''])[0]}: unknown key. Known are {', '.join(known)}.")
    settings: dict[str, Any] = {"job_name": "ttl-corpus"} | {name: str(value) for name, value in given.items()}
    for name in set(_SLURM_NUMBERS) & set(given):
        ensure(
            settings[name].isdigit() and int(settings[name]) > 0,
            f"slurm.{name}={given[name]}: must be a number above 0.",
        )
        settings[name] = int(settings[name])
    return settings


def run_executor(executor: PipelineExecutor, phase: str) -> None:
    """Run the tasks of a phase that are not complete yet; with Slurm hand them in and come back.

    Raises:
        RunFailedError: a task failed; its log says why.
    """
    try:
        executor.run()
    except (InputError, RunFailedError):
        raise
    except Exception as error:
        failures = sorted(Path(executor.pipeline[0].folder).glob("failed-*.txt"))
        if not failures:  # not of a task
            raise
        last = failures[0].read_text(encoding="utf-8").strip().splitlines()[-1]
        raise RunFailedError(
            f"{phase}: a task failed: {last}. All of it is in {failures[0]}. What is complete is kept; the same "
            "command goes on."
        ) from error


def missing_tasks(folder: Path, tasks: int) -> int:
    """Return how many tasks of a phase are not complete."""
    done = folder / _LOGS / "completions"
    return tasks - (sum(1 for path in done.iterdir()) if done.is_dir() else 0)
