"""Instruction tuning: TRL's SFTTrainer on conversations packed without leaks, in a run folder like pretraining's."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow.compute import list_flatten
from transformers import Trainer
from trl import SFTTrainer

from ..attention import avoid_cudnn_attention
from ..chat.template import ConversationEncoder
from ..checks import is_main_process
from ..data.conversations import IGNORED
from ..data.examples import describe_examples
from ..evaluation.held_out import already_scored, window_nats
from ..training.callbacks import SampleCallback
from ..training.loss import fuse_loss
from ..training.plan import RunPlan
from ..training.report import describe_length, describe_model, describe_training, planned_zero_stage
from ..training.run import NOT_EVALUATED, Run, assemble_run, close_run_folder, execute
from ..training.speed import GPU_ATTENTION
from ..training.trainer import RunTrainer
from .adapters import LoraSettings, lora_config, save_model
from .answers import ANSWERS_NAME, AnswerEvaluation, HeldOutAnswers, frequency_entropy, write_answers
from .base import build_model
from .config import SftConfig
from .leaks import check_no_leaks
from .plan import SftPlan, plan_sft
from .rows import RowCollator, load_rows, order_rows
from .sense import SenseCallback

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

        from ..adapters import write_base_record

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


def sft(config: SftConfig, given: dict[str, Any]) -> Path:
    """Run or resume an instruction tuning in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`.

    Raises:
        InputError: see `plan_sft`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite or makes no sense, or memory ran out.
    """
    return execute(config, plan_sft(config), given, build_run, _finish)


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
