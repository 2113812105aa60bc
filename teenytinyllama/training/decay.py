r"""Decay: where the rate of warmup_stable_decay begins to fall, and branches, which give a run another length.

    rate |  /------------s------\           Runs of e and of E steps with the same warm-up compute the same until the
         | /              \      \          decay of the shorter begins. So from a checkpoint of step s on, a run can be
         |/________________\______\____     finished with any length whose decay begins at s or later: a branch. It is
                           e      E  steps  the run that was planned with that length.

A branch is a run in a folder of its own. Its keys are those of the run that its checkpoint is of, and it resumes from
that checkpoint first; the rest is as in any run. The decay has its share of the branch's own length. The warm-up lies
behind, so the branch keeps the steps of its run, and likewise those between logs, evaluations and saves.
"""

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..arguments import check_types, read_mapping
from ..checkpointing.checkpoints import complete_checkpoints, read_marker
from ..checkpointing.saving import recorded_identity
from ..checks import InputError, ensure
from ..distributed import any_rank
from ..stage_folder import CONFIG_NAME, DECAY_NOW_NAME, ENVIRONMENT_NAME, StageFolder, parse_record, write_json

SCHEDULE = "warmup_stable_decay"
# Keys that say how the rate falls alone: nothing before the decay depends on them, so a branch may have others.
_DECAY_KEYS = frozenset({"num_decay_steps", "decay_type", "num_cycles"})
_INTERVALS = ("logging_steps", "eval_steps", "save_steps")
# Keys of a run that are not those of its branches.
_NOT_INHERITED = (
    "output_dir run_name decay_from max_tokens max_steps max_kwh max_cost max_hours hard_stop push_to_hub hub_model_id "
    "hub_strategy hub_private_repo hub_always_push hub_revision per_device_eval_batch_size"
)
MOST_NAMED = 5  # of the last checkpoints in a message, beside the first


@dataclass(frozen=True)
class Decision:
    """How a run ends earlier than planned.

    Attributes:
        step: the step at which it was decided; the learning rate begins to fall after it.
        end_step: the last step, the same as `step` when training stops at once.
        reason: what decided it; of a cap, the figure that would pass it.
        asked_for: whether somebody asked for it; else a cap decided.
    """

    step: int
    end_step: int
    reason: str
    asked_for: bool = False


def planned_decay_steps(max_steps: int, decay_fraction: float) -> int:
    """Return the length of the decay of a run of so many steps."""
    return max(1, round(decay_fraction * max_steps))


def decay_steps(step: int, decay_fraction: float) -> int:
    """Return the length of a decay that begins after `step`, so that it has its share of all steps.

    For a share below 1 it is what `planned_decay_steps` returns for a run of `step` and so many steps more.
    """
    if decay_fraction == 1:
        return max(1, step)
    return max(1, round(step * decay_fraction / (1 - decay_fraction)))


def decay_length(config: Any, step: int) -> int:
    """Return the length of a decay that begins after `step` with the keys of a `RunSettings`."""
    given = config.given_schedule if isinstance(config.given_schedule, dict) else {}
    return int(given.get("num_decay_steps") or decay_steps(step, config.decay_fraction))


def decay_begins(config: Any) -> int:
    """Return the step after which the rate of a config with this schedule falls."""
    assert isinstance(config.lr_scheduler_kwargs, dict)
    return int(config.max_steps) - int(config.lr_scheduler_kwargs["num_decay_steps"])


def can_begin_early(config: Any) -> bool:
    """Return whether the decay of a training can begin before its planned step: a pretraining of this schedule."""
    return hasattr(config, "early_end") and config.lr_scheduler_type == SCHEDULE and config.decay_fraction < 1


def decide_as_asked(config: Any, step: int, warmup_steps: int) -> Decision | str:
    """Return how to end a run whose decay was asked for after a step, or why it cannot begin then.

    Args:
        config: a `PretrainConfig`.
        step: that was just done.
        warmup_steps: of the schedule.
    """
    if step >= decay_begins(config):
        return f"the rate falls already, as planned since step {decay_begins(config):,}"
    if step < max(1, warmup_steps):
        return f"it begins once the warm-up is over, after step {warmup_steps:,}"
    end_step = min(step + decay_length(config, step), config.max_steps)
    return Decision(step, end_step, f"{DECAY_NOW_NAME} asked for the decay after step {step:,}", asked_for=True)


class DecayRequest:
    """Looks for the file `decay_now` in the folder of a run, and decides when it is there."""

    def __init__(self, config: Any, folder: Path) -> None:
        """Look in `folder` for the run of a `PretrainConfig`."""
        self.config, self.path = config, folder / DECAY_NOW_NAME
        self._answer: Decision | str = ""

    def answer(self, args: TrainingArguments, state: TrainerState, warmup_steps: int) -> Decision | None:
        """Return the decision after this step, the same on every rank, or None; all ranks have to call it.

        Rank 0 alone looks. It writes the decision into the file: a kill then changes nothing any more.
        """
        is_first = state.is_world_process_zero
        if not any_rank(is_first and self.path.exists(), args.device):
            return None
        before, self._answer = self._answer, decide_as_asked(self.config, state.global_step, warmup_steps)
        if isinstance(self._answer, Decision):
            if is_first:
                write_json(self.path, asdict(self._answer))
            return self._answer
        if is_first and self._answer != before:
            tqdm.write(f"decay      {DECAY_NOW_NAME}: {self._answer}")
        return None


def recorded_decision(folder: Path, step: int) -> Decision | None:
    """Return the decision that was asked for in the folder of a run, for a start at a step before it; None without one.

    Raises:
        InputError: its file holds something else.
    """
    path = folder / DECAY_NOW_NAME
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not text:
        return None  # asked for, not decided
    try:
        found = Decision(**json.loads(text))
        return found if 0 < found.step < found.end_step and step <= found.step else None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: holds no decision ({error}). Delete it, or empty it to ask for the decay."
        ) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the Trainer's state in a checkpoint.

    Raises:
        InputError: it is damaged.
    """
    path = checkpoint / "trainer_state.json"
    try:
        ensure(path.is_file(), f"{path}: is no file. Delete that checkpoint.")  # a pipe would be waited for
        return parse_record(path.read_bytes())
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Delete that checkpoint.") from error


def exported(state: dict[str, Any]) -> dict[str, Any]:
    """Return what the callback that decides, `caps.CapCallback`, keeps in the Trainer's state."""
    states = state.get("stateful_callbacks") or {}
    found: dict[str, Any] = states.get("CapCallback", {}).get("attributes", {})
    return found


def decision_in(state: dict[str, Any], path: Path) -> Decision | None:
    """Return the decision to end earlier that the Trainer's state in a checkpoint holds, or None.

    Args:
        state: see `read_state`.
        path: of the checkpoint, for the message.

    Raises:
        InputError: it is damaged.
    """
    try:
        found = exported(state).get("decision")
        return Decision(**found) if found else None
    except (TypeError, AttributeError) as error:
        raise InputError(f"{path / 'trainer_state.json'}: cannot be read ({error}). Delete that checkpoint.") from error


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint that a branch begins at, and what its run was then.

    Attributes:
        path: of the checkpoint.
        step: of the checkpoint.
        values: the keys in the run's `config.yaml`.
        steps: of the run's warm-up, and between its logs, evaluations and saves where the run has shares for them.
        decay_step: after which the rate of the run falls, or fell.
    """

    path: Path
    step: int
    values: dict[str, Any]
    steps: dict[str, int]
    decay_step: int


def read_branch_point(checkpoint: str, config_class: type) -> BranchPoint:
    """Return what a checkpoint and its run say.

    Args:
        checkpoint: the key `decay_from`.
        config_class: of the run.

    Raises:
        InputError: no complete checkpoint in the folder of its run, or a run with another schedule.
    """
    path = Path(checkpoint)
    ensure(
        not (path / ENVIRONMENT_NAME).is_file(),
        f"decay_from={path}: is a run. Give one of its checkpoints: {_names(complete_checkpoints(path))}.",
    )
    ensure(
        path.is_dir(),
        f"decay_from={path}: no such folder. Give a checkpoint in the folder of a run: "
        f"{_names(complete_checkpoints(path.parent))}.",
    )
    step, values = read_marker(path).step, _run_values(path.parent, config_class)
    names = ("lr_scheduler_type", "decay_fraction", "warmup_steps", *_INTERVALS)
    stated = {name: values.get(name, getattr(config_class, name)) for name in names}
    schedule = stated["lr_scheduler_type"]
    ensure(
        schedule == SCHEDULE,
        f"decay_from={path}: its run has lr_scheduler_type={schedule}, whose rate at every step depends on the run's "
        f"length. Only runs with {SCHEDULE} have branches.",
    )
    state = read_state(path)
    max_steps, decision, warmup = int(state.get("max_steps", 0)), decision_in(state, path), stated["warmup_steps"]
    given = (values.get("lr_scheduler_kwargs") or {}).get("num_decay_steps")
    planned = max_steps - int(given or planned_decay_steps(max_steps, stated["decay_fraction"]))
    fell, known = _rate_fell(state), exported(state).get("warmup_steps")
    steps = {name: int(state[name]) for name in _INTERVALS if 0 < (stated[name] or 0) < 1 and state.get(name)}
    steps["warmup_steps"] = math.ceil(warmup * max_steps) if 0 < warmup < 1 else int(warmup)
    if known is not None:  # since then the run may have got another length, and its share another meaning
        steps["warmup_steps"] = int(known)
    return BranchPoint(
        path, step, values, steps, min(decision.step if decision else planned, planned if fell is None else fell - 2)
    )


def _run_values(folder: Path, config_class: type) -> dict[str, Any]:
    """Return the keys in the `config.yaml` of a run.

    Raises:
        InputError: the folder holds no run that has begun, or a key that this version does not know.
    """
    config, environment = folder / CONFIG_NAME, folder / ENVIRONMENT_NAME
    ensure(
        config.is_file() and environment.is_file(),
        f"decay_from: {folder} has no {CONFIG_NAME} and {ENVIRONMENT_NAME} of a run. Give a checkpoint that lies in "
        "the folder of its run: a branch needs the run's keys too.",
    )
    return check_types(config_class, read_mapping(config))


def _rate_fell(state: dict[str, Any]) -> int | None:
    """Return the first logged step of a checkpoint's past with a rate below an earlier one, or None.

    It tells a run that decayed to its end and was then made longer, whatever the config says now. The rate that falls
    after step s is that of step s + 1 still: a decay begins with its peak.
    """
    peak = 0.0
    for record in state.get("log_history") or []:
        rate = record.get("learning_rate")
        if rate is None:
            continue
        if rate < peak * (1 - 1e-9):
            return int(record["step"])
        peak = max(peak, rate)
    return None


def branch_values(config_class: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a branch: those of the run that its checkpoint is of, with the given ones on top.

    Values without `decay_from` come back as they are. A branch that has begun has its keys in its own folder: neither
    the checkpoint nor its run need to be there any more.

    Raises:
        InputError: a length or a new folder is missing, or see `read_branch_point`.
    """
    source, output_dir = values.get("decay_from"), values.get("output_dir")
    if source is None:
        return values
    ensure(output_dir, "output_dir: missing. Give a new folder for the branch.")
    folder = Path(str(output_dir))
    ensure(
        folder.resolve() != Path(source).resolve().parent,
        f"output_dir={folder}: is the folder of the run that decay_from={source} is of. Give a new one for the branch.",
    )
    ensure(
        values.get("max_tokens") is not None or (values.get("max_steps") or -1) > 0,
        "max_tokens: missing. Give the tokens of the finished branch, counted from the beginning of its run.",
    )
    begun = (folder / ENVIRONMENT_NAME).is_file() and (folder / CONFIG_NAME).is_file()
    point = None if begun else read_branch_point(source, config_class)
    before = point.values if point else _run_values(folder, config_class)
    ensure(
        point or before.get("decay_from"),
        f"output_dir={folder}: holds a run that is no branch. Give a new folder for the branch.",
    )
    # Rows that are given as texts are packed anew, and compared with the run's by their hash.
    left_out = {*_NOT_INHERITED.split(), *(["packed"] if values.get("inputs") else [])}
    merged = {**{name: value for name, value in before.items() if name not in left_out}, **values}
    for name in ("warmup_steps", *_INTERVALS):
        given, stated = values.get(name), before.get(name, getattr(config_class, name))
        if given in (None, stated) or (begun and 0 < float(given or 0) < 1):
            merged[name] = point.steps.get(name, stated) if point else stated
    return check_types(config_class, merged)


def check_branch(config: Any, identity: dict[str, Any], defaults: dict[str, str]) -> None:
    """Refuse a branch that would not be the run that was planned with its length.

    Args:
        config: a `PretrainConfig` with `decay_from`, with everything derived.
        identity: of the branch, see `run_identity`.
        defaults: see `identity_defaults`.

    Raises:
        InputError: its run differs in what decided the weights so far, the checkpoint is of a step in or after a decay,
            or the length is too short.
    """
    point = read_branch_point(config.decay_from, type(config))
    run, refusal = point.path.parent, f"decay_from={config.decay_from}: "
    environment = StageFolder(run, "training", "run").begun()
    assert environment is not None  # `read_branch_point` has looked
    before = recorded_identity(run, environment, defaults)
    free = {"warmup_steps", "decay_fraction", "lr_scheduler_kwargs"}
    different = [f"{name} (there {before.get(name)}, now {value})" for name, value in {**defaults, **identity}.items()
                 if name not in free and before.get(name) != value]  # fmt: skip
    warmup_steps = point.steps["warmup_steps"]
    if int(config.warmup_steps) != warmup_steps:
        different.append(f"warmup_steps (there {warmup_steps}, now {int(config.warmup_steps)})")
    schedules = [_before_decay(kwargs) for kwargs in (point.values.get("lr_scheduler_kwargs"), config.given_schedule)]
    if schedules[0] != schedules[1]:
        different.append(f"lr_scheduler_kwargs (there {schedules[0]}, now {schedules[1]})")
    ensure(
        not different,
        f"{refusal}its run differs: {'; '.join(different)}. A branch keeps what decided the weights so far. Leave "
        f"those out; only decay_fraction, and {', '.join(sorted(_DECAY_KEYS))} of lr_scheduler_kwargs, may differ.",
    )
    ensure(
        point.step <= point.decay_step,
        f"{refusal}is of step {point.step:,}, and the rate of its run falls after step {point.decay_step:,}. Give a "
        f"checkpoint of that step or before: {_names(stable_checkpoints(run, point.decay_step))}.",
    )
    begins, least = decay_begins(config), point.step + decay_length(config, point.step)
    ensure(
        point.step <= begins,
        f"max_tokens={config.max_tokens or config.max_steps * config.tokens_per_step}: the decay of a run of that "
        f"length begins after step {max(0, begins):,}, before the checkpoint of step {point.step:,}. Give at least "
        f"{least * config.tokens_per_step:,} tokens, or an earlier checkpoint: "
        f"{_names(stable_checkpoints(run, begins))}.",
    )


def _before_decay(kwargs: Any) -> dict[str, Any]:
    return {name: value for name, value in (kwargs or {}).items() if name not in _DECAY_KEYS}


def stable_checkpoints(folder: Path, decay_step: int) -> list[tuple[int, Path]]:
    """Return (step, folder) of the first and the last few complete checkpoints up to a step and before any decay."""
    there = [(step, path) for step, path in complete_checkpoints(folder) if step <= decay_step]
    last = list(islice(((step, path) for step, path in reversed(there) if _is_stable(path)), MOST_NAMED))[::-1]
    # What lies before a stable checkpoint is stable too, so the first need not be read.
    return [found for found in there[:1] if last and found[0] < last[0][0]] + last


def _is_stable(checkpoint: Path) -> bool:
    try:
        return _rate_fell(read_state(checkpoint)) is None
    except InputError:  # damaged: no run will begin there
        return False


def _names(checkpoints: list[tuple[int, Path]]) -> str:
    return ", ".join(str(path) for _, path in checkpoints[:1] + checkpoints[1:][-MOST_NAMED:]) or "none is there"


class LeaseCallback(TrainerCallback):
    """Gives back the lease of another run's checkpoint once every rank has loaded it, after the first step."""

    def __init__(self, held: ExitStack) -> None:
        """Give back what `held` holds."""
        self.held = held

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give it back; every later call does nothing."""
        self.held.close()


def begun_folder(config: Any, folder: Path) -> Path:
    """Return the folder that records how a run has computed so far: its own, or for a new branch its run's."""
    source = getattr(config, "decay_from", None)
    return Path(source).parent if source and not (folder / ENVIRONMENT_NAME).is_file() else folder
