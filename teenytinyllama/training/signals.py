"""Stop a training on a signal so that every rank saves the same complete checkpoint and leaves with the others."""

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..collectives import SharedFlag, any_rank

logger = logging.getLogger(__name__)

# USR1 is what Slurm sends before a job's time is over (`--signal=USR1@120`).
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
# A launcher, a terminal and a scheduler may each deliver the same signal; one that comes later is somebody insisting.
_INSIST_SECONDS = 3.0


class EvaluationInterruptedError(Exception):
    """A signal came during an evaluation, and all ranks have agreed to leave it."""


class StopCallback(TrainerCallback):
    """Save and stop at the end of the step in which any rank received TERM, INT or USR1.

    The signal may reach the ranks at different times, or one of them alone, whereas saving is collective: so the ranks
    agree on it after every optimizer step. That is one reduction of a few bytes a step, with one rank none; on GPUs its
    result is read one step later, so they stop at the end of the step after. After training, `stopped` says whether to
    leave with exit code 75. An evaluation that was due after that step is left out, and one that is under way is left:
    whoever sent the signal may not wait for it.

    A second TERM or INT more than three seconds after the first acts as if there was no callback.

    Attributes:
        stopped: whether a signal ended the training before its last step.
    """

    def __init__(self) -> None:
        """Start without a signal; nothing is taken over before training begins."""
        self.stopped = False
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}
        self._shared = SharedFlag()
        self._pid = os.getpid()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals; outside the main thread Python cannot, and nothing is done."""
        self.stopped, self._received, self._shared = False, None, SharedFlag()
        self.restore_handlers()
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _STOP_SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Agree with the other ranks whether to stop; the Trainer then saves in the same step."""
        asked = self._shared.ask(self._received is not None, args.device)
        if not asked or state.global_step >= state.max_steps:
            return
        if state.is_world_process_zero:
            reason = self._received.name if self._received else "a signal on another rank"
            logger.warning("%s: saving a checkpoint at step %d and stopping", reason, state.global_step)
        self.stopped = control.should_save = control.should_training_stop = True
        control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave an evaluation too: it can last longer than whoever sent the signal waits.

        Raises:
            EvaluationInterruptedError: for `Pretrainer.evaluate`, after which the Trainer saves.
        """
        if self._previous and any_rank(self._received is not None, args.device):
            self.stopped = control.should_save = control.should_training_stop = True
            raise EvaluationInterruptedError

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back to whoever had them."""
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give the signals back, also for a recipe whose training ended with an exception."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker of a DataLoader: its parent decides
            return
        insisting = number != getattr(signal, "SIGUSR1", None) and self._received is not None
        if insisting and time.monotonic() - self._received_at > _INSIST_SECONDS:
            self.restore_handlers()
            os.kill(self._pid, number)
            return
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
