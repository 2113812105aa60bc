"""The Trainers: Hugging Face's, at their own extension points.

Stop a training on a signal so that every rank saves the same complete checkpoint and leaves with the others.
"""

import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints import begin_saving
from ..distributed import SharedFlag, any_rank
from ..models import finish_saved, without_cudnn_attention
from ..supervision import STOP_SIGNALS, give_back_signals, take_stop_signals
from .caps import Pauses
from .saving import Clock
from .speed import SpeedPlan, eager

if TYPE_CHECKING:
    import torch
    from torch import nn


logger = logging.getLogger(__name__)

# A launcher, a terminal and a scheduler may each deliver the same signal; one that comes later is somebody insisting.
_INSIST_SECONDS = 3.0


class EvaluationInterruptedError(Exception):
    """A signal came during an evaluation, and all ranks have agreed to leave it."""


class StopCallback(TrainerCallback):
    """Save and stop at the end of the step in which any rank received one of `supervision.STOP_SIGNALS`.

    The signal may reach the ranks at different times, or one of them alone, whereas saving is collective: so the ranks
    agree on it after every optimizer step. That is one reduction of a few bytes a step, with one rank none; on GPUs its
    result is read one step later, so they stop at the end of the step after. After training, `stopped` says whether to
    leave with exit code 75. An evaluation that was due after that step is left out, and one that is under way is left:
    whoever sent the signal may not wait for it.

    A second signal that insists, more than three seconds after the first, acts as if there was no callback.

    Attributes:
        stopped: whether a signal ended the training before its last step.
    """

    def __init__(self) -> None:
        """Start without a signal; nothing is taken over before training begins."""
        self.stopped = False
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}
        self._shared = SharedFlag()
        self._pid = os.getpid()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals; outside the main thread Python cannot, and nothing is done."""
        self.stopped, self._received, self._shared = False, None, SharedFlag()
        self.restore_handlers()
        self._previous = take_stop_signals(self._receive)

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
        give_back_signals(self._previous)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker of a DataLoader: its parent decides
            return
        is_late = self._received is not None and time.monotonic() - self._received_at > _INSIST_SECONDS
        if is_late and STOP_SIGNALS[signal.Signals(number)]:
            self.restore_handlers()
            os.kill(self._pid, number)
            return
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()


class RunTrainer:
    """Mixed into a Trainer's class, in front of it: time measured, weight decay narrowed, evaluations that signals end.

    Attributes:
        clock: where the time goes.
        compiles: whether layers are compiled, which evaluations then do without.
        final_share: what the evaluation after the last step scores, as a multiple of the others.
    """

    clock: Clock
    compiles = False
    final_share = 0.0

    def get_decay_parameter_names(self, model: "nn.Module") -> list[str]:
        """Return the parameters that weight decay applies to: the Trainer's (no norms, no biases), less embeddings.

        Source: OLMo 2 (arXiv 2501.00656) leaves embeddings out, for stability at equal quality.
        """
        names: list[str] = super().get_decay_parameter_names(model)  # type: ignore[misc]
        return [name for name in names if "embed_tokens" not in name]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the Trainer's metrics, or none when a signal ended the evaluation."""
        try:
            uncompiled = eager() if self.compiles else contextlib.nullcontext()
            # Texts of many lengths: held-out windows and, in the callbacks that follow, samples and questions.
            with self.clock.part("evaluation"), uncompiled, without_cudnn_attention():
                return super().evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationInterruptedError:
            return {}

    def pauses(self) -> Pauses:
        """Return what evaluations, with the samples that follow them, and saves have taken so far."""
        seconds, times = self.clock.seconds, self.clock.times
        evaluation = seconds["evaluation"] / max(times["evaluation"], 1)
        saving = seconds["saving"] + seconds["marking"] + seconds["hashing"]
        return Pauses(
            total_seconds=seconds["evaluation"] + seconds["samples"] + saving,
            evaluation_seconds=evaluation + seconds["samples"] / max(times["samples"], 1),
            saving_seconds=saving / max(times["saving"], 1),
            ending_seconds=self.final_share * evaluation,
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save:
            finish_saved(Path(output_dir or trainer.args.output_dir))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        # To take the time, and to mark the folder as ours before the first file.
        with self.clock.part("saving"):
            if self.is_world_process_zero():  # type: ignore[attr-defined]
                begin_saving(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")  # type: ignore[attr-defined]
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]


class Pretrainer(RunTrainer, Trainer):
    """The Trainer of pretraining, whose rows are full and of one length."""

    speed: SpeedPlan

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: "torch.device"
    ) -> tuple[list[Any], int | None]:
        """Return the micro-batches of a step and their scored tokens over all ranks.

        The number is known, because rows are full and of one length; counting it would be a reduction per
        micro-batch and a collective per step.
        """
        with self.clock.part("data"):
            batches = list(itertools.islice(epoch_iterator, num_batches))
        return batches, sum(batch["labels"][:, 1:].numel() for batch in batches) * self.args.world_size

    def compute_loss(self, model: "nn.Module", inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's loss, computed without the cache that generation would use and that costs copies."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)
