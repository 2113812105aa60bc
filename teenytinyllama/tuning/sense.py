"""Whether the loss makes sense at all, asked before any training: a tuning with wrong labels looks like any other."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checks import RunFailedError


class SenseCallback(TrainerCallback):
    """Stop at once when the base model predicts held-out answers no better than their tokens' frequencies do.

    A public Portuguese model was tuned at a loss of 8.7 throughout without anybody noticing. A base model that has
    learnt Portuguese, a chat template and labels that belong together give far less than the frequencies' entropy.
    """

    def __init__(self, evaluation: Any, frequency_nats: float, refuse: bool) -> None:
        """Compare the first evaluation with `frequency_nats`; warn instead unless `refuse`."""
        self.evaluation, self.frequency_nats, self.refuse = evaluation, frequency_nats, refuse
        self.first: float | None = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the first evaluation, and at whether later ones are below it.

        Raises:
            RunFailedError: the loss is that of a model that knows nothing.
        """
        last = self.evaluation.last
        if last is None:
            return
        found = last["nats_per_token"]
        if self.first is None:
            self.first = found
            if state.global_step == 0 and found >= self.frequency_nats:
                self._complain(found)
        elif found > self.first and state.is_world_process_zero:
            print(
                f"warning: answers cost {found:.3f} nats per token, more than the {self.first:.3f} at first. Lower "
                "learning_rate or num_train_epochs.",
                flush=True,
            )

    def _complain(self, found: float) -> None:
        text = (
            f"before tuning, held-out answers cost {found:.2f} nats per token; guessing by how frequent each token is "
            f"would cost {self.frequency_nats:.2f}. The base model has learnt next to nothing, or its weights, its "
            "tokenizer and the chat template do not belong together."
        )
        if self.refuse:
            raise RunFailedError(f"{text} Choose another model_name_or_path, or set check_first_loss: false to go on.")
        print(f"warning: {text}", flush=True)
