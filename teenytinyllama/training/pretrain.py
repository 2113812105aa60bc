"""Pretraining: a checked plan, a Trainer with our callbacks, and a run folder that says everything about the run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction, set_seed

from ..evaluation.held_out import HeldOutWindows, already_scored, window_nats
from ..evaluation.scoring import can_score
from .callbacks import SampleCallback
from .config import DEFAULT_PROMPTS, PretrainConfig
from .plan import PretrainPlan, check_rows, plan_run
from .report import (
    describe_data,
    describe_length,
    describe_model,
    describe_speed,
    describe_training,
    planned_epochs,
    planned_zero_stage,
    warn_of_repeats,
)
from .rows import CausalCollator, TrainingRows
from .run import NOT_EVALUATED, Run, assemble_run, close_run_folder, execute
from .signal_scores import SignalCallback, build_signal_tasks
from .speed import apply_speed
from .trainer import Pretrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeldOutEvaluation:
    """The Trainer's `compute_metrics` for one set of held-out windows; `last` keeps the newest full summary."""

    plot_key, plot_label = "bits_per_byte", "held-out bits per byte"

    def __init__(self, windows: HeldOutWindows) -> None:
        """Score these windows."""
        self.windows = windows
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the flat figures; the per-source ones are in `last`."""
        self.last = self.windows.summarise(np.asarray(prediction.predictions))
        return {name: self.last[name] for name in ("bits_per_byte", "perplexity", "nats_per_token")}

    def describe(self) -> str:
        """Return the newest summary as a line."""
        assert self.last is not None
        return (
            f"{self.last['bits_per_byte']:.4f} bits per byte  perplexity {self.last['perplexity']:.2f}  "
            f"({self.last['documents']} documents)"
        ) + "".join(f"  {name.replace('_', ' ')} {self.last[name]:.4f}" for name in self.last if self._is_signal(name))

    @staticmethod
    def _is_signal(name: str) -> bool:
        return name.endswith(("_acc", "_acc_norm", "_bits_per_byte"))


def build_run(config: PretrainConfig, plan: PretrainPlan) -> Run:
    """Return the Trainer of a checked plan with its callbacks."""
    evaluation = HeldOutEvaluation(
        HeldOutWindows(plan.packed, plan.packed.manifest["context"], max_tokens=config.eval_max_tokens)
    )
    pad_token_id = plan.tokenizer.pad_token_id
    model = _build_model(config, plan)
    trainer = Pretrainer(
        model=model,
        args=config,
        data_collator=CausalCollator(0 if pad_token_id is None else pad_token_id),
        train_dataset=TrainingRows(plan.packed.train, config.max_steps * config.rows_per_step, config.seed),
        eval_dataset=evaluation.windows if config.eval_strategy != "no" else None,
        processing_class=plan.tokenizer,
        compute_metrics=evaluation,
    )
    zero_stage = planned_zero_stage(trainer)
    trainer.speed = config.speed_plan(plan.model_config, zero_stage)
    if config.eval_strategy != "no":
        held_out = plan.packed.documents["num_tokens"]
        trainer.final_share = float(held_out.sum() / held_out[evaluation.windows.document_ids].sum())
    trainer.compiles = trainer.speed.compile_layers
    apply_speed(model, trainer.speed)
    trainer.preprocess_logits_for_metrics = window_nats if trainer.speed.loss == "whole" else already_scored
    prompts = DEFAULT_PROMPTS if config.sample_prompts is None else config.sample_prompts
    samples = SampleCallback(plan.folder, plan.tokenizer, prompts, config.sample_new_tokens, zero_stage)
    sources = plan.packed.manifest["sources"].values()
    bytes_per_token = sum(source["bytes"] for source in sources) / sum(source["tokens"] for source in sources)
    lines = {
        "length": describe_length(config, plan, len(plan.packed.train)),
        **warn_of_repeats(planned_epochs(config, len(plan.packed.train))),
        "speed": describe_speed(trainer.speed, config),
    }
    if plan.packed.manifest.get("same_document"):
        lines["held out"] = "the last part of the only document: scores are of the same document"
    asks = config.eval_strategy != "no" and can_score(model)
    if config.eval_strategy != "no" and not asks:
        kind = model.config.model_type
        lines["signals"] = f"no questions while it trains: they are asked of Llamas alone, and this is a {kind}"
    run = assemble_run(trainer, config, plan, evaluation, samples, lines, bytes_per_token=bytes_per_token)
    tasks = []
    if asks:
        tasks = build_signal_tasks(config, plan.packed, evaluation.windows.document_ids, plan.tokenizer)
    signal = SignalCallback(
        tasks, evaluation, int(config.per_device_eval_batch_size or 8), zero_stage, trainer.compiles
    )
    # In front of the callback that writes the summary.
    trainer.callback_handler.callbacks.insert(0, trainer.clock.watch(signal, "evaluation"))
    return run


def _build_model(config: PretrainConfig, plan: PretrainPlan) -> "PreTrainedModel":
    from transformers import LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    from ..published import from_pretrained

    transformers_logging.disable_progress_bar()  # a bar per saved shard would break up ours
    set_seed(config.seed)  # every rank starts from the same weights
    if config.model_name_or_path is not None:
        model, _ = from_pretrained(config.model_name_or_path, config.model_revision)
        model.config.max_position_embeddings = plan.model_config.max_position_embeddings
        model.set_attn_implementation(config.attn_implementation)
        return model.float()
    # Not AutoModel.from_config: under ZeRO 3 that initialises inside deepspeed.zero.Init, which draws other weights.
    model = LlamaForCausalLM(plan.model_config)
    model.set_attn_implementation(config.attn_implementation)
    model.generation_config.pad_token_id = plan.model_config.pad_token_id
    return model


def pretrain(config: PretrainConfig, given: dict[str, Any]) -> Path:
    """Run or resume a pretraining run in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`.

    Raises:
        InputError: see `plan_run`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite, or memory ran out.
    """
    plan = plan_run(config)
    check_rows(plan)
    return execute(config, plan, given, build_run, _finish)


def _finish(run: Run, config: PretrainConfig, plan: PretrainPlan, seconds: float) -> None:
    """Score all held-out documents, save the final model, and write the manifest last."""
    trainer, evaluation = run.trainer, run.evaluation
    final: dict[str, Any] | None = None
    if config.eval_strategy != "no":
        everything = HeldOutWindows(plan.packed, plan.packed.manifest["context"])
        if len(everything) > len(evaluation.windows) or evaluation.last_step != trainer.state.global_step:
            evaluation.windows = everything
            trainer.evaluate(everything, metric_key_prefix="final")
        final = evaluation.last
    trainer.save_model(str(plan.folder))

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        initial = next((record for record in records if "bits_per_byte" in record and record["step"] == 0), None)
        training = describe_training(trainer, config, plan, records, seconds, len(plan.packed.train))
        if run.cap is not None and run.cap.decision is not None:
            training["ended_by_cap"] = run.cap.decision.reason
        return {
            "model": describe_model(config, plan),
            "data": describe_data(config, plan),
            "training": {**training, "speed": describe_speed(trainer.speed, config)},
            "results": {"initial": initial or NOT_EVALUATED, "final": final or NOT_EVALUATED},
        }

    close_run_folder(run, config, plan, "pretrain", describe)
