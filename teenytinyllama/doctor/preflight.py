"""The preflight: `ttl doctor` shows the computer, and with a run's YAML says whether the run should be started.

The order of the checks is that of their cost. What may open a GPU is done in a process of its own (`ForkServer`), so
that this one holds none of the memory that the speed test needs.
"""

import contextlib
import getpass
import json
import os
import platform
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..arguments import load_yaml, merge_config, split_command
from ..checks import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_RESUMABLE,
    InputError,
    RunFailedError,
    StoppedResumable,
    available_cores,
    counted,
    ensure,
    ensure_file,
    format_bytes,
    free_disk_bytes,
    near_name,
)
from ..disk import scratch_folder
from ..distributed import NETWORK_SECONDS, before_ranks
from ..energy.meter import load_nvml
from ..gpus import free_memory_bytes, processor_name
from ..launching.launch import ForkServer, launch, recipes_folder, resolve_training
from ..launching.processes import supervise
from ..launching.ranks import RankOptions, RankPlan, plan_ranks
from ..stage_folder import __version__, package_commit, utc_now, versions
from . import Diagnosis, State, show_hours
from .run_checks import SPEED_STEPS, Place, examine, judge_speed

KINDS = ("pretrain", "sft", "dpo")
Kind = Literal["pretrain", "sft", "dpo"]
# Keys that only the config of one verb has; those of other verbs are known for the refusal alone.
_SIGNATURES = {
    "lab": {"arms", "sizes"},
    "pretrain": {"packed", "preset", "shape", "decay_from", "max_kwh", "max_cost", "max_hours"},
    "dpo": {"preferences", "pairs_per_step", "beta"},
    "sft": {"conversations", "assistant_only_loss", "learns_answers", "long_conversations"},
    "corpus": {"sources", "mixing"},
    "tokenizer": {"vocab_size", "num_superwords"},
    "pack": {"tokenizer"},
    "evaluate": {"tasks"},
    "classify": {"task"},
}
_CONFIGS = {"pretrain": "training.config:PretrainConfig", "sft": "tuning.config:SftConfig",
            "dpo": "tuning.config:DpoConfig"}  # fmt: skip


@dataclass(frozen=True)
class DoctorOptions(RankOptions):
    """`ttl doctor RUN.yaml`: what is checked, beside the keys of the run's own config."""

    verb: Kind | None = field(
        default=None, metadata={"help": "which verb the YAML is for; null: told by its name or its keys"}
    )
    speed_test: bool = field(
        default=True, metadata={"help": f"train {SPEED_STEPS} steps of a pretraining, to tell its hours, kWh and money"}
    )
    plot: str | None = field(
        default=None,
        metadata={"help": "PNG file for the curve of the learning rate; null: beside the run's folder, by its name"},
    )


def run_doctor(argv: list[str], may_fork: bool) -> int:
    """Show the computer, check a run if one is given, print what was found, and return 0 (go) or 2 (stop).

    Args:
        argv: the command line behind the verb.
        may_fork: see `ForkServer`.

    Raises:
        InputError: a file or a key that is not of a training.
    """
    kind, values, options = read_command(argv)
    modules = [f"{__package__.rpartition('.')[0]}.training.pretrain", "accelerate.commands.launch"] if kind else []
    server = ForkServer(may_fork, modules)
    with scratch_folder() as folder:
        for line in server.call(machine_report, folder):
            _say(line)
        if kind is None:
            return EXIT_DONE
        return _examine_run(kind, values, options, server, folder)


def read_command(argv: list[str]) -> tuple[str | None, dict[str, Any], DoctorOptions]:
    """Return which verb's run is to be checked, or None, with the checked values of its config, and our own keys.

    Raises:
        InputError: see `split_command` and `merge_config`; also a YAML of a stage that is no training.
    """
    from ..arguments import check_types

    free, given = split_command(argv, DoctorOptions, most_words=1)
    names = DoctorOptions.__dataclass_fields__
    path = free[0] if free else given.get("config")
    if path is None:
        shown = ", ".join(sorted(set(given) - set(names)))
        ensure(not shown, f"{shown}: a key of a run, and no run is given. Write `ttl doctor RUN.yaml --key value`.")
        return None, {}, DoctorOptions(**check_types(DoctorOptions, given))
    ensure(not free or "config" not in given, f"{path}, config={given.get('config')}: give the YAML once.")
    kind = given.get("verb") or kind_of(str(path))
    ensure(kind in KINDS, f"verb={kind}: must be one of {', '.join(KINDS)}.{near_name(str(kind), KINDS)}")
    cls = _find_config(kind)
    _, given = split_command(argv, DoctorOptions, cls, most_words=1)
    options = DoctorOptions(**check_types(DoctorOptions, {key: given.pop(key) for key in names if key in given}))
    return kind, merge_config(cls, {**given, "config": str(path)}), options


def _find_config(kind: str) -> type:
    import importlib

    module, _, name = _CONFIGS[kind].partition(":")
    package = str(__package__).rpartition(".")[0]
    found: type = getattr(importlib.import_module(f"{package}.{module}"), name)
    return found


def kind_of(path: str) -> str:
    """Return which training a YAML file is for, by its name or by its keys.

    Raises:
        InputError: it is for another verb, or it does not tell.
    """
    file = ensure_file("config", path, "Give the YAML of a run; `ttl init DIR` copies examples.")
    ensure(file.is_file(), f"config={path}: is no file. Give the YAML of a run.")
    if file.stem in KINDS:
        return file.stem
    try:
        content = load_yaml(file.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise InputError(f"config={path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
    keys = set(content) if isinstance(content, dict) else set()
    found = (
        file.stem
        if file.stem in _SIGNATURES
        else next((kind for kind in _SIGNATURES if keys & _SIGNATURES[kind]), None)
    )
    ensure(found is not None, f"config={path}: does not tell which verb it is for. Give --verb {', '.join(KINDS)}.")
    ensure(
        found in KINDS,
        f"config={path}: is for `ttl {found}`, which checks its config by itself before it works. `ttl doctor` checks "
        f"trainings: {', '.join(KINDS)}. If it is one, give --verb.",
    )
    return str(found)


def _examine_run(kind: str, values: dict[str, Any], options: DoctorOptions, server: ForkServer, folder: Path) -> int:
    script = recipes_folder() / f"{kind}.py"
    options.ensure_one_machine(
        "doctor", "Run it on each, with that machine's ranks as num_processes (with srun: --nodes=1)."
    )
    ranks = plan_ranks(script, [], options.accelerate, options.num_processes)
    uses_gpu = ranks.uses_gpu and not values.get("use_cpu")
    place = Place(ranks.num_processes, uses_gpu, options.plot)
    with before_ranks(ranks.environments[0]):
        seen = server.call(lambda: examine(kind, values, place), folder)
    found, facts, skipped = [Diagnosis(**item) for item in seen["found"]], seen["facts"], seen["skipped"]
    for line in [*seen["rows"], *(item.line for item in found)]:
        _say(line)
    if ranks.num_processes > 1:
        found.append(check_network(ranks, folder, int(facts.get("gradient_bytes", 0)), uses_gpu))
        _say(found[-1].line)
    stops = [item.name for item in found if item.state == "stop"]
    if "speed" not in skipped and not options.speed_test:
        skipped["speed"] = "speed_test is false"
    elif "speed" not in skipped and "speed" not in stops and stops:
        skipped["speed"] = "of the stop above"
    if "speed" not in skipped and "test" in facts:
        writing = next((item.figure for item in found if item.name == "writing"), 0.0)
        found.append(check_speed_of_run(values, facts, options, ranks, server, folder, writing))
        _say(found[-1].line)
    for reason in dict.fromkeys(skipped.values()):
        _say(f"skipped  {', '.join(name for name in skipped if skipped[name] == reason)}: {reason}")
    stops = [item.name for item in found if item.state == "stop"]
    warnings = [item.name for item in found if item.state == "warning"]
    looks = f", and look at: {', '.join(warnings)}" if warnings else ""
    _say(f"stop: {', '.join(stops)}" if stops else f"go{looks}")
    return EXIT_BAD_INPUT if stops else EXIT_DONE


def _say(text: str) -> None:
    print(scrub(text), flush=True)


def check_network(ranks: RankPlan, folder: Path, gradient_bytes: int, uses_gpu: bool = False) -> Diagnosis:
    """Start the ranks of a run, let them add up numbers, and return how fast they did.

    Args:
        ranks: of the run.
        folder: for files of this check.
        gradient_bytes: that a step adds up over the ranks; 0: not known.
        uses_gpu: whether each rank computes on a GPU.
    """
    result, log = folder / "network.json", folder / "network.log"
    command = network_command(result, "cuda" if uses_gpu else "cpu")
    code = _unless_stopped(supervise(command, ranks.environments, log))
    found = json.loads(result.read_text(encoding="utf-8")) if code == EXIT_DONE and result.is_file() else None
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return judge_network(found, ranks.num_processes, gradient_bytes, said)


def _unless_stopped(code: int) -> int:
    """Return the exit code of ranks.

    Raises:
        StoppedResumable: a signal ended them, which a user has sent to this command.
    """
    if code == EXIT_RESUMABLE:
        raise StoppedResumable("nothing is left behind; the same command begins again")
    return code


def check_speed_of_run(
    values: dict[str, Any],
    facts: dict[str, Any],
    options: DoctorOptions,
    ranks: RankPlan,
    server: ForkServer,
    folder: Path,
    bytes_per_second: float,
) -> Diagnosis:
    """Train a few steps like the run's on its own rows and ranks, and return what the whole run will take.

    Args:
        values: of the run.
        facts: see `Examination`.
        options: which ranks.
        ranks: the same, as they are started.
        server: forks what resolves the test's config.
        folder: in which the test is made.
        bytes_per_second: that the run's disk takes; 0: not known.
    """
    from ..training.trials import measure_speed

    seconds = facts.get("test_seconds", 0)  # known without a GPU, where they are many
    about = f", for about {show_hours(seconds / 3600)}" if seconds > 10 else ""
    _say(f"speed    {SPEED_STEPS} steps of the run are trained{about}")
    test = {**facts["test"], "output_dir": str(folder / "run")}

    def train(tested: dict[str, Any], log: Path) -> int:
        tested = {**tested, "warmup_steps": max(SPEED_STEPS, facts["warmup_steps"])}  # as the run itself begins
        with before_ranks(ranks.environments[0]):
            resolved = server.call(lambda: resolve_training("pretrain", tested, ranks.num_processes), folder)
        path = folder / "resolved.json"
        path.write_text(json.dumps(resolved), encoding="utf-8")
        words, asked = ["--resolved", str(path)], (options.accelerate, options.num_processes)
        return _unless_stopped(launch(recipes_folder() / "pretrain.py", words, *asked, log, forks=server.can_fork))

    try:
        speed = measure_speed(test, ranks.num_processes, train, SPEED_STEPS)
    except (InputError, RunFailedError) as error:
        return Diagnosis("speed", "stop", " ".join(str(error).split())[-600:])
    return judge_speed(speed, values, facts, bytes_per_second)


_SLOW_NETWORK = 0.1e9  # bytes a second: a line of 1 Gbit/s, over which gradients take longer than the step
# What a rank runs: `python -c RANK_PROGRAM FILE DEVICE`.
RANK_PROGRAM = "import sys; from teenytinyllama.distributed import measure_network; measure_network(*sys.argv[1:])"


def network_command(path: Path, device_type: str) -> list[str]:
    """Return the command of a rank that measures the network."""
    return [sys.executable, "-c", RANK_PROGRAM, str(path), device_type]


def judge_network(found: dict[str, Any] | None, num_ranks: int, gradient_bytes: int, log: str) -> Diagnosis:
    """Return what the times of all-reduces mean for a training.

    The bandwidth is that of each rank's line: all-reduces by a ring send 2 (n - 1) / n of the bytes over it.

    Args:
        found: what rank 0 has written; None: the ranks did not come together.
        num_ranks: that took part.
        gradient_bytes: that a step adds up over the ranks; 0: not known.
        log: what the ranks said.
    """
    if found is None:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "they said nothing")
        return Diagnosis(
            "network", "stop", f"{num_ranks} ranks could not add up numbers within {NETWORK_SECONDS} s: {last[:200]}",
            "Is a firewall between them, or another interface needed (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)?",
        )  # fmt: skip
    bandwidth = 2 * (num_ranks - 1) / num_ranks * found["bytes"] / found["seconds"]
    text = (
        f"{num_ranks} ranks over {found['backend']}: {format_bytes(round(bandwidth))}/s, "
        f"{1000 * found['latency_seconds']:.2f} ms at least"
    )
    if gradient_bytes:
        seconds = gradient_bytes / found["bytes"] * found["seconds"]
        text += f"; the gradients of a step, {format_bytes(gradient_bytes)}, take {seconds:.3g} s"
    state: State = "warning" if bandwidth < _SLOW_NETWORK else "ok"
    fix = "" if state == "ok" else "Use ranks of one machine or a faster line, or more tokens a step"
    return Diagnosis("network", state, text, fix)


# Libraries that decide what a run does, beside those of every manifest.
_LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "deepspeed", "trl", "peft", "datasets", "datatrove",
              "huggingface_hub", "safetensors", "numpy", "pyarrow", "codecarbon", "matplotlib", "gradio", "lm_eval",
              "triton", "flash_attn", "liger_kernel")  # fmt: skip
# Variables that change how a run computes and hold no secret.
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "NCCL_P2P_DISABLE",
              "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # fmt: skip


def machine_report() -> list[str]:
    """Return versions and hardware as lines to paste into a bug report: no path, no name of a person or computer."""
    import psutil
    import torch

    installed = versions(_LIBRARIES)
    source = f"commit {package_commit()}" if package_commit() else "installed"
    memory = psutil.virtual_memory()
    free = free_memory_bytes(torch.device("cpu"))
    lines = {
        "version": f"teenytinyllama {__version__} ({source}), python {installed.pop('python')}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "libraries": ", ".join(f"{name} {version}" for name, version in installed.items()),
        "torch": f"CUDA {torch.version.cuda or 'none'}, ROCm {torch.version.hip or 'none'}, "
        f"{counted(torch.get_num_threads(), 'thread')}",
        **_gpus(),
        "processor": f"{processor_name()}, {available_cores()} of {counted(os.cpu_count() or 1, 'core')} usable",
        "memory": f"{format_bytes(memory.total)}, {format_bytes(free)} of them free for a process",
        "disk": f"{format_bytes(free_disk_bytes(Path.cwd()))} free in this folder, "
        f"{format_bytes(free_disk_bytes(tempfile.gettempdir()))} in that for temporary files",
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ) or "none",
        "time": utc_now(),
    }
    return [scrub(f"{name:10} {text}") for name, text in lines.items()]


def _gpus() -> dict[str, str]:
    """Return a line for each GPU by its name, and one for the driver."""
    import torch

    if not torch.cuda.is_available():
        other = torch.accelerator.current_accelerator(check_available=True)
        return {"GPU": f"none{f' of CUDA; torch sees {other.type}' if other else ''}"}
    found = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"GPU {index}"] = (
            f"{torch.cuda.get_device_name(index)}, {format_bytes(total)}, {format_bytes(free)} of them free"
        )
    nvml = load_nvml()
    if nvml is not None:
        driver = nvml.nvmlSystemGetDriverVersion()
        found["driver"] = driver.decode() if isinstance(driver, bytes) else str(driver)
    return found


def scrub(text: str) -> str:
    """Return a text without the path of the home folder, the user's name and the computer's name.

    A user's name is left out where it is a part of a path, and where it is long enough to be no word by chance.
    """
    home, host = str(Path.home()), platform.node()
    names = {os.environ.get("USER", ""), os.environ.get("LOGNAME", ""), Path(home).name}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a container's user may have no name
        names.add(getpass.getuser())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", "USER", text)
        if len(name) >= 5:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", "USER", text)
    for name in sorted({host, host.partition(".")[0]} - {"", "localhost"}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "HOST", text)
    return text
