"""Ranks: which processes a training starts on this machine, each with its whole environment.

accelerate says which (its file format, its environment variables); `processes` starts them.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import InputError, MissingFileError, available_cores, check_bounds, counted, ensure, near_name
from ..gpus import count_usable_gpus, named_gpus
from .machines import DEFAULT_PORT, Link, Machines, machines_of_slurm

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class RankOptions:
    """Which ranks a verb starts: keys beside those of its config, for the command line alone."""

    accelerate: str | None = field(
        default=None,
        metadata={
            "help": "file of ranks: cpu, cpu2, ddp, single, zero1, zero2, zero3, or the path of an accelerate file"
        },
    )
    num_processes: int | None = field(
        default=None, metadata={"help": "number of ranks of all machines; null: one a visible GPU, without GPUs what "
                                        "the file says"}
    )  # fmt: skip
    num_machines: int | None = field(
        default=None, metadata={"help": "machines that train together, each with this command; null: those of `srun`, "
                                        "else what the file of ranks says"}
    )  # fmt: skip
    machine_rank: int | None = field(default=None, metadata={"help": "number of this machine, from 0; null: srun's"})
    main_process_ip: str | None = field(
        default=None, metadata={"help": "name or IP of machine 0 that all others reach; null: srun's first host"}
    )
    main_process_port: int | None = field(
        default=None, metadata={"help": f"port there for the ranks; `ttl` takes the next one; null: {DEFAULT_PORT}"}
    )

    def __post_init__(self) -> None:
        """Refuse a number of ranks that cannot be.

        Raises:
            InputError: it is not positive.
        """
        ensure(
            self.num_processes is None or self.num_processes > 0,
            f"num_processes={self.num_processes}: must be at least 1. Leave it out for one rank a visible GPU.",
        )
        count, own = self.num_machines, self.machine_rank
        ensure(count is None or count > 0, f"num_machines={count}: must be at least 1.")
        ensure(own is None or 0 <= own < (count or 2**16), f"machine_rank={own}: must be 0 to {(count or 2**16) - 1}.")
        port = self.main_process_port
        ensure(port is None or 1024 <= port < 65_535, f"main_process_port={port}: must be 1024 to 65,534.")

    def machines(self) -> Machines | None:
        """Return the machines that these keys or `srun` name; None: the file of ranks says.

        Raises:
            InputError: several machines without an address of the first, or without a number for this one.
        """
        found = machines_of_slurm(os.environ) if self.num_machines is None else Machines(self.num_machines)
        if self.num_machines is not None and self.num_machines > 1:
            ensure(
                self.main_process_ip is not None and self.machine_rank is not None,
                f"num_machines={self.num_machines}: give --main_process_ip, an address of machine 0 that all reach, "
                "and --machine_rank, 0 there and 1 and so on elsewhere. Under Slurm leave all three out: "
                "srun --ntasks-per-node=1 ttl …",
            )
        if found is None:
            return None
        return Machines(
            found.count,
            found.rank if self.machine_rank is None else self.machine_rank,
            self.main_process_ip or found.address,
            self.main_process_port or found.port,
        )

    def ensure_one_machine(self, verb: str, fix: str) -> None:
        """Refuse several machines, for a verb that works on one.

        Args:
            verb: of `ttl`.
            fix: what to do instead, a sentence.

        Raises:
            InputError: these keys or `srun` name several.
        """
        found = self.machines() or Machines()
        ensure(found.count == 1, f"num_machines={found.count}: `ttl {verb}` works on one machine. {fix}")


@dataclass(frozen=True)
class RankPlan:
    """The processes to start: one environment a rank, all on this machine.

    Attributes:
        machines: of the run; this plan has the ranks of one of them.
        environments: whole environment of each rank.
        uses_gpu: whether the ranks compute on GPUs (one each) or on the CPU.
        accelerate_file: the accelerate file that was used, or None for one plain process.
    """

    environments: tuple[dict[str, str], ...]
    uses_gpu: bool
    accelerate_file: Path | None
    machines: Machines = field(default_factory=Machines)

    @property
    def num_processes(self) -> int:
        """Return the number of ranks on this machine."""
        return len(self.environments)

    def joined(self, link: Link | None) -> "RankPlan":
        """Return the plan with ranks numbered over all machines; the same where this one is alone."""
        if link is None:
            return self
        environments = [{**environment, **link.environment(), "RANK": str(link.first_rank + number)}
                        for number, environment in enumerate(self.environments)]  # fmt: skip
        return replace(self, environments=tuple(environments))


def plan_ranks(
    script: Path,
    arguments: Sequence[str],
    accelerate_file: str | None = None,
    num_processes: int | None = None,
    machines: Machines | None = None,
) -> RankPlan:
    """Return the ranks that `launch` would start on this machine with the same arguments; nothing is started.

    Args:
        script: see `launch`.
        arguments: see `launch`.
        accelerate_file: see `launch`; None and several machines: `ddp`.
        num_processes: of all machines.
        machines: of the run; None: what the file says, one without a file.

    Raises:
        InputError: see `launch`.
    """
    _check_start(script)
    gpus = count_usable_gpus()
    if accelerate_file is None:
        if (num_processes or max(1, gpus)) == 1 and (machines is None or machines.count == 1):
            environment = dict(os.environ)
            return RankPlan((environment | _own_gpus(environment, gpus, 1),), uses_gpu=gpus > 0, accelerate_file=None)
        accelerate_file = "ddp"
    RankOptions(accelerate_file, num_processes)
    file = find_accelerate_file(script, accelerate_file)
    by_name = file.stem == accelerate_file
    settings = _accelerate_settings(file, script, arguments, num_processes)
    usable = _usable_gpus(settings, gpus)
    machines = machines or _machines_of_file(settings, file)
    settings.num_machines, settings.machine_rank, settings.main_process_ip = (
        1,
        0,
        None,
    )  # the environment of one machine
    if by_name and num_processes is None and _has_ranks(settings) and (usable or machines.count > 1):
        settings.num_processes = usable or 1
    elif machines.count > 1:
        settings.num_processes = _share_of_machine(settings.num_processes, machines.count)
    _check_settings(settings, file, usable)
    bases = [*file.absolute().parents] if by_name else [Path.cwd(), *file.absolute().parents]
    environments = _rank_environments(settings, file, bases, usable)
    return RankPlan(environments, uses_gpu=usable > 0, accelerate_file=file, machines=machines)


def _machines_of_file(settings: "argparse.Namespace", file: Path) -> Machines:
    count, own, address = settings.num_machines, settings.machine_rank, settings.main_process_ip
    if count == 1:
        return Machines()
    ensure(
        address is not None and own is not None,
        f"main_process_ip in {file}: is missing, for num_machines: {count}. Give an address of machine 0 that all "
        "reach, and on each machine its machine_rank.",
    )
    return Machines(count, int(own), address, settings.main_process_port or DEFAULT_PORT)


def _share_of_machine(num_processes: int, count: int) -> int:
    ensure(
        num_processes % count == 0,
        f"num_processes={num_processes}: is the number of ranks of all machines, and must be a multiple of {count}.",
    )
    return num_processes // count


def _check_start(script: Path) -> None:
    if not script.is_file():
        raise MissingFileError(f"script={script}: no such file. Run `ttl init DIR` for a copy of the recipes.")
    ensure(
        "LOCAL_RANK" not in os.environ,
        f"LOCAL_RANK={os.environ.get('LOCAL_RANK')}: this process is already a rank of another launcher. Start `ttl` "
        f"without one, or the recipe itself: accelerate launch --config_file FILE {script} …",
    )


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
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
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
        return (environment | _own_gpus(environment, usable, 1) | thread_share(1),)
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
    environment |= thread_share(count) | ({} if usable else {"DS_ACCELERATOR": "cpu"})
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
    """
    names, order = named_gpus(environment, usable)
    if count >= usable:
        return order
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[:count]), **order}


def thread_share(num_processes: int) -> dict[str, str]:
    """Share the processor's cores out among processes, unless the user set the number of threads."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))}
