"""Trainers: Hugging Face's Trainer with ours at its extension points, and the callbacks that do not write metrics.

Here are the clock that says where a run's time goes, the stop on TERM, INT or USR1, samples of texts, and the energy
meter. What is logged is in `metrics.py`, what is saved in `saving.py`, how caps end a run in `caps.py`.
"""

import contextlib
import itertools
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..chat.generation import generate_ids, generate_texts
from ..checkpointing.checkpoints import begin_saving, checkpoint_path, explaining_disk_failures
from ..checkpointing.optimizer_state import (
    is_by_name,
    keeps_by_name,
    load_optimizer,
    save_optimizer,
    without_deepspeed_files,
)
from ..checks import beside_the_model
from ..distributed import SharedFlag, any_rank, own_machine, ranks_here
from ..energy.emissions import GridSettings
from ..energy.ledger import Phase, ledger_path, read_starts, total_of
from ..energy.recorder import Recorder
from ..gpus import has_accelerator, wait_for_gpu
from ..launching.processes import STOP_SIGNALS, give_back_signals, take_stop_signals
from ..models import finish_saved, without_cudnn_attention
from ..stage_folder import SAMPLES_NAME
from .caps import Pauses, Spent, spent_in
from .guards import GuardedTrainer
from .metrics import append_jsonl, rewind_jsonl
from .optimizer import MuonAdamW, parameter_groups
from .speed import SpeedPlan, eager

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# A launcher, a terminal and a scheduler may each deliver the same signal; one that comes later is somebody insisting.
_INSIST_SECONDS = 3.0


class EvaluationInterruptedError(Exception):
    """A signal came during an evaluation, and all ranks have agreed to leave it."""


class StopCallback(TrainerCallback):
    """Save and stop at the end of the step in which any rank received one of `processes.STOP_SIGNALS`.

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

    def is_asked(self) -> bool:
        """Return whether a signal has come to this rank."""
        return self._received is not None

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
    """Mixed into a Trainer's class, in front of it: times its parts, decays no embeddings, ends evaluations on signals.

    Attributes:
        clock: counts where the time goes.
        compiles: whether layers are compiled; evaluations run them uncompiled.
        final_share: how much more the evaluation after the last step scores than the others, as a multiple.
    """

    clock: "Clock"
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
            # Held-out windows, and the samples and questions of the callbacks here, have many lengths.
            with self.clock.part("evaluation"), uncompiled, without_cudnn_attention():
                return super().evaluate(*args, **kwargs)  # type: ignore[misc]
        except EvaluationInterruptedError:
            return {}

    def pauses(self) -> Pauses:
        """Return how long evaluations, with the samples after them, and saves have taken so far."""
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
        # Measures the time, and marks the folder as ours before the first file is written.
        folder, step = Path(self.args.output_dir), self.state.global_step  # type: ignore[attr-defined]
        with self.clock.part("saving"), explaining_disk_failures(folder, step):
            if self.is_world_process_zero():  # type: ignore[attr-defined]
                begin_saving(checkpoint_path(folder, step))
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, from a checkpoint of any ranks."""
        with without_deepspeed_files():
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        trainer: Any = self
        if not keeps_by_name(trainer):
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        save_optimizer(trainer, Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        trainer: Any = self
        if checkpoint is None or not is_by_name(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        load_optimizer(trainer, Path(checkpoint))


class Pretrainer(GuardedTrainer, RunTrainer, Trainer):
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

    def create_optimizer(self, model: "nn.Module | None" = None) -> "torch.optim.Optimizer":
        """Return the optimizer, Muon where the config says so."""
        config: Any = self.args
        trained: Any = model or self.model
        if self.optimizer is None and config.optimizer != "adamw":
            self.optimizer = MuonAdamW(parameter_groups(trained, config))
        return super().create_optimizer(model)  # type: ignore[no-any-return]

    def compute_loss(self, model: "nn.Module", inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's loss (see `speed.fuse_loss`), without the key-value cache, which would cost copies."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)


# The events that count as a callback's time. `on_save` counts as saving, and `on_train_begin` and `on_train_end` count
# as training.
_EVENTS = ("on_step_begin", "on_step_end", "on_substep_end", "on_log", "on_evaluate", "on_prediction_step",
           "on_pre_optimizer_step", "on_optimizer_step", "on_epoch_begin", "on_epoch_end")  # fmt: skip


class Clock:
    """Counts the seconds of each part of a run in this process; parts nest, and time counts for the innermost alone.

    Attributes:
        seconds: by the part's name.
        times: how often each part was entered, by its name.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.times: dict[str, int] = defaultdict(int)
        self._inner = [0.0]  # for each open part, the seconds of the parts inside it

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of the block as `name`, without the time of parts inside it."""
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
                setattr(callback, event, self.timed(getattr(callback, event), name))
        return callback

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Return the method, with the time of each call counted as `name`."""
        return self.part(name)(method)


class IntervalsCallback(TrainerCallback):
    """Takes the intervals of logs, evaluations and saves from this start's config.

    Without it the Trainer goes on with the intervals of the start that wrote the checkpoint.
    """

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Compute the intervals in steps, after the checkpoint's state was read."""
        state.compute_steps(args, state.max_steps)


class QueueCallback(TrainerCallback):
    """Waits for the GPU before a log, an evaluation or a save, so that the steps in its queue count as training time.

    Without it the next callback that asks the GPU would wait for those steps, and their time would count as its own.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait if a log, an evaluation or a save comes after this step; the last step is always logged."""
        if control.should_log or control.should_evaluate or control.should_save or state.global_step >= state.max_steps:
            wait_for_gpu()


class SampleCallback(TrainerCallback):
    """Continue a few Portuguese prompts at every evaluation and append the texts to `samples.jsonl`.

    With an `encode`, prompts are questions: only the answers are kept, and whether the model ended them.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        prompts: list[str],
        new_tokens: int,
        zero_stage: int,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        """Sample `new_tokens` tokens after each prompt."""
        self.path, self.tokenizer, self.encode = folder / SAMPLES_NAME, tokenizer, encode
        self.prompts, self.new_tokens = prompts, new_tokens
        # Under ZeRO 3 every rank holds a part of each layer, so all ranks have to generate together.
        self.all_ranks = zero_stage == 3
        self._sampled_step = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Drop the samples of steps that will be repeated."""
        if state.is_world_process_zero:
            rewind_jsonl(self.path, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Sample with the same seed each time, so that only the model changes."""
        if self._sampled_step == state.global_step:  # the final evaluation scores more documents of the same model
            return
        self._sampled_step = state.global_step
        if not self.prompts or not (self.all_ranks or state.is_world_process_zero):
            return
        with beside_the_model(f"sampling texts at step {state.global_step}"):
            samples = self._sample(kwargs["model"], args.seed)
            if state.is_world_process_zero:
                for prompt, sample in zip(self.prompts, samples, strict=True):
                    append_jsonl(self.path, {"step": state.global_step, "prompt": prompt, **sample})

    def _sample(self, model: "PreTrainedModel", seed: int) -> list[dict[str, Any]]:
        arguments: Any = {"new_tokens": self.new_tokens, "seed": seed, "synced_gpus": self.all_ranks}
        if self.encode is None:
            return [{"text": text} for text in generate_texts(model, self.tokenizer, self.prompts, **arguments)]
        questions = [self.encode(prompt) for prompt in self.prompts]
        return [
            {"text": self.tokenizer.decode(answer.ids, skip_special_tokens=True), "ended": answer.ended}
            for answer in generate_ids(model, self.tokenizer, questions, **arguments)
        ]


class EnergyCallback(TrainerCallback):
    """Measure the machine's energy on local rank 0; write a row around every save and evaluation and each half minute.

    Must come after the callback that samples texts, which counts as evaluation, and before those that report energy.
    """

    def __init__(self, folder: Path, grid: GridSettings) -> None:
        """Append to the `emissions.csv` of `folder`; nothing is measured on the machine's other ranks."""
        self.folder, self.grid = folder, grid
        self._before = Spent()  # by earlier starts
        self._reading = total_of([])
        self._recorder: Recorder | None = None
        self._step = 0
        self._rest: Phase = "training"

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Start the meter."""
        self._step = state.global_step
        if args.local_process_index == 0:
            machine = own_machine(args.process_index)
            # Damaged rows of earlier starts are left out here; cards and reports refuse them.
            self._before = spent_in(read_starts(ledger_path(self.folder, machine), strict=False))
            num_gpus = ranks_here() if has_accelerator() and not args.use_cpu else 1
            self._recorder = Recorder(self.folder, self.grid, machine, state.global_step, num_gpus)

    def has_failed(self) -> bool:
        """Return whether this machine's meter has failed, so that its energy is not counted any more."""
        return self._recorder is not None and bool(self._recorder.failure)

    def spent(self) -> Spent:
        """Return what this machine has spent in all starts until now; since the last row, by their mean power."""
        if self._recorder is None:  # not local rank 0
            return self._before
        before, here, starting = self._before, self._reading, self._recorder.starting_seconds / 3600
        hours = here.seconds / 3600 + starting
        spent = Spent(
            before.kwh + here.energy_kwh,
            before.kg + here.emissions_kg,
            before.hours + hours,
            before.gpu_hours + hours * self._recorder.num_gpus,
            before.starting_hours + starting,
            self._recorder.num_gpus,
        )
        return spent.after(self._recorder.seconds_since / 3600)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row if the last one is old, or if an evaluation or a save comes next."""
        self._step = state.global_step
        due = self._recorder is not None and self._recorder.is_due
        if due or control.should_evaluate or control.should_save:
            self._write(state.global_step, "training")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Write a row, so that a score has its energy."""
        self._write(state.global_step, "evaluation")

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Write a row, so that a checkpoint has its energy."""
        self._write(state.global_step, "saving")

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Count the rest, the final evaluation and the final model, as saving."""
        self._rest = "saving"

    def _write(self, step: int, phase: Phase, last: bool = False) -> None:
        self._step = step
        if self._recorder is not None:
            self._reading = self._recorder.write(step, phase, last)

    def stop(self) -> None:
        """Write the last row; called when the run's work, the final evaluation included, is done or given up."""
        self._write(self._step, self._rest, last=True)
        self._recorder = None
