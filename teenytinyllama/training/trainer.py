"""The Trainers: Hugging Face's, at their own extension points."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from ..attention import without_cudnn_attention
from ..checkpoints import begin_saving
from ..published import finish_saved
from .clock import Clock
from .signals import EvaluationInterruptedError
from .speed import SpeedPlan, eager
from .spending import Pauses

if TYPE_CHECKING:
    import torch
    from torch import nn


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
