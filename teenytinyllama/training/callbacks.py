"""Callbacks beside the metrics: samples of the model's Portuguese, and the energy meter."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..emissions import EnergyMeter
from ..tokenizer import encode_texts
from .metrics import append_jsonl, rewind_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES_NAME = "samples.jsonl"
_FLUSH_SECONDS = 30.0


def generate_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[str],
    new_tokens: int,
    seed: int,
    temperature: float = 0.8,
    top_k: int = 50,
    synced_gpus: bool | None = None,
) -> list[str]:
    """Return each prompt with its continuation by the model.

    Randomness comes from `seed` alone and the global random state is left as it was, so that sampling during training
    does not change the training. Prompts are encoded as plain text after `<s>`.
    """
    import torch

    if not prompts:
        return []
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [start + ids for ids in encode_texts(tokenizer, prompts)]
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, rows))
    # All prompts at once, padded on the left: a batch takes about as long as one text.
    input_ids = torch.tensor([[pad_token_id] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    generator: Any = model  # transformers types `generate` as a tensor
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        output = generator.generate(
            input_ids,
            attention_mask=mask,
            max_new_tokens=max(1, min(new_tokens, model.config.max_position_embeddings - longest)),
            do_sample=True,
            temperature=temperature,
            top_k=top_k,
            pad_token_id=pad_token_id,
            synced_gpus=synced_gpus,
        )
    starts = [longest - len(row) for row in rows]
    return [
        str(tokenizer.decode(ids[start:], skip_special_tokens=True)) for ids, start in zip(output, starts, strict=True)
    ]


class SampleCallback(TrainerCallback):
    """Continue a few Portuguese prompts at every evaluation and append them to `samples.jsonl`."""

    def __init__(self, folder: Path, tokenizer: Any, prompts: list[str], new_tokens: int, zero_stage: int) -> None:
        """Sample `new_tokens` tokens after each prompt."""
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
        texts = generate_texts(
            kwargs["model"], self.tokenizer, self.prompts, self.new_tokens, args.seed, synced_gpus=self.all_ranks
        )
        if state.is_world_process_zero:
            for prompt, text in zip(self.prompts, texts, strict=True):
                append_jsonl(self.path, {"step": state.global_step, "prompt": prompt, "text": text})


class EnergyCallback(TrainerCallback):
    """Measure the machine's energy on local rank 0, written at every save, evaluation and about every half minute."""

    def __init__(self, folder: Path, country_iso_code: str) -> None:
        """Append to the `emissions.csv` of `folder`; nothing is measured on the machine's other ranks."""
        self.folder, self.country_iso_code = folder, country_iso_code
        self.kwh = self.kg = 0.0
        self._meter: EnergyMeter | None = None
        self._flushed = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the tracker."""
        if args.local_process_index == 0:
            self._meter = EnergyMeter(self.folder, self.country_iso_code)
            self._meter.start()
            self._flushed = time.monotonic()

    def _flush(self) -> None:
        if self._meter is not None:
            self.kwh, self.kg = self._meter.flush()
            self._flushed = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row if the last one is old."""
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row, so that a score has its energy."""
        self._flush()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a row, so that a checkpoint has its energy."""
        self._flush()

    def stop(self) -> None:
        """Write the last row; called when the run's work, the final evaluation included, is done or given up."""
        if self._meter is not None:
            self.kwh, self.kg = self._meter.stop()
            self._meter = None
