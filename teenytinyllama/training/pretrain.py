"""Pretraining: a checked plan, a Trainer with our callbacks, and a run folder that says everything about the run."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction, PrinterCallback, ProgressCallback, set_seed

from ..arguments import write_yaml
from ..checks import StoppedResumable, is_main_process
from ..evaluation.held_out import HeldOutWindows, already_scored, window_nats
from ..manifest import MANIFEST_NAME, package_commit, sha256_file, versions, write_json, write_manifest
from ..presets import flops_per_token
from .callbacks import EnergyCallback, SampleCallback
from .checkpoints import ENVIRONMENT_NAME, CheckpointCallback, latest_complete_checkpoint, lock_run_folder
from .clock import Clock
from .config import DEFAULT_PROMPTS, PretrainConfig
from .hardware import device_name
from .metrics import METRICS_NAME, MetricsCallback, read_jsonl
from .micro_batch import micro_batch_record, out_of_memory_failure, settle_micro_batch
from .plan import RunPlan, plan_run
from .ranks import check_ranks, leave_ranks
from .report import BannerCallback, describe_data, describe_model, describe_time, describe_training, planned_zero_stage
from .rows import CausalCollator, TrainingRows
from .signals import StopCallback
from .speed import apply_speed, plan_speed
from .trainer import Pretrainer
from .trial import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_NOT_EVALUATED: dict[str, Any] = {"bits_per_byte": None, "perplexity": None, "per_source": {}}


class HeldOutEvaluation:
    """The Trainer's `compute_metrics` for one set of held-out windows; `last` keeps the newest full summary."""

    def __init__(self, windows: HeldOutWindows) -> None:
        """Score these windows."""
        self.windows = windows
        self.last: dict[str, Any] | None = None
        self.last_step = -1  # set by the metrics callback

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the flat figures; the per-source ones are in `last`."""
        self.last = self.windows.summarise(np.asarray(prediction.predictions))
        return {name: self.last[name] for name in ("bits_per_byte", "perplexity", "nats_per_token")}


@dataclass(frozen=True)
class Run:
    """The live objects of a run in one process."""

    trainer: Pretrainer
    evaluation: HeldOutEvaluation
    energy: EnergyCallback
    stop: StopCallback
    banner: BannerCallback


def build_run(config: PretrainConfig, plan: RunPlan) -> Run:
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
    trainer.clock = Clock()
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    zero_stage = planned_zero_stage(trainer)
    flops = flops_per_token(plan.model_config, plan.model_config.max_position_embeddings)
    trainer.speed = plan_speed(config, flops * config.tokens_per_step * config.max_steps, zero_stage)
    apply_speed(model, trainer.speed)
    trainer.preprocess_logits_for_metrics = already_scored if trainer.speed.chunked_loss else window_nats
    prompts = DEFAULT_PROMPTS if config.sample_prompts is None else config.sample_prompts
    sources = plan.packed.manifest["sources"].values()
    bytes_per_token = sum(source["bytes"] for source in sources) / sum(source["tokens"] for source in sources)
    energy, stop = EnergyCallback(plan.folder, config.country_iso_code), StopCallback()
    banner = BannerCallback(trainer, config, plan)
    # The order matters: energy is flushed before it is reported, sampling is over before the clock goes on, and a
    # checkpoint is marked complete after everything else has written into the folder.
    for callback in (
        banner,
        stop,
        energy,
        SampleCallback(plan.folder, plan.tokenizer, prompts, config.sample_new_tokens, zero_stage),
        MetricsCallback(plan.folder, config.tokens_per_step, evaluation, energy, bytes_per_token),
        CheckpointCallback(config.save_checkpoints_kept, zero_stage),
    ):
        part = "samples" if isinstance(callback, SampleCallback) else "callbacks"
        trainer.add_callback(trainer.clock.watch(callback, part))
    return Run(trainer, evaluation, energy, stop, banner)


def _build_model(config: PretrainConfig, plan: RunPlan) -> "PreTrainedModel":
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
    if plan.state == "complete":
        if is_main_process():
            print(f"{plan.folder} is complete: {config.max_steps} steps are done")
        return plan.folder
    check_ranks(config)
    settle_micro_batch(config, plan)
    run = build_run(config, plan)
    trainer = run.trainer
    zero_stage = planned_zero_stage(trainer)
    checkpoint = latest_complete_checkpoint(plan.folder, config.max_steps, config.world_size, zero_stage)
    lock = None
    if trainer.is_world_process_zero():
        lock = lock_run_folder(plan.folder)
        _open_run_folder(config, plan, given)
    run.banner.checkpoint = checkpoint
    config.eval_on_start = config.eval_on_start and checkpoint is None
    start = time.time()
    try:
        with trainer.clock.part("training"):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not run.stop.stopped:
            _finish(run, config, plan, time.time() - start)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory_failure(error, config, plan.folder) from error
    finally:
        run.energy.stop()
        run.stop.restore_handlers()
        if lock is not None:
            lock.release()
    leave_ranks()
    if run.stop.stopped:
        raise StoppedResumable(
            f"saved {plan.folder}/checkpoint-{trainer.state.global_step}; the same command goes on from there"
        )
    return plan.folder


def _open_run_folder(config: PretrainConfig, plan: RunPlan, given: dict[str, Any]) -> None:
    """Write what is known before training; the manifest of a shorter, complete run is taken away."""
    (plan.folder / MANIFEST_NAME).unlink(missing_ok=True)
    write_yaml(plan.folder / "config.yaml", config.to_yaml_values(given))
    environment = {
        "identity": plan.identity,
        "versions": versions(),
        "commit": package_commit(),
        "device": device_name(),
        "precision": config.precision,
        "micro_batch": micro_batch_record(config),
    }
    write_json(plan.folder / ENVIRONMENT_NAME, environment)


def _finish(run: Run, config: PretrainConfig, plan: RunPlan, seconds: float) -> None:
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
    run.energy.stop()
    if not trainer.is_world_process_zero():
        return
    (plan.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
    records = read_jsonl(plan.folder / METRICS_NAME)
    initial = next((record for record in records if "bits_per_byte" in record and record["step"] == 0), None)
    manifest = {
        "config": config.to_yaml_values({}),
        "model": describe_model(config, plan),
        "data": describe_data(config, plan),
        "training": describe_training(trainer, config, plan, records, seconds),
        "results": {"initial": initial or _NOT_EVALUATED, "final": final or _NOT_EVALUATED},
        "hashes": {path.name: sha256_file(path) for path in sorted(plan.folder.glob("*.safetensors"))},
    }
    write_manifest(plan.folder, "pretrain", manifest)
    print("time       " + describe_time(trainer.clock.seconds), flush=True)
