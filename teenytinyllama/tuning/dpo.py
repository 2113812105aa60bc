"""Preference tuning: TRL's DPOTrainer on pairs of answers, in a run folder like pretraining's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from ..arguments import build
from ..checks import ensure
from ..data.instructions import describe_examples, print_left_out
from ..data.preferences import PreferencesConfig, preferences_manifest, prepare_preferences
from ..energy.emissions import GRID_KEYS
from ..energy.meter import check_energy
from ..models import avoid_cudnn_attention
from ..presets import count_parameters
from ..training.report import describe_length, describe_model, describe_training
from ..training.run import NOT_EVALUATED, Run, assemble_run, close_run_folder, execute
from ..training.run_plan import Resolved, RunPlan, check_before_data, check_space, run_state
from ..training.saving import identity_defaults, run_identity
from ..training.settings import planned_for
from .base import Base, build_model, check_fits, check_tokens_of, load_base
from .config import DpoConfig, DpoConfigBeforeData, lora_config, preferences_config_values, save_model
from .rows import HeldOutPairs, PairEvaluation, order_rows
from .sft import TrlTrainer, answer_samples, describe_weights

_IDENTITY = (
    "model_name_or_path model_revision pairs_per_step learning_rate lr_scheduler_type warmup_steps weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim seed beta lora_r lora_alpha lora_dropout lora_targets "
    "use_dora"
)
_USUAL_CONTEXT = 1024
_LOGGED = tuple(f"rewards/{name}" for name in ("margins", "accuracies", "chosen", "rejected"))


@dataclass(frozen=True)
class DpoPlan(RunPlan):
    """What was checked before preference tuning starts."""

    base: Base
    preferences: Path
    manifest: dict[str, Any]  # of the preferences


def plan_dpo(config: DpoConfig, known: Resolved | None = None) -> DpoPlan:
    """Return the plan of a tuning, checked against its files and its run folder; writes nothing.

    Args:
        config: the config, with everything derived.
        known: the state and identity of the run; None: they are found and checked here.

    Raises:
        InputError: model and pairs do not belong together, a base model without a chat template, an unknown country, a
            folder that holds another run, or a full disk.
    """
    base = _chat_model(str(config.model_name_or_path), config.model_revision)
    folder, preferences = Path(str(config.output_dir)), Path(str(config.preferences))
    manifest = preferences_manifest(str(config.preferences))
    model_config: Any = base.config
    if known is not None:
        state, identity = known.state, known.identity
        return DpoPlan(folder, state, base.tokenizer, model_config, identity, base, preferences, manifest)
    check_energy(config)
    fingerprint = check_tokens_of(base, manifest, f"preferences={config.preferences}", "ttl dpo --inputs …")
    assert config.context is not None
    check_fits(base, config.context, "context")
    hashes = {"preferences_sha256": manifest["hashes"]["train.parquet"], "tokenizer_sha256": fingerprint}
    # A batch that nobody gave follows the ranks; earlier versions did not record it.
    batch = {"rows_per_step": str(config.rows_per_step)}
    identity = run_identity(config, _IDENTITY.split(), hashes | batch)
    state = run_state(folder, identity, config.max_steps, identity_defaults(type(config)) | batch)
    check_space(config, folder, state, count_parameters(model_config))
    return DpoPlan(folder, state, base.tokenizer, model_config, identity, base, preferences, manifest)


def _chat_model(name: str, revision: str | None) -> Base:
    base = load_base("model_name_or_path", name, revision)
    ensure(
        base.had_template,
        f"model_name_or_path={name}: is a base model without a chat template. Tune it on instructions first, with "
        "`ttl sft`.",
    )
    return base


def prepare_inputs(values: dict[str, Any], num_processes: int = 1) -> dict[str, Any]:
    """Prepare the `inputs` of a config in its run folder, and return the config that reads the result.

    Values without `inputs` come back as they are. What can be refused without the pairs is refused first, so that a
    refusal leaves nothing behind.

    Raises:
        InputError: `inputs` beside `preferences`, no output folder, no chat model, a value that `DpoConfig` refuses,
            or see `prepare_preferences`.
    """
    if not values.get("inputs"):
        return values
    ensure(not values.get("preferences"), "preferences, inputs: give one of the two.")
    ensure(values.get("output_dir"), "output_dir: missing. Give the folder of the run.")
    ensure(values.get("model_name_or_path"), "model_name_or_path: missing. Give the chat model: a folder or a Hub id.")
    base = _chat_model(values["model_name_or_path"], values.get("model_revision"))
    chosen = preferences_config_values(values)
    longest = getattr(base.config, "max_position_embeddings", None) or _USUAL_CONTEXT
    chosen.setdefault("context", min(int(longest), _USUAL_CONTEXT))
    check_fits(base, chosen["context"], "context")
    with planned_for(num_processes):
        early = build(DpoConfigBeforeData, {**values, "context": chosen["context"], "use_cpu": True})
    model_config: Any = base.config
    check_before_data(early, values, _IDENTITY.split(), count_parameters(model_config))
    output = str(Path(values["output_dir"]) / "preferences")
    folder = prepare_preferences(build(PreferencesConfig, {**chosen, "output_dir": output}), base.tokenizer)
    manifest = preferences_manifest(folder)
    for split in ("train", "validation"):
        part = manifest[split]
        print(f"{split:10} {part['pairs']:,} pairs, {part['tokens']:,} tokens; longest {part['longest_tokens']}")
    print_left_out(manifest)
    only_for_preparing = set(chosen) - {"model_name_or_path", "model_revision"} - GRID_KEYS
    kept = {name: value for name, value in values.items() if name not in only_for_preparing}
    return {**kept, "preferences": str(folder)}


class PreferenceTrainer(TrlTrainer, DPOTrainer):
    """DPOTrainer on tokens that are ready, whose evaluation returns log probabilities of each pair."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Leave the dataset alone: `data.preferences` has made its tokens, safe from typed special tokens."""
        return dataset

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss, (pairs, 4) log probabilities (see `pairs.summarise_pairs`), and something for labels."""
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


def build_run(config: DpoConfig, plan: DpoPlan) -> Run:
    """Return the trainer of a checked plan with its callbacks."""
    import datasets

    avoid_cudnn_attention()
    half = torch.bfloat16 if config.bf16 and config.lora_r else torch.float32

    def load() -> Any:
        return build_model(plan.base, config.seed, config.attn_implementation, half)

    model, record = load()
    # A model of its own: TRL would look for one by the model's name. Adapters are switched off to get the reference.
    reference = None if config.lora_r else load()[0]
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    table = pyarrow.parquet.read_table(plan.preferences / "train.parquet", columns=columns)
    held_out = HeldOutPairs(pyarrow.parquet.read_table(plan.preferences / "validation.parquet").to_pylist())
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
        "tuning": f"{describe_weights(config)}; {train['pairs']:,} pairs, beta {config.beta}",
    }
    return assemble_run(
        trainer,
        config,
        plan,
        evaluation,
        samples,
        lines,
        logged=_LOGGED,
        knows_flops=False,
        loss_unit="-log sigmoid of the margin",
    )


def dpo(config: DpoConfig, given: Resolved | dict[str, Any]) -> Path:
    """Run or resume a preference tuning in this process (one of its ranks) and return its folder.

    Args:
        config: the config, with everything derived.
        given: the keys as the user gave them, for `config.yaml`; or all that was resolved before (`read_run`).

    Raises:
        InputError: see `plan_dpo`; also a folder in which another process trains.
        StoppedResumable: a signal stopped it after a complete checkpoint.
        RunFailedError: the loss is not finite, or memory ran out.
    """
    known = given if isinstance(given, Resolved) else None
    return execute(config, plan_dpo(config, known), given, build_run, _finish)


def _finish(run: Run, config: DpoConfig, plan: DpoPlan, seconds: float) -> None:
    """Score the held-out pairs, save the model, and write the manifest last."""
    trainer, evaluation = run.trainer, run.evaluation
    if config.eval_strategy != "no" and evaluation.last_step != trainer.state.global_step:
        trainer.evaluate(metric_key_prefix="final")
    save_model(trainer, plan.folder, config.merge)

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        initial = next((record for record in records if "preference_loss" in record and record["step"] == 0), None)
        return {
            "model": describe_model(config, plan),
            "data": describe_data(config, plan),
            "training": describe_training(trainer, config, plan, records, seconds, config.num_rows),
            "results": {
                "initial": NOT_EVALUATED,
                "final": NOT_EVALUATED,
                "preferences": {"initial": initial, "final": evaluation.last},
            },
        }

    close_run_folder(run, config, plan, "dpo", describe)


def describe_data(config: DpoConfig, plan: DpoPlan) -> dict[str, Any]:
    """Return the manifest's record of the pairs and where they come from."""
    return {
        "preferences": str(config.preferences),
        **describe_examples(plan.manifest),
        "validation_documents": plan.manifest["validation"]["pairs"],
    }
