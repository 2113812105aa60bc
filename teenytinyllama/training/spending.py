"""What a run has spent so far over all its starts and machines, and what it will have spent at its end."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..collectives import sum_over_ranks
from ..ledger import Start, total_of

# Logging intervals whose mean is the pace that the rest of a run is projected by: a machine that was busy when the run
# began is forgotten, a busy minute is not taken for the rest.
_PACE_INTERVALS = 20


@dataclass(frozen=True)
class Spent:
    """Energy in kWh, emissions in kg CO2e, time in hours of the first machine.

    Attributes:
        gpu_hours: hours times the GPUs of all machines (1 a machine where there is none): what is paid.
        starting_hours: of `hours`, those before the meters ran, in which no energy was measured.
        num_gpus: of all machines, now.
    """

    kwh: float = 0.0
    kg: float = 0.0
    hours: float = 0.0
    gpu_hours: float = 0.0
    starting_hours: float = 0.0
    num_gpus: float = 0

    def after(self, hours: float) -> "Spent":
        """Return what will have been spent so many hours later, at the mean power and grid so far and these GPUs."""
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
    """What is no step: seconds so far, of one evaluation, of one save, and of the evaluation after the last step."""

    total_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0
    ending_seconds: float = 0.0


class SpendingCallback(TrainerCallback):
    """Add up, at each logging step, what all machines have spent; all ranks then know the same figures.

    Attributes:
        now: what was spent up to the last logging step, work that a kill made worthless included.
    """

    def __init__(
        self,
        measure: Callable[[], Spent],
        price_usd: float | None,
        pauses: Callable[[], Pauses] = Pauses,
        hours_left: Callable[[Spent], float] = lambda spent: math.inf,
    ) -> None:
        """Count what `measure` says of this rank: of its machine on local rank 0, nothing on its other ranks.

        Args:
            measure: what this machine has spent by now, over all starts.
            price_usd: of an hour of one GPU; None: money is not counted.
            pauses: what evaluations and saves took in this start.
            hours_left: until a cap ends the run.
        """
        self.measure, self.price_usd, self.pauses, self.hours_left = measure, price_usd, pauses, hours_left
        self.now = Spent()
        self._pauses = Pauses()
        self._state = TrainerState()
        # (step, hours less pauses) at logging steps; the steps before the first also paid for starting and compiling.
        self._pace: deque[tuple[int, float]] = deque(maxlen=_PACE_INTERVALS + 1)
        self._hours_per_step: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the pace of an earlier training."""
        self._pace.clear()
        self._hours_per_step = None

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

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, so that a score has its energy."""
        self._add_up(args)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, so that a checkpoint has its energy."""
        self._add_up(args)

    def _add_up(self, args: TrainingArguments) -> None:
        """Add up the energy of all machines; hours and pauses are those of the first rank."""
        here, first = self.measure(), args.process_index == 0
        shared = [here.hours, here.starting_hours, *astuple(self.pauses())] if first else [0.0] * 6
        found = sum_over_ranks([here.kwh, here.kg, here.gpu_hours, here.num_gpus, *shared], args.device)
        kwh, kg, gpu_hours, num_gpus, hours, starting_hours, *pauses = found
        self._pauses = Pauses(*pauses)
        # Readings are some seconds apart and bridged by the mean power, which must not let a sum fall.
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
        """Return what will have been spent at the end, which may be that of a cap."""
        end = self.projected(steps_left)
        if end is not None and end.hours - self.now.hours > self.hours_left(self.now):
            return self.now.after(self.hours_left(self.now))
        return end

    def seconds_left(self, steps_left: int) -> float | None:
        """Return how long the run will go on, evaluations and the end included, or None if not yet known."""
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
