"""A callback that asks the model last words and multiple-choice questions at every evaluation."""

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..evaluation.signal import SignalTask, cloze_task, local_tasks, score_signal
from .speed import eager

if TYPE_CHECKING:
    from ..data.packed import PackedCorpus
    from .config import PretrainConfig

_SHARE_OF_EVALUATION = 0.1  # of the tokens of an evaluation that cloze may read: a few thousandths of a run


def build_signal_tasks(
    config: "PretrainConfig", packed: "PackedCorpus", document_ids: Iterable[int], tokenizer: Any
) -> list[SignalTask]:
    """Return the tasks that a run's config asks for; cloze is made from the documents that are evaluated.

    Raises:
        InputError: a folder without data, or data that does not fit.
    """
    tasks = []
    if config.cloze_items:
        texts = []
        for document in packed.documents[list(document_ids)]:
            start, count = int(document["offset"]), int(document["num_tokens"])
            ids = packed.validation[start + 1 : start + count - 1].tolist()
            texts.append(str(tokenizer.decode(ids, skip_special_tokens=False)))
        most = int((config.eval_max_tokens or 0) * _SHARE_OF_EVALUATION)
        cloze = cloze_task(texts, tokenizer, config.cloze_items, most)
        tasks += [cloze] if cloze else []
    if config.signal_data_dir is not None:
        tasks += local_tasks(config.signal_data_dir, tokenizer, config.signal_items)
    return tasks


class SignalCallback(TrainerCallback):
    """Add accuracy and bits per byte of the right answers to the newest held-out summary.

    It stands before the callback that writes that summary. All ranks have the same questions: under ZeRO 3, where each
    holds a part of every layer, all of them read together; otherwise the first reads alone.
    """

    def __init__(
        self, tasks: list[SignalTask], evaluation: Any, batch_size: int, zero_stage: int, compiles: bool
    ) -> None:
        """Ask the tasks' questions; compiled layers are run uncompiled, because rows have many lengths."""
        self.tasks, self.evaluation, self.batch_size, self.compiles = tasks, evaluation, batch_size, compiles
        self.all_ranks = zero_stage == 3
        self._step, self._figures = -1, dict[str, float]()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Score the model once a step; the final evaluation scores more documents of the same model."""
        if not self.tasks or not (self.all_ranks or state.is_world_process_zero):
            return
        if self._step != state.global_step:
            model = kwargs["model"]
            was_training = model.training
            model.eval()
            with eager() if self.compiles else contextlib.nullcontext():
                self._figures = score_signal(model, self.tasks, self.batch_size)
            model.train(was_training)
            self._step = state.global_step
        self.evaluation.last.update(self._figures)
