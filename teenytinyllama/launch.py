"""Start the ranks of a recipe and supervise them, so that one command ends with one exit code and one clear message.

accelerate says which ranks to start (its file format, its environment variables); the processes are ours, one direct
child a rank, instead of those of torchrun. Measured reasons: torchrun turns every exit code into 1 and prints a
47-line traceback for it, kills ranks 30 s after a signal although a checkpoint may take longer, and accelerate's
one-process launcher leaves its child running when it is ended. With direct children the exit codes, the signals and
the name of the rank that died are known without any protocol, and the output of the ranks goes straight to the
terminal.

The other side, which runs in each rank, is `training.ranks.prepare_rank`.

Starting a stage of training: everything is checked and prepared in this process before any rank exists.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import EXIT_DONE, InputError, MissingFileError, available_cores, check_bounds, counted, ensure, near_name
from .stage_folder import CONFIG_NAME
from .supervision import supervise

if TYPE_CHECKING:
    import argparse


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankPlan:
    """The processes to start: one environment a rank, all on this machine.

    Attributes:
        environments: whole environment of each rank.
        uses_gpu: whether the ranks compute on GPUs (one each) or on the CPU.
        accelerate_file: the accelerate file that was used, or None for one plain process.
    """

    environments: tuple[dict[str, str], ...]
    uses_gpu: bool
    accelerate_file: Path | None

    @property
    def num_processes(self) -> int:
        """Return the number of ranks, the world size."""
        return len(self.environments)


def launch(
    script: Path,
    arguments: Sequence[str],
    accelerate_file: str | None = None,
    num_processes: int | None = None,
    log: Path | None = None,
) -> int:
    """Run `python script *arguments` on one or several ranks and return the exit code of the whole: 0, 1, 2 or 75.

    Signals that reach this process meanwhile are handed to the ranks, see `supervision.supervise`. Call it from the
    main thread.

    Args:
        script: the recipe.
        arguments: its command line.
        accelerate_file: a name (`cpu2`: the file `accelerate/cpu2.yaml` beside the script) or the path of an accelerate
            file; None: one plain process, or with several GPUs visible `ddp`.
        num_processes: number of ranks; None: one a visible GPU, and without a GPU what the file says.
        log: file for what the ranks say; None: the terminal.

    Raises:
        InputError: no such script or file, or a number of ranks that cannot be.
    """
    plan = plan_ranks(script, arguments, accelerate_file, num_processes)
    if plan.num_processes > 1:
        name = plan.accelerate_file.stem if plan.accelerate_file else "ddp"
        logger.info("%d ranks on the %s (%s)", plan.num_processes, "GPUs" if plan.uses_gpu else "CPU", name)
    return supervise([sys.executable, str(script), *arguments], plan.environments, log)


def plan_ranks(
    script: Path, arguments: Sequence[str], accelerate_file: str | None = None, num_processes: int | None = None
) -> RankPlan:
    """Return the ranks that `launch` would start with the same arguments; nothing is started.

    Raises:
        InputError: see `launch`.
    """
    _check_start(script, num_processes)
    gpus = visible_gpus()
    if accelerate_file is None:
        if (num_processes or max(1, gpus)) == 1:
            environment = dict(os.environ)
            return RankPlan((environment | _own_gpus(environment, gpus, 1),), uses_gpu=gpus > 0, accelerate_file=None)
        accelerate_file = "ddp"
    file = find_accelerate_file(script, accelerate_file)
    by_name = file.stem == accelerate_file
    settings = _accelerate_settings(file, script, arguments, num_processes)
    usable = _usable_gpus(settings, gpus)
    if by_name and num_processes is None and usable and _has_ranks(settings):
        settings.num_processes = usable
    _check_settings(settings, file, usable)
    bases = [*file.absolute().parents] if by_name else [Path.cwd(), *file.absolute().parents]
    environments = _rank_environments(settings, file, bases, usable)
    return RankPlan(environments, uses_gpu=usable > 0, accelerate_file=file)


def _check_start(script: Path, num_processes: int | None) -> None:
    if not script.is_file():
        raise MissingFileError(f"script={script}: no such file. Run `ttl init DIR` for a copy of the recipes.")
    ensure(
        num_processes is None or num_processes > 0,
        f"num_processes={num_processes}: must be at least 1. Leave it out for one rank a visible GPU.",
    )
    ensure(
        "LOCAL_RANK" not in os.environ,
        f"LOCAL_RANK={os.environ.get('LOCAL_RANK')}: this process is already a rank of another launcher. Start `ttl` "
        f"without one, or the recipe itself: accelerate launch --config_file FILE {script} …",
    )


def visible_gpus() -> int:
    """Return how many GPUs the ranks could use; Apple's does not count, it has no collectives."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return 0 if accelerator is None or accelerator.type == "mps" else torch.accelerator.device_count()


def find_accelerate_file(script: Path, name_or_path: str) -> Path:
    """Return the accelerate file that a name (beside the script, in `accelerate/`) or a path stands for.

    Raises:
        MissingFileError: there is none; the message lists the names.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    folder = script.absolute().parent / "accelerate"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name_or_path in known:
        return folder / f"{name_or_path}.yaml"
    raise MissingFileError(
        f"accelerate={name_or_path}: must be the path of an accelerate file or one of {', '.join(known) or 'none'} "
        f"(in {folder}).{near_name(name_or_path, known)}"
    )


def _accelerate_settings(
    file: Path, script: Path, arguments: Sequence[str], num_processes: int | None
) -> "argparse.Namespace":
    """Return what `accelerate launch --config_file FILE SCRIPT …` would work with."""
    import argparse

    import yaml
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    options = ["--config_file", str(file), *(["--num_processes", str(num_processes)] if num_processes else [])]
    try:
        parsed = launch_command_parser().parse_args([*options, str(script), *arguments])
        settings: argparse.Namespace
        settings, defaults, precision_from_file = _validate_launch_command(parsed)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"accelerate={file}: accelerate refuses it: {error}") from error
    fields = [*(defaults.deepspeed_config or {}), *(["mixed_precision"] if precision_from_file else [])]
    settings.deepspeed_fields_from_accelerate_config = ",".join(fields)
    return settings


def _has_ranks(settings: "argparse.Namespace") -> bool:
    return bool(settings.use_deepspeed or settings.multi_gpu)


def _usable_gpus(settings: "argparse.Namespace", gpus: int) -> int:
    """Return how many of the visible GPUs the file leaves to the ranks."""
    if settings.use_cpu or (settings.gpu_ids or "").startswith("-1"):
        return 0
    return gpus if settings.gpu_ids in (None, "all") else min(gpus, len(settings.gpu_ids.split(",")))


def _check_settings(settings: "argparse.Namespace", file: Path, usable: int) -> None:
    count = settings.num_processes
    is_other = settings.tpu or settings.use_megatron_lm or settings.use_fsdp
    is_other = is_other or getattr(settings, "use_parallelism_config", False)
    ensure(
        not is_other,
        f"distributed_type in {file}: must be NO, MULTI_GPU or DEEPSPEED, without parallelism_config. FSDP, Megatron "
        "and TPUs are not supported: use `--accelerate zero1`, `zero2` or `zero3` in their place.",
    )
    ensure(
        not settings.use_deepspeed or importlib.util.find_spec("deepspeed") is not None,
        f"accelerate={file}: needs the package deepspeed: pip install deepspeed (Linux alone). Or use "
        "`--accelerate ddp`.",
    )
    check_bounds("num_processes", count)
    ensure(
        count == 1 or _has_ranks(settings),
        f"num_processes={count}: {file.stem} starts one process. Use `--accelerate ddp` or `--accelerate cpu2`.",
    )
    ensure(
        settings.num_machines == 1,
        f"num_machines={settings.num_machines} in {file}: `ttl` starts the ranks of one machine. On each of several "
        f"run `accelerate launch --config_file {file} …` instead.",
    )
    ensure(
        not usable or count <= usable,
        f"num_processes={count}: {counted(usable, 'GPU')} can be used, and each rank needs one. Use {usable}, or "
        "`--accelerate cpu2` for ranks on the CPU.",
    )


def _rank_environments(
    settings: "argparse.Namespace", file: Path, bases: list[Path], usable: int
) -> tuple[dict[str, str], ...]:
    """Return the environments that accelerate's launchers and torchrun would give to the ranks."""
    from accelerate.utils import check_cuda_p2p_ib_support, launch

    if not _has_ranks(settings):
        environment = launch.prepare_simple_launcher_cmd_env(settings)[1]
        return (environment | _own_gpus(environment, usable, 1) | _threads(1),)
    settings.main_process_port = settings.main_process_port or 0  # 0: accelerate chooses a free one
    if settings.use_deepspeed:
        settings.deepspeed_config_file = _find_deepspeed_file(settings.deepspeed_config_file, file, bases)
        environment = launch.prepare_deepspeed_cmd_env(settings)[1]
    else:
        environment = launch.prepare_multi_gpu_env(settings)
    if not check_cuda_p2p_ib_support():  # as accelerate's launchers do for the RTX 4000 series
        environment = {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"} | environment
    count = settings.num_processes
    environment |= _own_gpus(environment, usable, count)
    environment |= _threads(count) | ({} if usable else {"DS_ACCELERATOR": "cpu"})
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(settings.main_process_port)}
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return tuple(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))


def _find_deepspeed_file(name: str | None, file: Path, bases: list[Path]) -> str | None:
    """Return the absolute path of a DeepSpeed JSON that the accelerate file names, looked for from the bases up.

    accelerate itself only knows the working directory, so a shipped file would work in one folder alone.
    """
    found = [base / name for base in bases if (base / name).is_file()] if name else []
    if name and not found:
        raise MissingFileError(f"deepspeed_config_file={name} in {file}: no such file, seen from {bases[0]}.")
    return str(found[0]) if found else None


def _own_gpus(environment: dict[str, str], usable: int, count: int) -> dict[str, str]:
    """Hide the GPUs that `count` ranks do not use.

    With more than it needs, one process would train by nn.DataParallel, and their energy would count as the run's.
    Numbers are those of nvidia-smi, in which the meter counts; CUDA's own begin with the fastest GPU.
    """
    order = {} if "CUDA_DEVICE_ORDER" in environment or not usable else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if count >= usable:
        return order
    named = environment.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(index) for index in range(usable)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[:count]), **order}


def _threads(num_processes: int) -> dict[str, str]:
    """Share the processor's cores out among the ranks, unless the user set the number of threads."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))}


def recipes_folder() -> Path:
    """Return the folder of recipes: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "recipes"


def start_stage(
    recipe: str,
    values: dict[str, Any],
    accelerate_file: str | None,
    num_processes: int | None,
    prepare: Callable[[dict[str, Any], int], dict[str, Any]],
    check: Callable[[dict[str, Any], int], str],
    settle: Callable[..., dict[str, Any]] | None = None,
) -> int:
    """Check everything in this process, prepare the data, then start the ranks and supervise them.

    `prepare` refuses what can be known without the data before it writes any; `check` sees the data too.

    With `settle`, a length that only caps tell is settled in between, by a test with the same ranks. With
    `hub_model_id` a process beside them publishes the run; it changes neither the ranks nor the exit code.

    Returns:
        0 done, 1 failed, 2 bad input met by a rank, 75 stopped and resumable.

    Raises:
        InputError: the config is refused; no rank was started and nothing is written.
    """
    from .arguments import write_yaml
    from .energy.recorder import count_from_now
    from .publishing.follow import check_follower, report_follower, start_follower
    from .stage_folder import command_line, scratch_folder
    from .training.run_plan import what_follows

    script = recipes_folder() / recipe
    ranks = plan_ranks(script, [], accelerate_file, num_processes)
    publishing = check_follower(values)
    values = prepare(values, ranks.num_processes)
    os.environ.setdefault("TTL_COMMAND", command_line())

    def start(values: dict[str, Any], log: Path | None = None) -> int:
        with scratch_folder() as folder:
            config = folder / CONFIG_NAME
            write_yaml(config, values)
            try:
                return launch(script, ["--config", str(config)], accelerate_file, num_processes, log)
            finally:
                count_from_now()  # what the ranks took is in their own account

    if settle is not None:
        values = settle(values, ranks.num_processes, check, start)
    if check(values, ranks.num_processes) == "complete":
        print(f"{values['output_dir']} is complete; {what_follows(Path(values['output_dir']))}")
        return EXIT_DONE
    follower = start_follower(Path(values["output_dir"]), publishing) if publishing else None
    code = start(values)
    if follower:
        report_follower(follower, code)
    return code


def start_pretraining(values: dict[str, Any], accelerate_file: str | None, num_processes: int | None) -> int:
    """Check a pretraining, pack its `inputs` if there are any, and run it; see `start_stage`."""
    from .training.run_plan import check_before_launch, pack_inputs
    from .training.trials import settle_length

    return start_stage(
        "pretrain.py", values, accelerate_file, num_processes, pack_inputs, check_before_launch, settle_length
    )
