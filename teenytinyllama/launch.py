"""Launch: a training is checked and prepared, then its ranks run a recipe, and one command ends with one exit code.

accelerate says which ranks to start (its file format, its environment variables); the processes are ours, one direct
child a rank, instead of those of torchrun. Measured reasons: torchrun turns every exit code into 1 and prints a
47-line traceback for it, kills ranks 30 s after a signal although a checkpoint may take longer, and accelerate's
one-process launcher leaves its child running when it is ended. With direct children the exit codes, the signals and
the name of the rank that died are known. What runs in each rank is `distributed.prepare_rank`.
"""

import importlib
import importlib.util
import json
import logging
import operator
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import (
    EXIT_DONE,
    InputError,
    MissingFileError,
    available_cores,
    beside_the_model,
    check_bounds,
    counted,
    ensure,
    near_name,
)
from .gpus import count_usable_gpus, named_gpus
from .processes import ForkServer
from .supervision import supervise

if TYPE_CHECKING:
    import argparse

logger = logging.getLogger(__name__)


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
        default=None, metadata={"help": "number of ranks; null: one a visible GPU, without GPUs what the file says"}
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
    forks: bool = False,
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
        forks: see `supervision.supervise`.

    Raises:
        InputError: no such script or file, or a number of ranks that cannot be.
    """
    plan = plan_ranks(script, arguments, accelerate_file, num_processes)
    if plan.num_processes > 1:
        name = plan.accelerate_file.stem if plan.accelerate_file else "ddp"
        logger.info("%d ranks on the %s (%s)", plan.num_processes, "GPUs" if plan.uses_gpu else "CPU", name)
    return supervise([sys.executable, str(script), *arguments], plan.environments, log, forks=forks)


def plan_ranks(
    script: Path, arguments: Sequence[str], accelerate_file: str | None = None, num_processes: int | None = None
) -> RankPlan:
    """Return the ranks that `launch` would start with the same arguments; nothing is started.

    Raises:
        InputError: see `launch`.
    """
    _check_start(script)
    gpus = count_usable_gpus()
    if accelerate_file is None:
        if (num_processes or max(1, gpus)) == 1:
            environment = dict(os.environ)
            return RankPlan((environment | _own_gpus(environment, gpus, 1),), uses_gpu=gpus > 0, accelerate_file=None)
        accelerate_file = "ddp"
    RankOptions(accelerate_file, num_processes)
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


def recipes_folder() -> Path:
    """Return the folder of recipes: inside the installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class Stage:
    """A kind of training that `ttl` starts, by the names of its parts, so that none is imported before it is needed.

    Attributes:
        module: of the functions below; the ranks import it too.
        config: `module:class` of its config.
        prepare: turns `inputs` into data for the ranks, or `decay_from` into a run's keys; refuses first what it can.
        plan: checks a config against its files and its run folder.
        recipe: what the ranks run.
    """

    module: str
    config: str
    prepare: str
    plan: str
    recipe: str


STAGES = {
    "pretrain": Stage("training.pretrain", "training.config:PretrainConfig", "training.run_plan:pack_inputs",
                      "training.run_plan:plan_run", "pretrain.py"),
    "sft": Stage("tuning.tune", "tuning.config:SftConfig", "tuning.base:SFT.prepare_inputs", "tuning.base:SFT.plan",
                 "sft.py"),
    "dpo": Stage("tuning.tune", "tuning.config:DpoConfig", "tuning.base:DPO.prepare_inputs", "tuning.base:DPO.plan",
                 "dpo.py"),
}  # fmt: skip


def resolve_training(name: str, values: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """Resolve the config of a training for so many ranks and check it, without starting any.

    Args:
        name: of `STAGES`.
        values: the checked values of its config, whose data is prepared.
        num_ranks: that will train.

    Returns:
        What the ranks read, see `training.run_plan.resolve_run`.

    Raises:
        InputError: the config is refused.
    """
    from .training.run_plan import resolve_run

    return resolve_run(_find(STAGES[name].config), _find(STAGES[name].plan), values, num_ranks)


def start_training(name: str, values: dict[str, Any], options: RankOptions, *, may_fork: bool = False) -> int:
    """Check and prepare everything, then start the ranks of a training and supervise them; at the end write its card.

    The config is resolved once, here: the ranks read batch, steps and plan from a file. A length that only caps tell is
    settled before by a test with the same ranks. With `hub_model_id` a process beside the ranks publishes the run; it
    changes neither them nor the exit code.

    Args:
        name: of `STAGES`.
        values: the checked values of its config.
        options: which ranks.
        may_fork: this process has done nothing else, see `ForkServer`.

    Returns:
        0 done, 1 failed, 2 bad input met by a rank, 75 stopped and resumable.

    Raises:
        InputError: the config is refused; no rank was started and nothing is written.
    """
    from .distributed import before_ranks
    from .energy.recorder import count_from_now
    from .stage_folder import command_line, scratch_folder

    stage, script = STAGES[name], recipes_folder() / STAGES[name].recipe
    os.environ.setdefault("TTL_COMMAND", command_line())
    server = ForkServer(may_fork, [f"{__package__}.{stage.module}", "accelerate.commands.launch"])
    ranks = plan_ranks(script, [], options.accelerate, options.num_processes)
    publishing, num_ranks = _check_publishing(values), ranks.num_processes
    with scratch_folder() as folder, before_ranks(ranks.environments[0]):

        def resolve(values: dict[str, Any]) -> dict[str, Any]:
            return dict(server.call(lambda: resolve_training(name, values, num_ranks), folder))

        def start(resolved: dict[str, Any], log: Path | None = None) -> int:
            path = folder / "resolved.json"
            path.write_text(json.dumps(resolved), encoding="utf-8")
            words, asked = ["--resolved", str(path)], (options.accelerate, options.num_processes)
            try:
                return launch(script, words, *asked, log, forks=server.can_fork)
            finally:
                count_from_now()  # what the ranks took is in their own account

        given, prepares = values, values.get("inputs") or values.get("decay_from")
        values = server.call(lambda: _find(stage.prepare)(given, num_ranks), folder) if prepares else given
        if name == "pretrain":
            from .training.trials import settle_length

            values = settle_length(
                values,
                num_ranks,
                lambda tested, _: str(resolve(tested)["state"]),
                lambda tested, log: start(resolve(tested), log),
            )
        resolved, run = resolve(values), Path(values["output_dir"])
        if resolved["state"] == "complete":
            from .training.run_plan import describe_continuation

            print(f"{run} is complete; {describe_continuation(run)}")
            return EXIT_DONE
        return _beside_publishing(publishing, run, lambda: start(resolved))


def _check_publishing(values: dict[str, Any]) -> Any:
    """Return how the run is to be published while it trains, or None.

    Raises:
        InputError: see `check_follower`.
    """
    if not values.get("hub_model_id"):
        return None
    from .publishing.follow import check_follower

    return check_follower(values)


def _beside_publishing(publishing: Any, run: Path, train: Callable[[], int]) -> int:
    """Train, with a process beside it that publishes the run if it is to be, and write the card of a run that ended."""
    if publishing is None:
        code = train()
        _write_card(run, code)
        return code
    from .publishing.follow import report_follower, start_follower

    follower = start_follower(run, publishing)
    code = train()
    _write_card(run, code)
    report_follower(follower, code)
    return code


def _write_card(run: Path, code: int) -> None:
    if code == EXIT_DONE:
        with beside_the_model("the model card (`ttl card` writes it)"):
            from .publishing.card import write_model_card

            write_model_card(run)


def _find(place: str) -> Any:
    """Return what `module:name` names below this package; the name may be that of an attribute's attribute."""
    module, _, name = place.partition(":")
    return operator.attrgetter(name)(importlib.import_module(f"{__package__}.{module}"))
