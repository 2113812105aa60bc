r"""Caps: energy, money or hours that a run may spend; what it has spent, will spend, and how a cap ends it.

A cap ends a run by its learning rate: the decay begins when the rest of the cap pays for no more than the decay.

    rate |  /------------------\            s: the logging step at which waiting for the next one would let spent +
         | /                    \              decay + final evaluation pass the cap
         |/______________________\____      e: the end, s + the decay, whose share of all steps is decay_fraction
                                 s    e

From step s on, the run computes the same numbers as a run that was configured with e steps. A resumed run does too,
because checkpoints hold s and e. With a schedule whose decay cannot begin earlier, and with `hard_stop`, training ends
at step s. Sums include the steps that a kill made worthless. So a cap holds over all starts, up to one logging
interval, up to a decay that becomes slower than the steps before it, and up to a kill within the decay.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..checkpointing.checkpoints import read_marker
from ..checks import ensure
from ..distributed import any_rank, sum_over_ranks
from ..energy.ledger import Start, total_of
from .decay import (
    SCHEDULE,
    DecayRequest,
    Decision,
    can_begin_early,
    decay_begins,
    decay_steps,
    decision_in,
    exported,
    read_state,
    recorded_decision,
)

# The rest of a run is projected by its mean pace in so many logging intervals: enough that a busy minute of the machine
# counts little, and few enough that a busy beginning is forgotten.
_PACE_INTERVALS = 20


@dataclass(frozen=True)
class Spent:
    """What was spent: energy in kWh, emissions in kg CO2e, time in hours of the first machine.

    Attributes:
        gpu_hours: hours times the GPUs of all machines (1 a machine where there is none); these are paid for.
        starting_hours: the part of `hours` before the meters ran, in which no energy was measured.
        num_gpus: GPUs of all machines, now.
    """

    kwh: float = 0.0
    kg: float = 0.0
    hours: float = 0.0
    gpu_hours: float = 0.0
    starting_hours: float = 0.0
    num_gpus: float = 0

    def after(self, hours: float) -> "Spent":
        """Return what will have been spent so many hours later, with the mean power and grid so far and these GPUs."""
        measured = self.hours - self.starting_hours
        share = 1 + hours / measured if measured > 0 else 1.0
        return replace(
            self,
            kwh=self.kwh * share,
            kg=self.kg * share,
            hours=self.hours + hours,
            gpu_hours=self.gpu_hours + hours * self.num_gpus,
        )


def spent_in(starts: list[Start]) -> Spent:
    """Return what the starts of one machine have spent."""
    total = total_of(starts)
    starting = sum(start.starting_seconds for start in starts) / 3600
    return Spent(total.energy_kwh, total.emissions_kg, total.seconds / 3600 + starting,
                 sum(start.paid_gpu_hours for start in starts), starting)  # fmt: skip


@dataclass(frozen=True)
class Pauses:
    """Seconds outside of steps: so far, of one evaluation, of one save, and of the evaluation after the last step."""

    total_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0
    ending_seconds: float = 0.0


class SpendingCallback(TrainerCallback):
    """Add up, at each logging step, what all machines have spent; all ranks then know the same figures.

    Attributes:
        now: the sums at the last logging step, evaluation or save, with the work that was lost in kills.
    """

    def __init__(
        self,
        measure: Callable[[], Spent],
        price_usd: float | None,
        pauses: Callable[[], Pauses] = Pauses,
        hours_left: Callable[[Spent], float] = lambda spent: math.inf,
    ) -> None:
        """Add up over the ranks what `measure` returns.

        Args:
            measure: returns what this rank's machine has spent over all starts, and nothing but on local rank 0.
            price_usd: price of an hour of one GPU; None: money is not counted.
            pauses: returns how long evaluations and saves took in this start.
            hours_left: returns the hours until a cap ends the run.
        """
        self.measure, self.price_usd, self.pauses, self.hours_left = measure, price_usd, pauses, hours_left
        self.now = Spent()
        self._pauses = Pauses()
        self._state = TrainerState()
        # (step, hours less pauses) at logging steps; the steps before the first also paid for starting and compiling.
        self._pace: deque[tuple[int, float]] = deque(maxlen=_PACE_INTERVALS + 1)
        self._hours_per_step: float | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure at logging steps and at the last one."""
        if not (control.should_log or state.global_step >= state.max_steps):
            return
        self._add_up(args)
        self._state = state
        step, hours = state.global_step, self.now.hours - self._pauses.total_seconds / 3600
        self._pace.append((step, hours))
        first_step, first_hours = self._pace[0]
        if step > first_step:
            self._hours_per_step = (hours - first_hours) / (step - first_step)

    def on_evaluate(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Measure, so that a score has its energy."""
        self._add_up(args)

    def on_save(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Measure, so that a checkpoint has its energy."""
        self._add_up(args)

    def _add_up(self, args: TrainingArguments) -> None:
        """Add up the energy of all machines; hours and pauses are those of the first rank."""
        here, first = self.measure(), args.process_index == 0
        shared = [here.hours, here.starting_hours, *astuple(self.pauses())] if first else [0.0] * 6
        found = sum_over_ranks([here.kwh, here.kg, here.gpu_hours, here.num_gpus, *shared], args.device)
        kwh, kg, gpu_hours, num_gpus, hours, starting_hours, *pauses = found
        self._pauses = Pauses(*pauses)
        # Between two readings of a meter its energy is estimated by the mean power; a sum must not fall by that.
        now = self.now
        self.now = Spent(max(kwh, now.kwh), max(kg, now.kg), max(hours, now.hours), max(gpu_hours, now.gpu_hours),
                         starting_hours, num_gpus)  # fmt: skip

    def projected(self, steps: int) -> Spent | None:
        """Return what will have been spent when so many more steps and the end are done, or None if not yet known."""
        if self._hours_per_step is None:
            return None
        state, pauses = self._state, self._pauses

        def times(interval: float) -> int:
            every = max(1, int(interval))
            return (state.global_step + steps) // every - state.global_step // every

        seconds = (
            times(state.eval_steps) * pauses.evaluation_seconds
            + times(state.save_steps) * pauses.saving_seconds
            + pauses.ending_seconds
        )
        return self.now.after(steps * self._hours_per_step + seconds / 3600)

    def _end(self, steps_left: int) -> Spent | None:
        """Return what will have been spent when length or cap ends the run, or None if not yet known."""
        end = self.projected(steps_left)
        if end is not None and end.hours - self.now.hours > self.hours_left(self.now):
            return self.now.after(self.hours_left(self.now))
        return end

    def seconds_left(self, steps_left: int) -> float | None:
        """Return how long the run will go on, evaluations and the final one included, or None if not yet known."""
        end = self._end(steps_left)
        return None if end is None else (end.hours - self.now.hours) * 3600

    def record(self, steps_left: int) -> dict[str, float | None]:
        """Return the figures of a log line: so far and projected, money only where its price is known."""
        end = self._end(steps_left)
        return {
            "kwh": self.now.kwh,
            "kg_co2e": self.now.kg,
            "usd": usd(self.now, self.price_usd),
            "projected_kwh": None if end is None else end.kwh,
            "projected_kg_co2e": None if end is None else end.kg,
            "projected_usd": None if end is None else usd(end, self.price_usd),
        }


def usd(spent: Spent, price_usd: float | None) -> float | None:
    """Return the money for the hours of all GPUs, or None without a price."""
    return None if price_usd is None else spent.gpu_hours * price_usd


CAP_KEYS = {"max_kwh": "kWh", "max_cost": "USD", "max_hours": "hours"}


class CapKeys(Protocol):
    """The keys of a training's config that its caps are held against; see `PretrainConfig`."""

    max_kwh: float | None
    max_cost: float | None
    max_hours: float | None
    price: float | None
    hard_stop: bool
    decay_fraction: float
    early_end: Decision | None
    lr_scheduler_type: str
    lr_scheduler_kwargs: dict[str, Any] | str | None
    logging_steps: float
    max_steps: int

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the steps of the warm-up in a training of so many steps."""


def has_caps(config: Any) -> bool:
    """Return whether a config, or its values by name, caps a run."""
    get = config.get if isinstance(config, dict) else lambda key: getattr(config, key, None)
    return any(get(key) is not None for key in CAP_KEYS)


def check_caps(config: CapKeys) -> None:
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
        not has_caps(config) or config.hard_stop or config.lr_scheduler_type == SCHEDULE,
        f"lr_scheduler_type={getattr(config.lr_scheduler_type, 'value', config.lr_scheduler_type)}: a cap would cut it "
        f"off while the learning rate is still high. Set lr_scheduler_type: {SCHEDULE}, whose decay begins in time, "
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
    """Return the cap that is passed, with both figures, or None."""
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


def decide(config: CapKeys, spending: SpendingCallback, step: int, warmup_steps: int, decays: bool) -> Decision | None:
    """Return how to end the run if it cannot wait for the next logging step, or None to go on.

    Pure but for its arguments; all ranks have the same figures and so decide the same.

    Args:
        config: has the caps, the schedule and the planned length.
        spending: counts what was spent, and the pace.
        step: that was just done.
        warmup_steps: of the schedule.
        decays: whether a cap has begun the decay already.
    """
    interval = max(1, int(config.logging_steps))
    if config.hard_stop:
        soon = spending.projected(interval) or spending.now
        if cap := exceeded_cap(config, soon):
            return Decision(step, step, f"{cap} at the next logging step, with the final evaluation")
    if decays or config.lr_scheduler_type != SCHEDULE or step >= decay_begins(config):
        return None
    if step < max(1, warmup_steps):  # the learning rate is still rising: a decay would be of no use
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


class CapCallback(TrainerCallback, ExportableState):
    """Decides at each logging step whether the decay begins: a cap asks for it, or somebody by the file `decay_now`.

    Every later checkpoint holds the decision.
    """

    def __init__(
        self,
        config: CapKeys,
        spending: SpendingCallback,
        decision: Decision | None,
        is_blind: Callable[[], bool] = lambda: False,
        folder: Path | None = None,
    ) -> None:
        """Watch the caps of a run, and its folder.

        Args:
            config: has the caps.
            spending: counts what was spent so far.
            decision: the decision of an earlier start, which the config follows already.
            is_blind: returns whether this rank's meter has failed. Energy is then not counted, and a run with a
                `max_kwh` stops.
            folder: of a run whose decay can be asked for.
        """
        self.config, self.spending, self.decision, self.is_blind = config, spending, decision, is_blind
        self.request = DecayRequest(config, folder) if folder is not None else None
        self.stopped_blind, self._warmup_steps = False, 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the decision, and the steps of the warm-up that the run has had."""
        decision = asdict(self.decision) if self.decision else None
        return {"args": {}, "attributes": {"decision": decision, "warmup_steps": self._warmup_steps}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Make room for the decision in a state that was saved without one."""
        states: Any = state.stateful_callbacks
        before = exported({"stateful_callbacks": states}).get("warmup_steps") if state.global_step else None
        self._warmup_steps = args.get_warmup_steps(self.config.max_steps) if before is None else before
        states[type(self).__name__] = self.state()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide at logging steps; must be called after `SpendingCallback`."""
        if not control.should_log or control.should_training_stop or state.global_step >= state.max_steps:
            return
        if self.config.max_kwh is not None and any_rank(self.is_blind(), args.device):
            self.stopped_blind = control.should_training_stop = control.should_save = True
            control.should_evaluate = False
            return
        warmup_steps = args.get_warmup_steps(self.config.max_steps)
        decision = decide(self.config, self.spending, state.global_step, warmup_steps, self.decision is not None)
        if decision is None and self.decision is None and self.request is not None:
            decision = self.request.answer(args, state, warmup_steps)
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
            what = f"{decision.reason}; from step {decision.step} on: {what}"
            print(f"{'decay' if decision.asked_for else 'cap':10} {what}", flush=True)


def begin_decay(scheduler: Any, config: CapKeys, decision: Decision) -> None:
    """Make a scheduler in use go on as that of a run of `end_step` steps, which had the same rates until now."""
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
    """Return the decision of a cap that a checkpoint holds, or None.

    Raises:
        InputError: its state is damaged.
    """
    return None if checkpoint is None else decision_in(read_state(checkpoint), checkpoint)


def earlier_decision(config: CapKeys, folder: Path, checkpoint: Path | None) -> Decision | None:
    """Return what earlier starts of a run have decided: by its checkpoint, or by the file `decay_now` in its folder.

    Args:
        config: of the run.
        folder: of the run.
        checkpoint: that it resumes from, or None; that of another run, where a branch begins, decides nothing.

    Raises:
        InputError: a file is damaged.
    """
    is_own = checkpoint is not None and checkpoint.parent == folder
    stored = stored_decision(checkpoint) if is_own else None
    if stored is not None or not can_begin_early(config):
        return stored
    return recorded_decision(folder, read_marker(checkpoint).step if checkpoint is not None else 0)


def apply_decision(config: CapKeys, decision: Decision | None) -> None:
    """Give a config the length and the decay that were decided on, before anything is built from it.

    A cap's decision counts as long as the run has caps.
    """
    if decision is None or not (decision.asked_for or has_caps(config)):
        return
    config.early_end = decision
    config.max_steps = decision.end_step
    if config.lr_scheduler_type == SCHEDULE and decision.end_step > decision.step:
        assert isinstance(config.lr_scheduler_kwargs, dict)
        config.lr_scheduler_kwargs["num_decay_steps"] = decision.end_step - decision.step
