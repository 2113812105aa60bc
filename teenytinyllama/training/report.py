"""What a run says about itself: the banner before it starts, and the manifest's records after it ends."""

import math
import statistics
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints import complete_checkpoints
from ..checks import RunFailedError, beside_the_model
from ..data.input_files import hub_datasets
from ..energy.emissions import grid_intensity, place, read_emissions
from ..gpus import device_name, peak_flops, peak_gpu_memory_gb, peak_memory_gb
from ..model_files import is_local
from ..planning.memory import REPEATS_WORTH_READING, mean_step_speed
from ..presets import count_parameters
from ..stage_folder import EMISSIONS_NAME
from .metrics import MFU_CONVENTION
from .run_plan import PretrainPlan, RunPlan
from .speed import SpeedPlan

RISE_WORTH_TELLING = 0.005  # share of the lowest held-out score; evaluations near the end of a good run differ by less


def planned_zero_stage(trainer: Trainer) -> int:
    """Return the ZeRO stage that accelerate's plugin asks for (0 without DeepSpeed), before there is an engine."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return int(plugin.zero_stage) if plugin is not None else 0


def live_zero_stage(trainer: Trainer) -> int:
    """Return the ZeRO stage of the engine that trains (0 without DeepSpeed); there is one once training begins."""
    engine: Any = trainer.model_wrapped
    return int(engine.zero_optimization_stage()) if hasattr(engine, "zero_optimization_stage") else 0


class BannerCallback(TrainerCallback):
    """Print what will run when the engine is there to be asked, and refuse one that is not what was asked for."""

    def __init__(self, trainer: Any, config: Any, plan: RunPlan, lines: dict[str, str]) -> None:
        """Describe this run, with lines of its kind; set `checkpoint` to what it resumes from."""
        self.trainer, self.config, self.plan, self.lines = trainer, config, plan, lines
        self.checkpoint: Path | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print the banner on rank 0.

        Raises:
            RunFailedError: accelerate's file asks for a ZeRO stage that the engine does not run.
        """
        planned, live = planned_zero_stage(self.trainer), live_zero_stage(self.trainer)
        if planned != live:
            raise RunFailedError(f"ZeRO stage {planned} was asked for and the engine runs stage {live}.")
        if state.is_world_process_zero:
            print_banner(self.trainer, self.config, self.plan, self.lines, self.checkpoint)


def print_banner(trainer: Any, config: Any, plan: RunPlan, more: dict[str, str], checkpoint: Path | None) -> None:
    """Print ranks, backend and ZeRO stage as the live objects have them, precision, sizes, arithmetic."""
    import torch.distributed as dist

    parameters = count_parameters(plan.model_config)  # under ZeRO 3 a rank's own count would be of its part
    backend = dist.get_backend() if dist.is_available() and dist.is_initialized() else "none"
    peak, peak_source = peak_flops(device_name())
    lines = {
        "model": f"{getattr(config, 'preset', None) or config.model_name_or_path}: {parameters:,} parameters, "
        f"{plan.model_config.num_hidden_layers} layers x {plan.model_config.hidden_size}, "
        f"context {plan.model_config.max_position_embeddings}, vocabulary {plan.model_config.vocab_size}",
        "ranks": f"{config.world_size} (backend {backend}, {trainer.accelerator.distributed_type.value}, "
        f"ZeRO stage {live_zero_stage(trainer) or 'none'}, {type(trainer.model_wrapped).__name__}) on {device_name()}",
        "precision": f"{config.precision} ({config.precision_reason})",
        "batch": f"{config.rows_per_step * config.tokens_per_row:,} tokens a step = "
        f"{config.per_device_train_batch_size} rows x {config.gradient_accumulation_steps} accumulation x "
        f"{config.world_size} ranks x {config.tokens_per_row} tokens "
        f"({'; '.join(filter(None, (config.micro_batch_reason, config.batch_reason)))})",
        **more,
        "MFU": f"{MFU_CONVENTION}; peak {peak / 1e12:.3g} TFLOP/s a rank ({peak_source})",
        "energy": f"offline, grid of {place(config.country_iso_code, config.region)} at "
        f"{grid_intensity(config.country_iso_code, config.region):.1f} g CO2e/kWh (country_iso_code, region), "
        f"PUE {config.pue:g}",
        "start": f"resumed from {checkpoint}" if checkpoint else "from the beginning",
        "folder": str(plan.folder),
    }
    print("\n".join(f"{name:10} {text}" for name, text in lines.items()), flush=True)


def describe_length(config: Any, plan: RunPlan, rows: int) -> str:
    """Return steps, tokens and epochs of a run over so many rows of data."""
    tokens = config.max_steps * config.rows_per_step * config.tokens_per_row
    return (
        f"{config.max_steps:,} steps = {tokens:,} tokens = {tokens / count_parameters(plan.model_config):.1f} per "
        f"parameter = {planned_epochs(config, rows):.2f} epochs of {rows:,} rows"
    )


def planned_epochs(config: Any, rows: int) -> float:
    """Return how often a run will read each of so many rows."""
    return float(config.max_steps * config.rows_per_step / rows)


def warn_of_repeats(epochs: float) -> dict[str, str]:
    """Return a line on a pretraining that reads its rows too often, by its name; none for one that does not."""
    if epochs <= REPEATS_WORTH_READING:
        return {}
    return {
        "repeats": f"each row is read {epochs:.1f} times; after {REPEATS_WORTH_READING} new text teaches more, and "
        "in the end the model knows its rows by heart: watch the held-out score"
    }


def comparable_scores(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the held-out records over the text that evaluations read most lately, by step.

    Left out are the score of all documents after the last step, and what a shorter run read before it was made longer.

    Args:
        records: of `metrics.jsonl`.
    """
    scored = [record for record in records if record.get("bits_per_byte") is not None]
    sizes = [record.get("scored_bytes") for record in scored]
    newest = next((size for size in reversed(sizes) if sizes.count(size) > 1), None)
    return [record for record, size in zip(scored, sizes, strict=True) if newest is not None and size == newest]


def lowest_held_out(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return step, tokens and bits per byte of the best evaluation during a run; None if there is none to compare.

    Args:
        records: of `metrics.jsonl`.
    """
    best = min(comparable_scores(records), key=lambda record: record["bits_per_byte"], default=None)
    return best and {name: best[name] for name in ("step", "tokens", "bits_per_byte")}


def describe_turn(folder: Path, records: list[dict[str, Any]], epochs: float) -> str | None:
    """Return what to tell of a run whose held-out score got worse before its end, and which checkpoint is better.

    Args:
        folder: of the run.
        records: of its `metrics.jsonl`.
        epochs: times it read its rows.
    """
    scores = comparable_scores(records)
    lowest = lowest_held_out(records)
    if lowest is None or scores[-1]["step"] != max(record["step"] for record in records):
        return None
    end = scores[-1]["bits_per_byte"]
    if end <= (1 + RISE_WORTH_TELLING) * lowest["bits_per_byte"]:
        return None
    cause = f"the rows were read {epochs:.1f} times, which was too often. Train on more text, or end near that step."
    if epochs <= 1 or lowest["step"] == 0:
        cause = "the learning rate may be too high, or the held-out text of another kind."
    score_of = {record["step"]: record["bits_per_byte"] for record in scores}
    kept = [(score_of[step], path.name) for step, path in complete_checkpoints(folder) if step in score_of]
    score, name = min(kept, default=(math.inf, ""))
    better = f"{name} has {score:.4f}." if score < end else "No checkpoint with a better score was kept."
    return (
        f"best at step {lowest['step']:,} of {scores[-1]['step']:,} ({lowest['bits_per_byte']:.4f} bits per byte; "
        f"{end:.4f} at the end): {cause} {better}"
    )


def describe_speed(speed: SpeedPlan, config: Any) -> str:
    """Return which ways of computing are used, and why not the others."""
    loss = {"chunked": "in chunks", "compiled": "compiled with the head", "whole": "whole logits"}[speed.loss]
    compiled = "each layer" if speed.compile_layers else "none"
    reasons = {name: f" ({reason})" if reason else "" for name, reason in speed.reasons.items()}
    return (
        f"attention {config.attn_implementation}, loss {loss}{reasons['loss']}, compile {compiled}{reasons['compile']}"
    )


def describe_model(config: Any, plan: RunPlan) -> dict[str, Any]:
    """Return the manifest's record of the model."""
    return {
        "preset": getattr(config, "preset", None),
        "base_model": config.model_name_or_path,
        "base_is_local": is_local(config.model_name_or_path),
        "num_parameters": count_parameters(plan.model_config),
        "num_hidden_layers": plan.model_config.num_hidden_layers,
        "hidden_size": plan.model_config.hidden_size,
        "vocab_size": plan.model_config.vocab_size,
        "context": plan.model_config.max_position_embeddings,
    }


def describe_data(config: Any, plan: PretrainPlan) -> dict[str, Any]:
    """Return the manifest's record of the packed rows and where they come from."""
    manifest = plan.packed.manifest
    return {
        "packed": str(config.packed),
        "inputs": manifest["plan"]["inputs"],
        "hub_datasets": hub_datasets(manifest["config"]["inputs"]),
        "tokenizer_sha256": manifest["tokenizer_sha256"],
        "packed_sha256": manifest["hashes"]["train.npy"],
        "sources": manifest["sources"],
        "validation_sources": manifest["validation_sources"],
        "train_tokens": manifest["train_tokens"],
        "validation_documents": len(plan.packed.documents),
        "same_document": bool(manifest.get("same_document")),  # held out is the end of the only one
    }


def describe_time(seconds: dict[str, float]) -> str:
    """Return the parts of the time of a start as percentages, the largest first."""
    whole = sum(seconds.values())
    parts = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * spent / whole:.2f} %" for name, spent in parts) + f" of {whole:,.0f} s"


def _speeds_of_steps(train: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and median of the speed of the steps, and their mean MFU; None where it is not known throughout."""
    speeds = [record["tokens_per_second"] for record in train]
    mean, known = mean_step_speed(train), bool(train) and all(record["mfu"] is not None for record in train)
    return {
        "steps_tokens_per_second": mean,
        "median_tokens_per_second": statistics.median(speeds) if speeds else None,
        # MFU is the speed times a constant.
        "mfu": train[-1]["mfu"] / train[-1]["tokens_per_second"] * mean if known and mean else None,
    }


def describe_training(
    trainer: Any, config: Any, plan: RunPlan, records: list[dict[str, Any]], seconds: float, rows: int
) -> dict[str, Any]:
    """Return the manifest's record of a run over so many rows of data.

    Of the speeds, `tokens_per_second` is the run's, by its tokens and all of its seconds; the others are of its steps.
    """
    import torch.distributed as dist

    train = [record for record in records if "loss" in record]
    energy = None
    with beside_the_model("reading the energy of all starts"):
        energy = read_emissions(plan.folder / EMISSIONS_NAME)
    tokens_per_step = config.rows_per_step * config.tokens_per_row
    tokens = trainer.state.global_step * tokens_per_step
    seconds = energy.duration_seconds if energy else seconds
    return {
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "tokens_per_step": tokens_per_step,
        "epochs": trainer.state.global_step * config.rows_per_step / rows,
        "seconds": seconds,  # of all starts, repeated steps included
        "seconds_by_part_of_last_start": {name: round(spent, 3) for name, spent in trainer.clock.seconds.items()},
        "tokens_per_second": tokens / seconds if seconds > 0 else None,  # evaluations and saves included
        **_speeds_of_steps(train),
        "mfu_convention": MFU_CONVENTION,
        "first_loss": train[0]["loss"] if train else None,
        "last_loss": train[-1]["loss"] if train else None,
        "lowest_held_out": lowest_held_out(records),
        "world_size": config.world_size,
        "backend": dist.get_backend() if dist.is_available() and dist.is_initialized() else "none",
        "zero_stage": live_zero_stage(trainer),
        "per_device_train_batch_size": config.per_device_train_batch_size,
        "micro_batch_reason": config.micro_batch_reason,
        "precision": config.precision,
        "precision_reason": config.precision_reason,
        "hardware": device_name(),
        "peak_memory_gb": peak_memory_gb(),
        "peak_gpu_memory_gb": peak_gpu_memory_gb(),
    }
