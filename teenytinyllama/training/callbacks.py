"""Callbacks beside the metrics: samples of the model's Portuguese, and the energy meter."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..chat.generation import generate_ids, generate_texts
from ..checks import beside_the_model
from ..distributed import ranks_here
from ..energy.emissions import GridSettings
from ..energy.ledger import Phase, ledger_path, read_starts
from ..energy.meter import EnergyReading
from ..energy.recorder import Recorder
from ..gpus import has_accelerator, wait_for_gpu
from ..stage_folder import SAMPLES_NAME
from .caps import Spent, spent_in
from .metrics import append_jsonl, rewind_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class IntervalsCallback(TrainerCallback):
    """Lets this start's intervals count; the Trainer goes on with those of the start that wrote the checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """State in steps how far logs, evaluations and saves are apart, once the checkpoint's state was read."""
        state.compute_steps(args, state.max_steps)


class QueueCallback(TrainerCallback):
    """Waits for the GPU before a log, an evaluation or a save, so that the steps in its queue count as training.

    What follows would wait as well, and be taken for slower than it is.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Wait if anything follows this step; the last one is always logged."""
        if control.should_log or control.should_evaluate or control.should_save or state.global_step >= state.max_steps:
            wait_for_gpu()


class SampleCallback(TrainerCallback):
    """Continue a few Portuguese prompts at every evaluation and append them to `samples.jsonl`.

    With an `encode`, prompts are questions: the answers alone are kept, with whether the model ended them.
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
        self.encode = encode
        self.path = folder / SAMPLES_NAME
        self.tokenizer, self.prompts, self.new_tokens = tokenizer, prompts, new_tokens
        # Under ZeRO 3 every rank holds a part of each layer, so all ranks have to generate together.
        self.all_ranks = zero_stage == 3
        self._sampled_step = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the samples of steps that will be repeated."""
        if state.is_world_process_zero:
            rewind_jsonl(self.path, state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
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
    """Measure the machine's energy on local rank 0, written around every save and evaluation and each half minute.

    Must come behind what samples texts, which counts as evaluation, and before what reports energy.
    """

    def __init__(self, folder: Path, grid: GridSettings) -> None:
        """Append to the `emissions.csv` of `folder`; nothing is measured on the machine's other ranks."""
        self.folder, self.grid = folder, grid
        self._before = Spent()
        self._reading = EnergyReading(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self._recorder: Recorder | None = None
        self._step = 0
        self._rest: Phase = "training"
        self._num_gpus, self._starting_hours = 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the meter."""
        self._step = state.global_step
        if args.local_process_index == 0:
            machine = args.process_index // ranks_here()
            # Damaged rows of earlier starts are left out: whoever tells others of the run refuses them.
            self._before = spent_in(read_starts(ledger_path(self.folder, machine), strict=False))
            num_gpus = ranks_here() if has_accelerator() and not args.use_cpu else 1
            self._recorder = Recorder(self.folder, self.grid, machine, state.global_step, num_gpus)
            self._num_gpus, self._starting_hours = num_gpus, self._recorder.starting_seconds / 3600

    def _write(self, step: int, phase: Phase) -> None:
        self._step = step
        if self._recorder is not None:
            self._reading = self._recorder.write(step, phase)

    def has_failed(self) -> bool:
        """Return whether this machine's meter has failed, so that nobody counts its energy."""
        return self._recorder is not None and bool(self._recorder.failure)

    def spent(self) -> Spent:
        """Return what this machine has spent by now in all starts, since the last row at their mean power."""
        before, here, starting = self._before, self._reading, self._starting_hours
        hours = here.seconds / 3600 + starting
        spent = Spent(
            before.kwh + here.energy_kwh,
            before.kg + here.emissions_kg,
            before.hours + hours,
            before.gpu_hours + hours * self._num_gpus,
            before.starting_hours + starting,
            self._num_gpus,
        )
        return spent if self._recorder is None else spent.after(self._recorder.seconds_since / 3600)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row if the last one is old, or if something else than training follows."""
        self._step = state.global_step
        due = self._recorder is not None and self._recorder.is_due
        if due or control.should_evaluate or control.should_save:
            self._write(state.global_step, "training")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row, so that a score has its energy."""
        self._write(state.global_step, "evaluation")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row, so that a checkpoint has its energy."""
        self._write(state.global_step, "saving")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember that only the final evaluation and the final model are left."""
        self._rest = "saving"

    def stop(self) -> None:
        """Write the last row; called when the run's work, the final evaluation included, is done or given up."""
        if self._recorder is not None:
            self._reading = self._recorder.write(self._step, self._rest, last=True)
            self._recorder = None
