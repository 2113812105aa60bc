r"""Caps on energy, money and hours: the decay of the learning rate begins when what is left pays for no more than it.

    rate |  /------------------\            s: the logging step at which waiting for the next one would let spent +
         | /                    \              decay + final evaluation pass the cap
         |/______________________\____      e: the end, s + the decay, whose share of all steps is decay_fraction
                                 s    e

From s on the run is, number for number, the run that would have been configured with e steps, and this is also what a
resume makes of it: both steps lie in the checkpoint. With a schedule that has no such moment, and with `hard_stop`,
training ends where it stands. Sums include the steps that a kill made worthless; so a cap holds over all starts, up to
one logging interval, up to a decay that becomes slower than the steps before it, and up to a kill within the decay.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..checks import InputError, ensure
from ..collectives import any_rank
from .spending import SpendingCallback, Spent, usd

if TYPE_CHECKING:
    from .config import PretrainConfig

CAP_KEYS = {"max_kwh": "kWh", "max_cost": "USD", "max_hours": "hours"}
_SCHEDULE = "warmup_stable_decay"


@dataclass(frozen=True)
class Decision:
    """How a cap ends a run.

    Attributes:
        step: at which it was decided; the rate begins to fall after it.
        end_step: the last step, the same as `step` when training just stops.
        reason: the cap and what it was compared with.
    """

    step: int
    end_step: int
    reason: str


def has_caps(config: Any) -> bool:
    """Return whether a config, or its values by name, caps a run."""
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    return any(get(key) is not None for key in CAP_KEYS)


def check_caps(config: "PretrainConfig") -> None:
    """Refuse caps that cannot hold.

    Raises:
        InputError: a cap that is not positive, money without a price, a schedule that cannot be ended early.
    """
    for key, unit in CAP_KEYS.items():
        value = getattr(config, key)
        ensure(value is None or 0 < value < math.inf, f"{key}={value}: must be positive, in {unit}.")
    ensure(
        config.max_cost is None or config.price,
        f"max_cost={config.max_cost}, price={config.price}: needs a price above 0, the USD for an hour of one GPU.",
    )
    ensure(
        has_caps(config) or not config.hard_stop,
        f"hard_stop=true: ends a run at a cap, and there is none. Give one of {', '.join(CAP_KEYS)}.",
    )
    ensure(
        not has_caps(config) or config.hard_stop or config.lr_scheduler_type == _SCHEDULE,
        f"lr_scheduler_type={getattr(config.lr_scheduler_type, 'value', config.lr_scheduler_type)}: a cap would cut it "
        f"off while the learning rate is still high. Set lr_scheduler_type: {_SCHEDULE}, whose decay begins in time, "
        "or hard_stop: true to stop all the same.",
    )
    ensure(
        not has_caps(config) or "num_decay_steps" not in (config.lr_scheduler_kwargs or {}),
        "lr_scheduler_kwargs: num_decay_steps cannot be given with a cap, which decides it. Set decay_fraction.",
    )


def _capped_sums(config: Any, spent: Spent) -> dict[str, tuple[float, float]]:
    """Return (cap, spent) for each cap of a config."""
    sums = {"max_kwh": spent.kwh, "max_cost": usd(spent, config.price) or 0.0, "max_hours": spent.hours}
    caps = {key: getattr(config, key) for key in CAP_KEYS}
    return {key: (cap, sums[key]) for key, cap in caps.items() if cap is not None}


def exceeded_cap(config: Any, spent: Spent) -> str | None:
    """Return the cap that a sum passes, with both figures, or None."""
    for key, (cap, value) in _capped_sums(config, spent).items():
        if value > cap:
            return f"{key}={cap:g}: {value:.6g} {CAP_KEYS[key]}"
    return None


def hours_until_cap(config: Any, spent: Spent) -> float:
    """Return the hours until the first cap is reached at the mean power so far; infinite without any."""
    later = _capped_sums(config, spent.after(1.0))
    hours = [(cap - value) / (later[key][1] - value)
             for key, (cap, value) in _capped_sums(config, spent).items() if later[key][1] > value]  # fmt: skip
    return max(0.0, min(hours, default=math.inf))


def decay_steps(step: int, decay_fraction: float) -> int:
    """Return how long a decay that begins after `step` has to be to make up its share of all steps."""
    if decay_fraction == 1:
        return max(1, step)
    return max(1, round(step * decay_fraction / (1 - decay_fraction)))


def decide(
    config: "PretrainConfig", spending: SpendingCallback, step: int, warmup_steps: int, decays: bool
) -> Decision | None:
    """Return how to end the run if it cannot wait for the next logging step, or None to go on.

    Pure but for its arguments; all ranks have the same figures and so decide the same.

    Args:
        config: has the caps, the schedule and the planned length.
        spending: what was spent, and the pace.
        step: that was just done.
        warmup_steps: of the schedule.
        decays: whether a cap has begun the decay already.
    """
    interval = max(1, int(config.logging_steps))
    if config.hard_stop:
        soon = spending.projected(interval) or spending.now
        if cap := exceeded_cap(config, soon):
            return Decision(step, step, f"{cap} at the next logging step, with the final evaluation")
    if decays or config.lr_scheduler_type != _SCHEDULE or _decays_as_planned(config, step):
        return None
    if step < max(1, warmup_steps):  # nothing was learnt that a decay could settle
        cap = exceeded_cap(config, spending.now)
        return Decision(step, step, f"{cap} spent in the warm-up") if cap else None
    later = step + interval
    end = spending.projected(interval + decay_steps(later, config.decay_fraction))
    cap = exceeded_cap(config, end or spending.now)
    if not cap:
        return None
    return Decision(
        step,
        min(step + decay_steps(step, config.decay_fraction), config.max_steps),
        f"{cap} would be reached by a decay that began {interval} steps later",
    )


def _decays_as_planned(config: "PretrainConfig", step: int) -> bool:
    assert isinstance(config.lr_scheduler_kwargs, dict)
    return step >= config.max_steps - int(config.lr_scheduler_kwargs["num_decay_steps"])


class CapCallback(TrainerCallback, ExportableState):
    """Ask `decide` at each logging step and carry the decision out; it is saved in every later checkpoint."""

    def __init__(
        self,
        config: "PretrainConfig",
        spending: SpendingCallback,
        decision: Decision | None,
        is_blind: Callable[[], bool] = lambda: False,
    ) -> None:
        """Watch the caps of a run.

        Args:
            config: has the caps.
            spending: what was spent so far.
            decision: that of the checkpoint it resumes from, already in its config.
            is_blind: whether this rank's meter has failed. Then nobody counts what `max_kwh` caps, and the run stops.
        """
        self.config, self.spending, self.decision, self.is_blind = config, spending, decision, is_blind
        self.stopped_blind = False

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"decision": asdict(self.decision) if self.decision else None}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make room for the decision in a state that was saved without one."""
        states: Any = state.stateful_callbacks
        states[type(self).__name__] = self.state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide at logging steps; call it after the spending was added up."""
        if not control.should_log or control.should_training_stop or state.global_step >= state.max_steps:
            return
        if self.config.max_kwh is not None and any_rank(self.is_blind(), args.device):
            self.stopped_blind = control.should_training_stop = control.should_save = True
            control.should_evaluate = False
            return
        warmup_steps = args.get_warmup_steps(self.config.max_steps)
        decision = decide(self.config, self.spending, state.global_step, warmup_steps, self.decision is not None)
        if decision is None:
            return
        self.decision = decision
        state.max_steps = decision.end_step
        if decision.end_step > decision.step:
            begin_decay(kwargs["lr_scheduler"], self.config, decision)
        else:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False  # the final one comes
        if state.is_world_process_zero:
            what = f"the rate falls until step {decision.end_step}" if decision.end_step > decision.step else "the end"
            print(f"cap        {decision.reason}; from step {decision.step} on: {what}", flush=True)


def begin_decay(scheduler: Any, config: "PretrainConfig", decision: Decision) -> None:
    """Let a live scheduler go on as the one of a run of `end_step` steps, which has had the same rates until now."""
    from transformers import get_scheduler

    inner = scheduler
    while not isinstance(inner, torch.optim.lr_scheduler.LambdaLR):
        inner = inner.scheduler  # accelerate's and DeepSpeed's wrappers
    dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    assert isinstance(config.lr_scheduler_kwargs, dict)
    kwargs = {**config.lr_scheduler_kwargs, "num_decay_steps": decision.end_step - decision.step}
    planned = get_scheduler(
        config.lr_scheduler_type,
        dummy,
        num_warmup_steps=config.get_warmup_steps(config.max_steps),
        num_training_steps=decision.end_step,
        scheduler_specific_kwargs=kwargs,
    )
    inner.lr_lambdas = [planned.lr_lambdas[0] for _ in inner.lr_lambdas]


def stored_decision(checkpoint: Path | None) -> Decision | None:
    """Return what a cap had decided by the time of a checkpoint, or None.

    Raises:
        InputError: its state is damaged.
    """
    if checkpoint is None:
        return None
    path = checkpoint / "trainer_state.json"
    try:
        states = json.loads(path.read_text(encoding="utf-8")).get("stateful_callbacks") or {}
        found = states.get(CapCallback.__name__, {}).get("attributes", {}).get("decision")
        return Decision(**found) if found else None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Delete that checkpoint.") from error


def apply_decision(config: "PretrainConfig", decision: Decision | None) -> None:
    """Make a config the one of the run that was decided, before anything is built from it."""
    if decision is None or not has_caps(config):
        return
    config.cap_decision = decision
    config.max_steps = decision.end_step
    if config.lr_scheduler_type == _SCHEDULE and decision.end_step > decision.step:
        assert isinstance(config.lr_scheduler_kwargs, dict)
        config.lr_scheduler_kwargs["num_decay_steps"] = decision.end_step - decision.step
