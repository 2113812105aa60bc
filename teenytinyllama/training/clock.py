"""Where a run's time goes: training, waiting for data, evaluating, saving, and our callbacks, samples included."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

# `on_save` belongs to saving and `on_train_begin` and `on_train_end` to starting and ending, whoever does the work.
_EVENTS = ("on_step_begin", "on_step_end", "on_substep_end", "on_log", "on_evaluate", "on_prediction_step",
           "on_pre_optimizer_step", "on_optimizer_step", "on_epoch_begin", "on_epoch_end")  # fmt: skip


class Clock:
    """Seconds by part of the run, in this process since it started; time inside another part counts there alone.

    Attributes:
        seconds: by part.
        times: how often each part was entered.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.times: dict[str, int] = defaultdict(int)
        self._inner = [0.0]  # seconds that parts inside the present one have taken

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`, less what parts inside it count."""
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] += spent - self._inner.pop()
            self.times[name] += 1
            self._inner[-1] += spent

    def watch(self, callback: TrainerCallback, name: str) -> TrainerCallback:
        """Count the time of a callback's own event methods as `name`; return the callback."""
        for event in _EVENTS:
            if getattr(type(callback), event) is not getattr(TrainerCallback, event):
                setattr(callback, event, self._timed(getattr(callback, event), name))
        return callback

    def _timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return method(*args, **kwargs)

        return timed
