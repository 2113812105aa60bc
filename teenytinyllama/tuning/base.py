"""The base model of a tuning: its tokenizer made ready for conversations, and its weights for the new tokens.

What is checked before a tuning starts, and the preparation of its conversations.

Whether the loss makes sense at all, asked before any training: a tuning with wrong labels looks like any other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..arguments import build
from ..chat.template import ConversationEncoder, install_chat_template
from ..checks import InputError, RunFailedError, ensure
from ..data.conversations import ConversationsConfig, conversations_manifest, prepare_conversations
from ..data.instructions import print_left_out
from ..energy.emissions import GRID_KEYS
from ..energy.meter import check_energy
from ..model_files import is_local
from ..models import (
    base_fingerprint,
    ensure_llama_shape,
    from_pretrained,
    load_config,
    load_tokenizer,
    resize_embeddings,
)
from ..presets import count_parameters
from ..stage_folder import sha256_json
from ..tokenizer.encode import tokenizer_fingerprint
from ..tokenizer.files import END_INSTRUCTION_TOKEN, INSTRUCTION_TOKEN
from ..training.run_plan import Resolved, RunPlan, check_before_data, check_space, run_state
from ..training.saving import identity_defaults, run_identity
from ..training.settings import planned_for
from .config import SftConfig, SftConfigBeforeData, conversations_config_values

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Base:
    """A base model before its weights are read.

    Attributes:
        name: folder or repository.
        revision: branch or commit, or None.
        tokenizer: with a chat template.
        config: the model's.
        new_tokens: ids that the chat template needs and the model has never seen.
        had_template: whether the model came with a chat template.
    """

    name: str
    revision: str | None
    tokenizer: "PreTrainedTokenizerBase"
    config: "PreTrainedConfig"
    new_tokens: list[int]
    had_template: bool


def load_base(key: str, name: str, revision: str | None) -> Base:
    """Return the config and tokenizer of a base model, the tokenizer with a chat template.

    A chat template that is there is kept. Without one, ours is installed; a tokenizer that lacks its two tokens, that
    is one not made by `ttl tokenizer`, gets them.

    Raises:
        InputError: no such model, or a tokenizer without a start or an end token.
    """
    tokenizer = load_tokenizer(key, name, revision)
    config = load_config(key, name, revision)
    ensure_llama_shape(key, name, config)
    new_tokens: list[int] = []
    had_template = bool(tokenizer.chat_template)
    if not tokenizer.chat_template:
        known = tokenizer.get_vocab()
        missing = [token for token in (INSTRUCTION_TOKEN, END_INSTRUCTION_TOKEN) if token not in known]
        if missing:
            tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
            ids = tokenizer.get_vocab()
            new_tokens = [ids[token] for token in missing]
        install_chat_template(tokenizer)
    return Base(name, revision, tokenizer, config, new_tokens, had_template)


def build_model(base: Base, seed: int, attention: str, dtype: Any) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """Return the base model with weights for all tokens, told where answers end, and the record of it for adapters.

    Args:
        base: see `load_base`.
        seed: of the new embeddings.
        attention: transformers' name of the attention.
        dtype: of the weights.
    """
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a bar per shard would break up ours
    model, _ = from_pretrained(base.name, base.revision)
    fingerprint = base_fingerprint(model)
    model = model.to(dtype)
    set_seed(seed)  # every rank and every start draws the same embeddings
    resize_embeddings(model, base.tokenizer)
    model.set_attn_implementation(attention)
    ends = end_tokens_of_answers(base.tokenizer)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.config.eos_token_id = model.generation_config.eos_token_id
    if base.tokenizer.pad_token_id is not None:
        model.generation_config.pad_token_id = base.tokenizer.pad_token_id
    record = {
        "base_model": base.name,
        "base_is_local": is_local(base.name),
        "revision": base.revision,
        "fingerprint": fingerprint,
        "eos_token_id": model.generation_config.eos_token_id,
    }
    return model, record


def end_tokens_of_answers(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that answers end with: what the chat template writes after one, and the tokenizer's end token.

    Raises:
        InputError: neither says how an answer ends.
    """
    end = ConversationEncoder(tokenizer).end_of_answer()
    ends = set() if end is None else {end}
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    ensure(ends, "model_name_or_path: its tokenizer has no end token, so answers could never end. Set eos_token.")
    return sorted(ends)


def check_fits(base: Base, context: int, key: str) -> None:
    """Check that conversations of a context fit into the model.

    Raises:
        InputError: they are longer than the model's context.
    """
    longest = getattr(base.config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise InputError(
            f"{key}={context}: longer than the context of model_name_or_path={base.name}, which is {longest} tokens. "
            f"Use {longest} or less."
        )


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


def plan_sft(config: SftConfig, known: Resolved | None = None) -> SftPlan:
    """Return the plan of a tuning, checked against its files and its run folder; writes nothing.

    Args:
        config: the config, with everything derived.
        known: the state and identity of the run; None: they are found and checked here.

    Raises:
        InputError: base model and conversations do not belong together, conversations longer than the context, an
            unknown country, a folder that holds another run, or a full disk.
    """
    base = load_base("model_name_or_path", str(config.model_name_or_path), config.model_revision)
    folder, conversations = Path(str(config.output_dir)), Path(str(config.conversations))
    manifest = conversations_manifest(str(config.conversations))
    model_config: Any = base.config
    if known is not None:
        state, identity = known.state, known.identity
        return SftPlan(folder, state, base.tokenizer, model_config, identity, base, conversations, manifest)
    check_energy(config)
    fingerprint = check_tokens_of(base, manifest, f"conversations={config.conversations}", "ttl conversations")
    assert config.context is not None
    check_fits(base, config.context, "context")
    hashes = {"conversations_sha256": manifest["hashes"]["train.parquet"], "tokenizer_sha256": fingerprint}
    # A batch that nobody gave follows the ranks; earlier versions did not record it.
    batch = {"rows_per_step": str(config.rows_per_step)}
    identity = run_identity(config, _IDENTITY.split(), hashes | batch)
    state = run_state(folder, identity, config.max_steps, identity_defaults(type(config)) | batch)
    check_space(config, folder, state, count_parameters(model_config))
    return SftPlan(folder, state, base.tokenizer, model_config, identity, base, conversations, manifest)


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
    with planned_for(num_processes):
        early = build(SftConfigBeforeData, {**values, "context": chosen["context"], "use_cpu": True})
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


class SenseCallback(TrainerCallback):
    """Stop at once when the base model predicts held-out answers no better than their tokens' frequencies do.

    A public Portuguese model was tuned at a loss of 8.7 throughout without anybody noticing. A base model that has
    learnt Portuguese, a chat template and labels that belong together give far less than the frequencies' entropy.
    """

    def __init__(self, evaluation: Any, frequency_nats: float, refuse: bool) -> None:
        """Compare the first evaluation with `frequency_nats`; warn instead unless `refuse`."""
        self.evaluation, self.frequency_nats, self.refuse = evaluation, frequency_nats, refuse
        self.first: float | None = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the first evaluation, and at whether later ones are below it.

        Raises:
            RunFailedError: the loss is that of a model that knows nothing.
        """
        last = self.evaluation.last
        if last is None:
            return
        found = last["nats_per_token"]
        if self.first is None:
            self.first = found
            if state.global_step == 0 and found >= self.frequency_nats:
                self._complain(found)
        elif found > self.first and state.is_world_process_zero:
            print(
                f"warning: answers cost {found:.3f} nats per token, more than the {self.first:.3f} at first. Lower "
                "learning_rate or num_train_epochs.",
                flush=True,
            )

    def _complain(self, found: float) -> None:
        text = (
            f"before tuning, held-out answers cost {found:.2f} nats per token; guessing by how frequent each token is "
            f"would cost {self.frequency_nats:.2f}. The base model has learnt next to nothing, or its weights, its "
            "tokenizer and the chat template do not belong together."
        )
        if self.refuse:
            raise RunFailedError(f"{text} Choose another model_name_or_path, or set check_first_loss: false to go on.")
        print(f"warning: {text}", flush=True)
