"""Instruction tuning: TRL's SFTTrainer on conversations packed without leaks, in a run folder like pretraining's.

Held-out conversations: how well their answers are predicted, and how the model answers their questions.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from pyarrow.compute import list_flatten, list_value_length
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer
from trl import SFTTrainer

from ..chat.generation import Sampling
from ..chat.template import ConversationEncoder
from ..checks import is_main_process
from ..data.conversations import IGNORED
from ..data.instructions import describe_examples
from ..evaluation.held_out import already_scored, window_nats
from ..models import avoid_cudnn_attention
from ..training.callbacks import SampleCallback
from ..training.report import describe_length, describe_model, describe_training, planned_zero_stage
from ..training.run import NOT_EVALUATED, Run, assemble_run, close_run_folder, execute
from ..training.run_plan import Resolved, RunPlan
from ..training.speed import GPU_ATTENTION, fuse_loss
from ..training.trainer import RunTrainer
from .base import SenseCallback, SftPlan, build_model, plan_sft
from .config import LoraSettings, SftConfig, lora_config, save_model
from .rows import RowCollator, check_no_leaks, load_rows, order_rows

ANSWERS_NAME = "answers.jsonl"


class HeldOutAnswers(Dataset[dict[str, NDArray[np.int64]]]):
    """A map-style dataset of held-out conversations, one a row, the longest first, with labels for what is scored.

    What is scored is what is learnt: the answers with their end tokens or, where questions are learnt too, everything
    but the first token. Bits per byte divide by the bytes of those texts, and so compare tokenizers; end tokens cost
    bits but have no bytes.
    """

    def __init__(self, folder: Path, assistant_only: bool, max_tokens: int | None = None, seed: int = 0) -> None:
        """Read the validation split of a folder of conversations.

        Args:
            folder: made by `data.conversations`.
            assistant_only: whether answers alone are learnt.
            max_tokens: use conversations, drawn by `seed`, of so many tokens in all; None: all of them.
            seed: of that draw, so that every evaluation of a run scores the same ones.
        """
        table = pyarrow.parquet.read_table(folder / "validation.parquet")
        order = np.random.default_rng(seed).permutation(table.num_rows)
        if max_tokens is not None and table.num_rows:
            cumulated = np.cumsum(list_value_length(table["input_ids"]).to_numpy()[order])
            order = order[: max(1, int(np.searchsorted(cumulated, max_tokens, side="right")))]
        self.rows = sorted(table.take(order).to_pylist(), key=lambda row: -len(row["input_ids"]))
        self.num_bytes = [
            sum(
                len(message["content"].encode())
                for message in row["messages"]
                if (not assistant_only or message["role"] == "assistant") and message.get("weight") != 0
            )
            for row in self.rows
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        row = self.rows[index]
        return {name: np.array(row[name], dtype=np.int64) for name in ("input_ids", "labels")}

    def summarise(self, nats_and_tokens: NDArray[Any]) -> dict[str, Any]:
        """Return bits per byte, perplexity and counts, overall and per source.

        Args:
            nats_and_tokens: (conversations, 2), for each in the dataset's order the summed negative log likelihood in
                nats and the number of scored tokens.
        """
        assert len(nats_and_tokens) == len(self.rows), "a held-out conversation was dropped or scored twice"
        sources: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            sources.setdefault(row["source"], []).append(place)
        scores = np.asarray(nats_and_tokens, dtype=np.float64)
        sizes = np.array(self.num_bytes)
        return {
            **_figures(scores, sizes),
            "per_source": {name: _figures(scores[places], sizes[places]) for name, places in sorted(sources.items())},
        }


def _figures(scores: NDArray[Any], num_bytes: NDArray[Any]) -> dict[str, float | int]:
    nats, tokens, total_bytes = float(scores[:, 0].sum()), int(scores[:, 1].sum()), int(num_bytes.sum())
    per_token = nats / max(tokens, 1)
    return {
        "bits_per_byte": nats / math.log(2) / max(total_bytes, 1),
        "perplexity": math.exp(min(per_token, 700.0)),  # nats, so base e; exp(709) is the largest double
        "nats_per_token": per_token,
        "scored_tokens": tokens,
        "scored_bytes": total_bytes,
        "conversations": len(num_bytes),
    }


class AnswerEvaluation:
    """The Trainer's `compute_metrics` for one set of held-out conversations; `last` keeps the newest full summary."""

    plot_key, plot_label = "bits_per_byte", "held-out answers, bits per byte"

    def __init__(self, answers: HeldOutAnswers) -> None:
        """Score these conversations."""
        self.answers = answers
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the flat figures; the per-source ones are in `last`."""
        self.last = self.answers.summarise(np.asarray(prediction.predictions))
        return {name: self.last[name] for name in ("bits_per_byte", "perplexity", "nats_per_token")}

    def describe(self) -> str:
        """Return the newest summary as a line."""
        assert self.last is not None
        return (
            f"answers {self.last['nats_per_token']:.4f} nats per token  "
            f"{self.last['bits_per_byte']:.4f} bits per byte  ({self.last['conversations']} conversations)"
        )


def frequency_entropy(train: NDArray[Any], held_out: NDArray[Any], vocab_size: int) -> float:
    """Return the nats per token of a model that knows nothing but how frequent each token is.

    The cross-entropy of held-out labels under the training labels' frequencies, with one added to each count (Laplace).
    Whoever has learnt the language predicts better than this.

    Args:
        train: labels of the training split; ignored ones are left out here.
        held_out: labels that are predicted.
        vocab_size: entries of the vocabulary.
    """
    counts = np.bincount(train[train != IGNORED], minlength=vocab_size) + 1.0
    log_share = np.log(counts / counts.sum())
    return float(-log_share[held_out[held_out != IGNORED]].mean())


def write_answers(
    path: Path, answers: HeldOutAnswers, model: Any, tokenizer: Any, count: int, new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """Answer held-out questions, write the answers beside the references, and count.

    Each answer has the likeliest tokens, under the penalty for repetition that `ttl chat` has: small models, greedy and
    without it, go round in circles.

    Args:
        path: the jsonl file.
        answers: held-out conversations, of which the first question is asked.
        model: the tuned model.
        tokenizer: with the chat template.
        count: questions, spread over lengths and sources.
        new_tokens: most tokens of an answer.
        batch_size: questions answered at once.

    Returns:
        `questions`, and the share of the answers that the model `ended`.
    """
    from ..models import end_token_ids
    from ..training.callbacks import generate_ids

    encoder = ConversationEncoder(tokenizer)
    places = np.unique(np.linspace(0, len(answers) - 1, min(count, len(answers))).astype(int))
    chosen = [answers.rows[place]["messages"] for place in places]
    first = [next(i for i, message in enumerate(messages) if message["role"] == "assistant") for messages in chosen]
    prompts = [
        encoder.encode(messages[:turn], for_answer=True).ids for messages, turn in zip(chosen, first, strict=True)
    ]
    longest = model.config.max_position_embeddings - new_tokens
    kept = [place for place, ids in enumerate(prompts) if len(ids) <= longest]
    ends, records = end_token_ids(model, tokenizer), []
    for begin in range(0, len(kept), batch_size):
        part = kept[begin : begin + batch_size]
        written = generate_ids(
            model,
            tokenizer,
            [prompts[place] for place in part],
            new_tokens,
            seed=0,
            temperature=0,
            repetition_penalty=Sampling().repetition_penalty,
        )
        for place, ids in zip(part, written, strict=True):
            records.append(
                {
                    "question": chosen[place][first[place] - 1]["content"],
                    "reference": chosen[place][first[place]]["content"],
                    "answer": str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
                    "ended": bool(ids) and ids[-1] in ends,
                    "tokens": len(ids),
                }
            )
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    ended = sum(record["ended"] for record in records) / len(records) if records else None
    return {"questions": len(records), "ended": ended, "new_tokens": new_tokens}


_SAMPLED_QUESTIONS = 4
_ROWS_READ_AT_ONCE = 10_000
_QUESTION = "O que é a Amazônia?"  # asked when nothing is held out


class TrlTrainer(RunTrainer):
    """Mixed into TRL's trainers: no telemetry, no card of theirs, adapters saved with a record of their base model.

    Attributes:
        base: the record of the base model, see `published.write_base_record`.
    """

    base: dict[str, Any]

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each training to the Hub unless an environment variable says otherwise."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the card is made at the end, from the run's files."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from peft import PeftModel

        from ..models import write_base_record

        super()._save(output_dir, state_dict)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save and isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
            write_base_record(Path(str(output_dir or trainer.args.output_dir)), self.base)


class InstructionTrainer(TrlTrainer, SFTTrainer):
    """SFTTrainer with the loss of pretraining (`training.loss`) in place of its own.

    TRL computes the head in tiles as well, but also entropy and accuracy, and waits for the device each time: a step
    took 2.3 to 6.9 times as long on a CPU (docs/lab-log.md). Its evaluation is a mean of means; ours adds sums up.
    """

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's loss, that of the model itself."""
        return Trainer.compute_loss(self, *args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss, the scores that stand in the place of logits, and the labels."""
        return Trainer.prediction_step(self, *args, **kwargs)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log what the Trainer logs."""
        Trainer.log(self, *args, **kwargs)


def build_run(config: SftConfig, plan: SftPlan) -> Run:
    """Return the trainer of a checked plan with its callbacks.

    Raises:
        InputError: packing with a model in which conversations of one row see each other.
    """
    avoid_cudnn_attention()
    # Adapters keep 32 bits and train on a base of 16 where the hardware computes in 16; all weights train in 32.
    half = config.bf16 and config.lora_r
    model, record = build_model(
        plan.base, config.seed, config.attn_implementation, torch.bfloat16 if half else torch.float32
    )
    flatten = config.packs and config.attn_implementation in GPU_ATTENTION
    if config.packs:
        if flatten:
            model.to("cuda")  # type: ignore[arg-type]  # flash attention has no other kernels
        check_no_leaks(model, config.attn_implementation, flatten)
    loss = config.speed_plan(plan.model_config, 0).loss
    fuse_loss(model, loss)
    evaluation = AnswerEvaluation(
        HeldOutAnswers(plan.conversations, config.learns_answers, max_tokens=config.eval_max_tokens)
    )
    assert config.context is not None
    rows = load_rows(plan.conversations / "train.parquet", config.context, config.packs)
    trainer = InstructionTrainer(
        model=model,
        args=config,
        data_collator=RowCollator(plan.tokenizer.pad_token_id or 0, flatten),
        train_dataset=order_rows(rows, config.max_steps * config.rows_per_step, config.seed),
        eval_dataset=evaluation.answers if config.eval_strategy != "no" else None,
        processing_class=plan.tokenizer,
        compute_metrics=evaluation,
        preprocess_logits_for_metrics=window_nats if loss == "whole" else already_scored,
        peft_config=lora_config(config, plan.base.new_tokens),
    )
    trainer.base = record
    samples = answer_samples(config, plan, trainer, evaluation.answers.rows)
    train = plan.manifest["train"]
    arrow = rows.with_format("arrow")  # four bytes a label; a list of Python numbers takes eight times as many
    labels = [list_flatten(batch["labels"]).to_numpy() for batch in arrow.iter(_ROWS_READ_AT_ONCE)]
    answers = np.concatenate([part[part != IGNORED] for part in labels])
    held_out = [label for row in evaluation.answers.rows for label in row["labels"]]
    if held_out:
        nats = frequency_entropy(answers, np.array(held_out), len(plan.tokenizer))
        trainer.add_callback(SenseCallback(evaluation, nats, config.check_first_loss))
    return assemble_run(
        trainer,
        config,
        plan,
        evaluation,
        samples,
        {"length": describe_length(config, plan, len(rows)), "tuning": describe_tuning(config, plan, len(rows))},
        bytes_per_token=sum(source["bytes"] for source in train["sources"].values()) / max(train["tokens"], 1),
        knows_flops=not config.lora_r,
    )


def answer_samples(config: Any, plan: RunPlan, trainer: Any, held_out: list[dict[str, Any]]) -> SampleCallback:
    """Return what answers the configured questions, or a few held-out ones, at every evaluation."""
    encoder = ConversationEncoder(plan.tokenizer)
    return SampleCallback(
        plan.folder,
        plan.tokenizer,
        sample_questions(held_out) if config.sample_prompts is None else config.sample_prompts,
        config.sample_new_tokens,
        planned_zero_stage(trainer),
        encode=lambda text: encoder.encode([{"role": "user", "content": text}], for_answer=True).ids,
    )


def sample_questions(rows: list[dict[str, Any]]) -> list[str]:
    """Return a few held-out questions of middle length, to be answered at every evaluation."""
    questions = sorted(
        {next(message["content"] for message in row["messages"] if message["role"] == "user") for row in rows},
        key=lambda question: (len(question), question),
    )
    middle = len(questions) // 2
    first = max(0, middle - _SAMPLED_QUESTIONS // 2)
    return questions[first : first + _SAMPLED_QUESTIONS] or [_QUESTION]


def describe_weights(config: LoraSettings) -> str:
    """Return which weights are tuned."""
    if not config.lora_r:
        return "all weights"
    name = "DoRA" if config.use_dora else "LoRA"
    return f"{name} of rank {config.lora_r}, {'merged at the end' if config.merge else 'saved as an adapter'}"


def describe_tuning(config: SftConfig, plan: SftPlan, rows: int) -> str:
    """Return what is tuned, on what, as a line."""
    train = plan.manifest["train"]
    filled = f", rows {train['tokens'] / rows / plan.manifest['plan']['context']:.0%} full".replace("%", " %")
    return (
        f"{describe_weights(config)}; {train['conversations']:,} conversations in {rows:,} rows, "
        f"{train['answer_tokens']:,} of {train['tokens']:,} tokens learnt{filled if config.packs else ', not packed'}"
    )


def sft(config: SftConfig, given: Resolved | dict[str, Any]) -> Path:
    """Run or resume an instruction tuning in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`; or all that was resolved before (`read_run`).

    Raises:
        InputError: see `plan_sft`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite or makes no sense, or memory ran out.
    """
    known = given if isinstance(given, Resolved) else None
    return execute(config, plan_sft(config, known), given, build_run, _finish)


def _finish(run: Run, config: SftConfig, plan: SftPlan, seconds: float) -> None:
    """Score all held-out conversations, answer some questions, save the model, and write the manifest last."""
    trainer, evaluation = run.trainer, run.evaluation
    final: dict[str, Any] | None = None
    answered: dict[str, Any] | None = None
    if config.eval_strategy != "no":
        everything = HeldOutAnswers(plan.conversations, config.learns_answers)
        if len(everything) > len(evaluation.answers) or evaluation.last_step != trainer.state.global_step:
            evaluation.answers = everything
            trainer.evaluate(everything, metric_key_prefix="final")
        final = evaluation.last
        if config.final_answers and is_main_process():
            with trainer.clock.part("answers"):
                model = trainer.accelerator.unwrap_model(trainer.model).eval()
                answered = write_answers(
                    plan.folder / ANSWERS_NAME,
                    everything,
                    model,
                    plan.tokenizer,
                    config.final_answers,
                    min(config.final_answer_tokens, int(config.context or 0) // 2),
                    batch_size=8,
                )
            if answered["ended"] is not None:
                print(f"answers    {answered['ended']:.0%} of {answered['questions']} ended within "
                      f"{answered['new_tokens']} tokens ({ANSWERS_NAME})".replace("%", " %"), flush=True)  # fmt: skip
    num_trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    save_model(trainer, plan.folder, config.merge)

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        initial = next((record for record in records if "bits_per_byte" in record and record["step"] == 0), None)
        return {
            "model": {**describe_model(config, plan), "num_trained_parameters": num_trained},
            "data": describe_data(config, plan),
            "training": describe_training(trainer, config, plan, records, seconds, config.num_rows),
            "results": {"initial": initial or NOT_EVALUATED, "final": final or NOT_EVALUATED, "answers": answered},
        }

    close_run_folder(run, config, plan, "sft", describe)


def describe_data(config: SftConfig, plan: SftPlan) -> dict[str, Any]:
    """Return the manifest's record of the conversations and where they come from."""
    manifest = plan.manifest
    return {
        "conversations": str(config.conversations),
        **describe_examples(manifest),
        "validation_sources": manifest["validation"]["sources"],
        "answer_tokens": manifest["train"]["answer_tokens"],
        "validation_documents": manifest["validation"]["conversations"],
    }
