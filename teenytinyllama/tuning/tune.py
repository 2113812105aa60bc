"""Tuning with TRL: instructions (`sft`) and preferences (`dpo`), in run folders like pretraining's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from pyarrow.compute import list_flatten
from transformers import Trainer
from trl import DPOTrainer, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ..chat.generation import Sampling, generate_ids
from ..chat.template import ConversationEncoder
from ..checks import is_main_process
from ..data.conversations import IGNORED
from ..data.instructions import describe_examples
from ..evaluation.held_out import already_scored, window_nats
from ..models import avoid_cudnn_attention, write_base_record
from ..stage_folder import ANSWERS_NAME
from ..training.run import (
    NOT_EVALUATED,
    Run,
    assemble_run,
    close_run_folder,
    describe_length,
    describe_model,
    describe_training,
    execute,
)
from ..training.run_plan import Resolved
from ..training.speed import GPU_ATTENTION, fuse_loss, zero_stage_of
from ..training.trainer import RunTrainer, SampleCallback
from .base import DPO, SFT, TuningPlan, build_model, lora_config, save_model
from .config import DpoConfig, LoraSettings, SftConfig
from .rows import (
    AnswerEvaluation,
    FirstLossCallback,
    HeldOutAnswers,
    HeldOutPairs,
    PairEvaluation,
    RowCollator,
    check_no_leaks,
    frequency_entropy,
    load_rows,
    order_rows,
)

_ANSWERS_AT_ONCE = 8
_SAMPLED_QUESTIONS = 4
_ROWS_READ_AT_ONCE = 10_000
_QUESTION = "O que é a Amazônia?"  # asked when nothing is held out
_LOGGED_REWARDS = tuple(f"rewards/{name}" for name in ("margins", "accuracies", "chosen", "rejected"))


class TrlTrainer(RunTrainer):
    """Mixed into TRL's trainers: no telemetry, no card of theirs, adapters saved with a record of their base model.

    Attributes:
        base: the record of the base model, see `models.write_base_record`.
    """

    base: dict[str, Any]

    def _send_telemetry(self) -> None:
        """Send nothing: TRL reports each training to the Hub unless an environment variable says otherwise."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the card is made at the end, from the run's files."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from peft import PeftModel

        super()._save(output_dir, state_dict)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save and isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
            write_base_record(Path(str(output_dir or trainer.args.output_dir)), self.base)


class InstructionTrainer(TrlTrainer, SFTTrainer):
    """SFTTrainer with the loss of pretraining (`fuse_loss`) in place of its own.

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


class PreferenceTrainer(TrlTrainer, DPOTrainer):
    """DPOTrainer on tokens that are ready, whose evaluation returns log probabilities of each pair."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Leave the dataset alone: `data.preferences` has made its tokens, safe from typed special tokens."""
        return dataset

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss, (pairs, 4) log probabilities (see `rows.summarise_pairs`), and something for labels."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        known = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**known, labels=labels, use_cache=False, fused_lm_head=True)
        own = output.log_probs.float().sum(dim=1).chunk(2)  # chosen answers first, then rejected ones
        reference = [part.float() for part in self.compute_ref_log_probs(self.ref_model or model, inputs)]
        scores = torch.stack([*own, *reference], dim=1)
        margins = self.beta * ((scores[:, 0] - scores[:, 2]) - (scores[:, 1] - scores[:, 3]))
        loss = -torch.nn.functional.logsigmoid(margins).mean()
        return loss, scores, torch.zeros(len(scores), device=scores.device)


def _load_model(config: Any, plan: TuningPlan) -> tuple[Any, dict[str, Any]]:
    """Return the base model of a tuning, and the record of it for adapters."""
    avoid_cudnn_attention()
    # Adapters keep 32 bits and train on a base of 16 where the hardware computes in 16; all weights train in 32.
    dtype = torch.bfloat16 if config.bf16 and config.lora_r else torch.float32
    return build_model(plan.base, config.seed, config.attn_implementation, dtype)


def build_sft_run(config: SftConfig, plan: TuningPlan) -> Run:
    """Return the trainer of a checked plan with its callbacks.

    Raises:
        InputError: packing with a model in which conversations of one row see each other.
    """
    model, record = _load_model(config, plan)
    flatten = config.packs and config.attn_implementation in GPU_ATTENTION
    if config.packs:
        if flatten:
            model.to("cuda")  # type: ignore[arg-type]  # flash attention has no other kernels
        check_no_leaks(model, config.attn_implementation, flatten)
    loss = config.speed_plan(plan.model_config, 0).loss
    fuse_loss(model, loss)
    evaluation = AnswerEvaluation(HeldOutAnswers(plan.data, config.learns_answers, max_tokens=config.eval_max_tokens))
    assert config.context is not None
    rows = load_rows(plan.data / "train.parquet", config.context, config.packs)
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
        trainer.add_callback(FirstLossCallback(evaluation, nats, config.check_first_loss))
    return assemble_run(
        trainer,
        config,
        plan,
        evaluation,
        samples,
        {"length": describe_length(config, plan, len(rows)), "tuning": _describe_tuning(config, plan, len(rows))},
        bytes_per_token=sum(source["bytes"] for source in train["sources"].values()) / max(train["tokens"], 1),
        knows_flops=not config.lora_r,
    )


def build_dpo_run(config: DpoConfig, plan: TuningPlan) -> Run:
    """Return the trainer of a checked plan with its callbacks."""
    import datasets

    model, record = _load_model(config, plan)
    # A model of its own: TRL would look for one by the model's name. Adapters are switched off to get the reference.
    reference = None if config.lora_r else _load_model(config, plan)[0]
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    data = plan.data.absolute()  # pyarrow takes `a:b/c` for an address
    table = pyarrow.parquet.read_table(data / "train.parquet", columns=columns)
    held_out = HeldOutPairs(pyarrow.parquet.read_table(data / "validation.parquet").to_pylist())
    evaluation = PairEvaluation(held_out, config.beta)
    rows = order_rows(
        datasets.Dataset(table, fingerprint="pairs"), config.max_steps * config.rows_per_step, config.seed
    )
    trainer = PreferenceTrainer(
        model=model,
        ref_model=reference,
        args=config,
        data_collator=DataCollatorForPreference(pad_token_id=plan.tokenizer.pad_token_id or 0),
        train_dataset=rows.with_format(None),  # TRL's collator adds lists
        eval_dataset=held_out if config.eval_strategy != "no" else None,
        processing_class=plan.tokenizer,
        compute_metrics=evaluation,
        peft_config=lora_config(config, []),
    )
    trainer.base = record
    samples = answer_samples(config, plan, trainer, held_out.rows)
    train = plan.manifest["train"]
    lines = {
        "length": describe_length(config, plan, config.num_rows),
        "tuning": f"{_describe_weights(config)}; {train['pairs']:,} pairs, beta {config.beta}",
    }
    return assemble_run(
        trainer,
        config,
        plan,
        evaluation,
        samples,
        lines,
        logged=_LOGGED_REWARDS,
        knows_flops=False,
        loss_unit="-log sigmoid of the margin",
    )


def answer_samples(config: Any, plan: TuningPlan, trainer: Any, held_out: list[dict[str, Any]]) -> SampleCallback:
    """Return what answers the configured questions, or a few held-out ones, at every evaluation."""
    encoder = ConversationEncoder(plan.tokenizer)
    return SampleCallback(
        plan.folder,
        plan.tokenizer,
        sample_questions(held_out) if config.sample_prompts is None else config.sample_prompts,
        config.sample_new_tokens,
        zero_stage_of(config) or 0,
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


def _describe_weights(config: LoraSettings) -> str:
    """Return which weights are tuned."""
    if not config.lora_r:
        return "all weights"
    name = "DoRA" if config.use_dora else "LoRA"
    return f"{name} of rank {config.lora_r}, {'merged at the end' if config.merge else 'saved as an adapter'}"


def _describe_tuning(config: SftConfig, plan: TuningPlan, rows: int) -> str:
    """Return what is tuned, on what, as a line."""
    train = plan.manifest["train"]
    filled = f", rows {train['tokens'] / rows / plan.manifest['plan']['context']:.0%} full".replace("%", " %")
    return (
        f"{_describe_weights(config)}; {train['conversations']:,} conversations in {rows:,} rows, "
        f"{train['answer_tokens']:,} of {train['tokens']:,} tokens learnt{filled if config.packs else ', not packed'}"
    )


def sft(config: SftConfig, given: Resolved | dict[str, Any]) -> Path:
    """Run or resume an instruction tuning in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`; or all that was resolved before (`read_run`).

    Raises:
        InputError: see `TuningKind.plan`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite or makes no sense, or memory ran out.
    """
    return execute(config, SFT.plan, given, build_sft_run, _finish_sft)


def _finish_sft(run: Run, config: SftConfig, plan: TuningPlan, seconds: float) -> None:
    """Score all held-out conversations, answer some questions, save the model, and write the manifest last."""
    trainer, evaluation = run.trainer, run.evaluation
    final: dict[str, Any] | None = None
    answered: dict[str, Any] | None = None
    if config.eval_strategy != "no":
        everything = HeldOutAnswers(plan.data, config.learns_answers)
        if len(everything) > len(evaluation.answers) or evaluation.last_step != trainer.state.global_step:
            evaluation.answers = everything
            trainer.evaluate(everything, metric_key_prefix="final")
        final = evaluation.last
        if config.final_answers and is_main_process():
            with trainer.clock.part("answers"):
                model = trainer.accelerator.unwrap_model(trainer.model).eval()
                new_tokens = min(config.final_answer_tokens, int(config.context or 0) // 2)
                answered = write_answers(
                    plan.folder / ANSWERS_NAME, everything, model, plan.tokenizer, config.final_answers, new_tokens
                )
            if answered["ended"] is not None:
                print(f"answers    {answered['ended']:.0%} of {answered['questions']} ended within "
                      f"{answered['new_tokens']} tokens ({ANSWERS_NAME})".replace("%", " %"), flush=True)  # fmt: skip
    num_trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    save_model(trainer, plan.folder, config.merge)

    def results(initial: dict[str, Any] | None) -> dict[str, Any]:
        return {"initial": initial or NOT_EVALUATED, "final": final or NOT_EVALUATED, "answers": answered}

    _close(run, config, plan, seconds, results, num_trained_parameters=num_trained)


def write_answers(
    path: Path, answers: HeldOutAnswers, model: Any, tokenizer: Any, count: int, new_tokens: int
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

    Returns:
        `questions`, and the share of the answers that the model `ended`.
    """
    encoder = ConversationEncoder(tokenizer)
    asked: list[tuple[list[int], str, str]] = []  # prompt, question, reference
    for place in np.unique(np.linspace(0, len(answers) - 1, min(count, len(answers))).astype(int)):
        messages = answers.rows[place]["messages"]
        turn = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
        prompt = encoder.encode(messages[:turn], for_answer=True).ids
        if len(prompt) <= model.config.max_position_embeddings - new_tokens:
            asked.append((prompt, messages[turn - 1]["content"], messages[turn]["content"]))
    records = []
    for begin in range(0, len(asked), _ANSWERS_AT_ONCE):
        prompts, questions, references = zip(*asked[begin : begin + _ANSWERS_AT_ONCE], strict=True)
        penalty = Sampling.repetition_penalty
        written = generate_ids(
            model, tokenizer, list(prompts), new_tokens, seed=0, temperature=0, repetition_penalty=penalty,
            calls=(len(asked) - begin) // _ANSWERS_AT_ONCE,
        )  # fmt: skip
        for question, reference, answer in zip(questions, references, written, strict=True):
            text = str(tokenizer.decode(answer.ids, skip_special_tokens=True)).strip()
            records.append({"question": question, "reference": reference, "answer": text, "ended": answer.ended,
                            "tokens": len(answer.ids)})  # fmt: skip
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    ended = sum(record["ended"] for record in records) / len(records) if records else None
    return {"questions": len(records), "ended": ended, "new_tokens": new_tokens}


def dpo(config: DpoConfig, given: Resolved | dict[str, Any]) -> Path:
    """Run or resume a preference tuning in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`; or all that was resolved before (`read_run`).

    Raises:
        InputError: see `TuningKind.plan`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite, or memory ran out.
    """
    return execute(config, DPO.plan, given, build_dpo_run, _finish_dpo)


def _finish_dpo(run: Run, config: DpoConfig, plan: TuningPlan, seconds: float) -> None:
    """Score the held-out pairs, save the model, and write the manifest last."""
    trainer, evaluation = run.trainer, run.evaluation
    if config.eval_strategy != "no" and evaluation.last_step != trainer.state.global_step:
        trainer.evaluate(metric_key_prefix="final")
    save_model(trainer, plan.folder, config.merge)

    def results(initial: dict[str, Any] | None) -> dict[str, Any]:
        preferences = {"initial": initial, "final": evaluation.last}
        return {"initial": NOT_EVALUATED, "final": NOT_EVALUATED, "preferences": preferences}

    _close(run, config, plan, seconds, results)


def _close(
    run: Run,
    config: Any,
    plan: TuningPlan,
    seconds: float,
    results: Callable[[dict[str, Any] | None], dict[str, Any]],
    **more: Any,
) -> None:
    """Write the manifest of a tuning whose model is saved.

    Args:
        run: the run.
        config: its config.
        plan: its plan.
        seconds: of training.
        results: makes the record of the scores from the score before training, or None.
        more: further facts of the model.
    """

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        score = run.evaluation.plot_key
        initial = next((record for record in records if score in record and record["step"] == 0), None)
        return {
            "model": {**describe_model(config, plan), **more},
            "data": describe_data(config, plan),
            "training": describe_training(run.trainer, config, plan, records, seconds, config.num_rows),
            "results": results(initial),
        }

    close_run_folder(run, config, plan, config.VERB, describe, {})


def describe_data(config: Any, plan: TuningPlan) -> dict[str, Any]:
    """Return the manifest's record of the prepared rows and where they come from."""
    key, validation = config.DATA_KEY, plan.manifest["validation"]
    record = {key: str(getattr(config, key)), **describe_examples(plan.manifest)}
    if key == "preferences":
        return {**record, "validation_documents": validation["pairs"]}
    return {
        **record,
        "validation_sources": validation["sources"],
        "answer_tokens": plan.manifest["train"]["answer_tokens"],
        "validation_documents": validation["conversations"],
    }
