"""What is checked before a tuning starts, and the preparation of its conversations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..arguments import build
from ..checks import ensure
from ..data.conversations import ConversationsConfig, conversations_manifest, prepare_conversations
from ..data.examples import print_left_out
from ..grid import GRID_KEYS
from ..manifest import sha256_json
from ..meter import check_energy
from ..presets import count_parameters
from ..tokenizer import tokenizer_fingerprint
from ..training.batch import derive_batch
from ..training.checkpoints import identity_defaults, run_identity
from ..training.plan import RunPlan, check_before_data, check_space, run_state
from .base import Base, check_fits, load_base
from .config import SftConfig, SftConfigBeforeData, conversations_config_values

_IDENTITY = (
    "model_name_or_path model_revision tokens_per_step learning_rate lr_scheduler_type warmup_steps weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon max_grad_norm optim seed packs lora_r lora_alpha lora_dropout lora_targets "
    "use_dora"
)
_USUAL_CONTEXT = 2048  # tokens, for a model that states none


@dataclass(frozen=True)
class SftPlan(RunPlan):
    """What was checked before instruction tuning starts."""

    base: Base
    conversations: Path
    manifest: dict[str, Any]  # of the conversations


def plan_sft(config: SftConfig) -> SftPlan:
    """Check a config against its files and its run folder; writes nothing.

    Raises:
        InputError: base model and conversations do not belong together, conversations longer than the context, an
            unknown country, a folder that holds another run, or a full disk.
    """
    check_energy(config)
    base = load_base("model_name_or_path", str(config.model_name_or_path), config.model_revision)
    manifest = conversations_manifest(str(config.conversations))
    fingerprint = check_tokens_of(base, manifest, f"conversations={config.conversations}", "ttl conversations")
    assert config.context is not None
    check_fits(base, config.context, "context")
    folder = Path(str(config.output_dir))
    hashes = {"conversations_sha256": manifest["hashes"]["train.parquet"], "tokenizer_sha256": fingerprint}
    # A batch that nobody gave follows the ranks; earlier versions did not record it.
    batch = {"rows_per_step": str(config.rows_per_step)}
    identity = run_identity(config, _IDENTITY.split(), hashes | batch)
    state = run_state(folder, identity, config.max_steps, identity_defaults(type(config)) | batch)
    model_config: Any = base.config
    check_space(config, folder, state, count_parameters(model_config))
    return SftPlan(
        folder, state, base.tokenizer, model_config, identity, base, Path(str(config.conversations)), manifest
    )


def check_tokens_of(base: Base, manifest: dict[str, Any], what: str, verb: str) -> str:
    """Check that prepared tokens are by the base model's tokenizer and chat template; return the tokenizer's hash.

    Raises:
        InputError: they are by another.
    """
    fingerprint = tokenizer_fingerprint(base.tokenizer)
    found = manifest["plan"]
    ensure(
        found["tokenizer_sha256"] == fingerprint,
        f"{what}: was made with another tokenizer than that of model_name_or_path={base.name}. Prepare it again with "
        f"`{verb} --model_name_or_path {base.name}`.",
    )
    ensure(
        found["chat_template_sha256"] == sha256_json(base.tokenizer.chat_template),
        f"{what}: was made with another chat template than that of model_name_or_path={base.name}. Prepare it again "
        f"with `{verb} --model_name_or_path {base.name}`.",
    )
    return fingerprint


def prepare(config: ConversationsConfig) -> Path:
    """Write the tokens of conversations by a model's tokenizer and return their folder (`ttl conversations`).

    Raises:
        InputError: no such model, a context longer than the model's, or see `prepare_conversations`.
    """
    ensure(config.model_name_or_path, "model_name_or_path: missing. Give the model to be tuned: a folder or a Hub id.")
    base = load_base("model_name_or_path", config.model_name_or_path, config.model_revision)
    check_fits(base, config.context, "context")
    return prepare_conversations(config, base.tokenizer)


def prepare_inputs(values: dict[str, Any], num_processes: int = 1) -> dict[str, Any]:
    """Prepare the `inputs` of a tuning's config in its run folder, and return the config that reads the result.

    Values without `inputs` come back as they are. What can be refused without the conversations is refused first, so
    that a refusal leaves nothing behind.

    Raises:
        InputError: `inputs` beside `conversations`, no output folder, a value that `SftConfig` refuses, or see
            `prepare`.
    """
    if not values.get("inputs"):
        return values
    ensure(not values.get("conversations"), "conversations, inputs: give one of the two.")
    ensure(values.get("output_dir"), "output_dir: missing. Give the folder of the run.")
    ensure(values.get("model_name_or_path"), "model_name_or_path: missing. Give the base model: a folder or a Hub id.")
    chosen = conversations_config_values(values)
    base = load_base("model_name_or_path", values["model_name_or_path"], values.get("model_revision"))
    if chosen.get("context") is None:
        longest = getattr(base.config, "max_position_embeddings", None) or _USUAL_CONTEXT
        chosen["context"] = min(int(longest), _USUAL_CONTEXT)
    check_fits(base, chosen["context"], "context")
    early = build(SftConfigBeforeData, {**values, "context": chosen["context"], "use_cpu": True})
    _check_batch(early, values, num_processes)
    model_config: Any = base.config
    check_before_data(early, values, _IDENTITY.split(), count_parameters(model_config))
    folder = prepare(
        build(ConversationsConfig, {**chosen, "output_dir": str(Path(values["output_dir"]) / "conversations")})
    )
    print_summary(folder)
    only_for_preparing = set(chosen) - {"model_name_or_path", "model_revision"} - GRID_KEYS
    kept = {name: value for name, value in values.items() if name not in only_for_preparing}
    return {**kept, "conversations": str(folder)}


def print_summary(folder: Path) -> None:
    """Print what a folder of conversations holds and what was left out."""
    manifest = conversations_manifest(folder)
    for split in ("train", "validation"):
        part = manifest[split]
        print(
            f"{split:10} {part['conversations']:,} conversations, {part['tokens']:,} tokens, {part['answer_tokens']:,} "
            f"of them learnt; median {part['median_tokens']}, longest {part['longest_tokens']}"
        )
    print_left_out(manifest)


def check_before_launch(values: dict[str, Any], num_processes: int) -> str:
    """Check a config for a number of ranks without starting any; return the run folder's state.

    Raises:
        InputError: see `SftConfig` and `plan_sft`.
    """
    config = build(SftConfig, {**values, "use_cpu": True})
    _check_batch(config, values, num_processes)
    return plan_sft(config).state


def _check_batch(config: SftConfig, values: dict[str, Any], num_processes: int) -> None:
    """Check that the ranks can share a batch that the user gave; another is derived for the ranks there are.

    Raises:
        InputError: see `derive_batch`.
    """
    if values.get("tokens_per_step"):
        tokens = config.rows_per_step * config.tokens_per_row
        derive_batch(tokens, config.tokens_per_row, values.get("per_device_train_batch_size"), num_processes)
