"""The preflight: `ttl doctor` shows the computer, and with a run's YAML says whether the run should be started.

The order of the checks is that of their cost. What may open a GPU is done in a process of its own (`ForkServer`), so
that this one holds none of the memory that the speed test needs.
"""

import json
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
    ensure,
    ensure_file,
    near_name,
)
from ..distributed import before_ranks
from ..launch import RankOptions, RankPlan, launch, plan_ranks, recipes_folder, resolve_training
from ..processes import ForkServer
from ..stage_folder import scratch_folder
from ..supervision import supervise
from .findings import Diagnosis, State, show_hours
from .host import judge_network, machine_report, network_command, scrub
from .run_checks import Place, examine

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
SPEED_STEPS = 20


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
    elif "speed" not in skipped and stops:
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

    _say(f"speed    {SPEED_STEPS} steps of the run are trained")
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


def judge_speed(speed: Any, values: dict[str, Any], facts: dict[str, Any], bytes_per_second: float) -> Diagnosis:
    """Return hours, energy, emissions and money of a run by its speed test, and whether its caps pay for it.

    Args:
        speed: a `MeasuredSpeed`.
        values: of the run; `packed` is taken from the facts.
        facts: see `Examination`.
        bytes_per_second: that the run's disk takes; 0: not known.
    """
    from ..energy.emissions import grid_intensity
    from ..training.caps import CAP_KEYS
    from ..training.speed import hours_for, tokens_within

    values = {**values, "packed": facts["test"]["packed"]}
    caps = {key: float(values[key]) for key in CAP_KEYS if values.get(key) is not None}
    price, tokens, state, fix = facts["price"], float(facts["tokens_left"]), "ok", ""
    paid, cap = tokens_within(caps, float(price or 0), speed, values) if caps else (tokens, "")
    if cap and paid < facts["test"]["tokens_per_step"] * SPEED_STEPS:
        text = f"{cap}={caps[cap]:g} pays for {max(0.0, paid):,.0f} tokens, less than {SPEED_STEPS} steps"
        return Diagnosis("speed", "stop", text, "Raise it, or lower tokens_per_step")
    if cap and (paid < tokens or not tokens):
        state, fix = ("warning", f"{cap} ends the run after {paid / 1e6:,.2f}M tokens") if tokens else ("ok", "")
        tokens = paid
    saving = facts["saves_left"] * facts["checkpoint_bytes"] / bytes_per_second / 3600 if bytes_per_second else 0.0
    hours = hours_for(tokens, speed, values) + saving
    kwh = speed.watts / 1000 * hours
    kg = kwh * grid_intensity(*facts["grid"]) / 1000
    money = f"{price * speed.num_gpus * hours:,.2f} USD" if price is not None else "no money, as no price is given"
    energy = f"{kwh:,.3g} kWh, {kg:,.3g} kg CO2e" if speed.watts else "energy not measured"
    if not speed.watts:
        state, fix = "warning", "The meter measured nothing: no cap on energy can hold"
    text = (
        f"{speed.tokens_per_second:,.0f} tokens/s at {speed.watts:.0f} W on {speed.num_ranks} x {speed.hardware}: "
        f"{tokens / 1e6:,.2f}M tokens take {show_hours(hours)}, {energy}, {money} (this test: "
        f"{speed.spent_kwh:.3g} kWh)"
    )
    found: State = "warning" if state == "warning" else "ok"
    return Diagnosis("speed", found, text, fix, hours)
