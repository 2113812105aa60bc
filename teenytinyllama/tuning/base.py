"""Before a tuning: the base model and its new tokens, the adapters, and all that is checked or prepared first."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import build
from ..chat.template import ConversationEncoder, install_chat_template
from ..checkpointing.saving import identity_defaults, run_identity
from ..checks import ensure
from ..data.conversations import (
    ConversationsConfig,
    PreferencesConfig,
    conversations_manifest,
    preferences_manifest,
    prepare_conversations,
    prepare_preferences,
)
from ..data.instructions import print_left_out
from ..energy.emissions import GRID_KEYS
from ..energy.meter import check_energy
from ..model_files import is_local
from ..models import (
    base_fingerprint,
    ensure_llama_shape,
    finish_saved,
    from_pretrained,
    load_config,
    load_tokenizer,
    resize_embeddings,
)
from ..stage_folder import sha256_json
from ..tokenizer.encode import tokenizer_fingerprint
from ..tokenizer.files import END_INSTRUCTION_TOKEN, INSTRUCTION_TOKEN
from ..training.run_plan import Resolved, RunPlan, check_before_data, check_space, run_state
from ..training.settings import planned_for
from .config import DpoConfig, DpoConfigBeforeData, LoraSettings, SftConfig, SftConfigBeforeData

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


MERGED_ADAPTER_FOLDER = "adapter"


@dataclass(frozen=True)
class BaseModel:
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


def load_base(name: str, revision: str | None = None) -> BaseModel:
    """Return the config and tokenizer of a base model, the tokenizer with a chat template.

    A chat template that is there is kept. Without one, ours is installed; a tokenizer that lacks its two tokens, that
    is one not made by `ttl tokenizer`, gets them.

    Raises:
        InputError: no such model, or a tokenizer without a start or an end token.
    """
    key = "model_name_or_path"
    tokenizer = load_tokenizer(key, name, revision)
    config = load_config(key, name, revision)
    ensure_llama_shape(key, name, config)
    new_tokens: list[int] = []
    had_template = bool(tokenizer.chat_template)
    if not had_template:
        missing = [token for token in (INSTRUCTION_TOKEN, END_INSTRUCTION_TOKEN) if token not in tokenizer.get_vocab()]
        if missing:
            tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
            ids = tokenizer.get_vocab()
            new_tokens = [ids[token] for token in missing]
        install_chat_template(tokenizer)
    return BaseModel(name, revision, tokenizer, config, new_tokens, had_template)


def build_model(base: BaseModel, seed: int, attention: str, dtype: Any) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """Return the base model, and the record of it that is saved beside adapters.

    It has weights for all tokens, and its generation config has the tokens that end an answer.

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


def lora_config(settings: LoraSettings, new_tokens: list[int]) -> "LoraConfig | None":
    """Return PEFT's config of the adapters, or None when all weights are tuned.

    Args:
        settings: the tuning's config.
        new_tokens: ids that were added to the vocabulary: their embeddings are trained, the others stay. The head's
            rows are not, because these tokens stand in questions only, and a model is never asked to write them.
    """
    if not settings.lora_r:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha or 2 * settings.lora_r,  # type: ignore[arg-type]  # a float works
        lora_dropout=settings.lora_dropout,
        target_modules=settings.lora_targets or "all-linear",
        use_dora=settings.use_dora,
        trainable_token_indices={"embed_tokens": new_tokens} if new_tokens else None,
    )


def save_model(trainer: Any, folder: Path, merge: bool) -> None:
    """Save the tuned model and its tokenizer to a run's folder; call it on every rank.

    Args:
        trainer: after training.
        folder: of the run.
        merge: add a LoRA adapter into the model, and keep it in `adapter/` as well.
    """
    from peft import PeftModel

    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, PeftModel) or not merge:
        trainer.save_model(str(folder))
        return
    adapter = folder / MERGED_ADAPTER_FOLDER
    trainer.save_model(str(adapter))
    if not trainer.is_world_process_zero():
        return
    (adapter / "training_args.bin").unlink(missing_ok=True)  # a pickle
    merged: Any = model.merge_and_unload()
    merged.save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
    finish_saved(folder)


# What is checked and prepared before a tuning starts.


@dataclass(frozen=True)
class TuningPlan(RunPlan):
    """What was checked before a tuning starts."""

    base: BaseModel
    data: Path  # the folder of prepared rows
    manifest: dict[str, Any]  # of that folder


@dataclass(frozen=True)
class TuningKind:
    """What instruction and preference tuning differ in before they train.

    Attributes:
        config: class of the config.
        early_config: class of the config while the rows are still `inputs`.
        data_config: class of the config of the preparation.
        prepare: writes prepared rows by a config of that class and a tokenizer, and returns their folder.
        read_manifest: returns the manifest of such a folder.
        describe_part: returns what the manifest says of a split, as a line.
        usual_context: most tokens of a row, unless the user or the model asks for fewer.
        remake: the command that prepares the rows again.
    """

    config: type[Any]
    early_config: type[Any]
    data_config: type[Any]
    prepare: Callable[[Any, Any], Path]
    read_manifest: Callable[[str | Path], dict[str, Any]]
    describe_part: Callable[[dict[str, Any]], str]
    usual_context: int
    remake: str

    def load_base(self, name: str, revision: str | None) -> BaseModel:
        """Return the base model, see `load_base`.

        Raises:
            InputError: see `load_base`; also, where a chat model is tuned, one without a chat template.
        """
        base = load_base(name, revision)
        ensure(
            base.had_template or self.config.MODEL_KIND != "chat model",
            f"model_name_or_path={name}: is a base model without a chat template. Tune it on instructions first, with "
            "`ttl sft`.",
        )
        return base

    def plan(self, config: Any, known: Resolved | None = None) -> TuningPlan:
        """Return the plan of a tuning, checked against its files and its run folder; writes nothing.

        Args:
            config: the config, with everything derived.
            known: the state and identity of the run; None: they are found and checked here.

        Raises:
            InputError: model and rows do not belong together, rows longer than the context, an unknown country, a
                folder that holds another run, or a full disk.
        """
        base = self.load_base(str(config.model_name_or_path), config.model_revision)
        folder, key = Path(str(config.output_dir)), config.DATA_KEY
        data = Path(str(getattr(config, key)))
        manifest = self.read_manifest(data)
        model_config: Any = base.config
        if known is not None:
            return TuningPlan(folder, known.state, base.tokenizer, model_config, known.identity, base, data, manifest)
        check_energy(config)
        fingerprint = _check_tokens_of(base, manifest, f"{key}={data}", self.remake)
        check_fits(base, config.context)
        hashes = {f"{key}_sha256": manifest["hashes"]["train.parquet"], "tokenizer_sha256": fingerprint}
        # A batch that nobody gave follows the ranks; earlier versions did not record it.
        batch = {"rows_per_step": str(config.rows_per_step)}
        identity = run_identity(config, config.identity_keys(), hashes | batch)
        state = run_state(folder, identity, config.max_steps, identity_defaults(type(config)) | batch)
        check_space(config, folder, state, model_config)
        return TuningPlan(folder, state, base.tokenizer, model_config, identity, base, data, manifest)

    def prepare_inputs(self, values: dict[str, Any], num_processes: int = 1) -> dict[str, Any]:
        """Prepare the `inputs` of a tuning's config in its run folder, and return the config that reads the result.

        Values without `inputs` come back as they are. What can be refused without the rows is refused first, so that a
        refusal leaves nothing behind.

        Raises:
            InputError: `inputs` beside prepared rows, no output folder, no model, a value that the config refuses, or
                what the preparation refuses.
        """
        if not values.get("inputs"):
            return values
        key, what = self.config.DATA_KEY, self.config.MODEL_KIND
        ensure(not values.get(key), f"{key}, inputs: give one of the two.")
        ensure(values.get("output_dir"), "output_dir: missing. Give the folder of the run.")
        ensure(values.get("model_name_or_path"), f"model_name_or_path: missing. Give the {what}: a folder or a Hub id.")
        names = {item.name for item in fields(self.data_config)} - {"output_dir"}
        chosen = {name: value for name, value in values.items() if name in names and value is not None}
        base = self.load_base(values["model_name_or_path"], values.get("model_revision"))
        longest = getattr(base.config, "max_position_embeddings", None) or self.usual_context
        chosen.setdefault("context", min(int(longest), self.usual_context))
        check_fits(base, chosen["context"])
        with planned_for(num_processes):
            early = build(self.early_config, {**values, "context": chosen["context"], "use_cpu": True})
        model_config: Any = base.config
        check_before_data(early, values, self.config.identity_keys(), model_config)
        output = str(Path(values["output_dir"]) / key)
        folder = self.prepare(build(self.data_config, {**chosen, "output_dir": output}), base.tokenizer)
        self.print_summary(folder)
        only_for_preparing = set(chosen) - {"model_name_or_path", "model_revision"} - GRID_KEYS
        kept = {name: value for name, value in values.items() if name not in only_for_preparing}
        return {**kept, key: str(folder)}

    def print_summary(self, folder: Path) -> None:
        """Print what a folder of prepared rows holds and what was left out."""
        manifest = self.read_manifest(folder)
        for split in ("train", "validation"):
            print(f"{split:10} {self.describe_part(manifest[split])}")
        print_left_out(manifest)


def _conversations_line(part: dict[str, Any]) -> str:
    return (
        f"{part['conversations']:,} conversations, {part['tokens']:,} tokens, {part['answer_tokens']:,} of them "
        f"learnt; median {part['median_tokens']}, longest {part['longest_tokens']}"
    )


def _pairs_line(part: dict[str, Any]) -> str:
    return f"{part['pairs']:,} pairs, {part['tokens']:,} tokens; longest {part['longest_tokens']}"


SFT = TuningKind(SftConfig, SftConfigBeforeData, ConversationsConfig, prepare_conversations, conversations_manifest,
                 _conversations_line, 2048, "ttl conversations")  # fmt: skip
DPO = TuningKind(DpoConfig, DpoConfigBeforeData, PreferencesConfig, prepare_preferences, preferences_manifest,
                 _pairs_line, 1024, "ttl dpo --inputs …")  # fmt: skip


def prepare(config: ConversationsConfig) -> Path:
    """Write the tokens of conversations by a model's tokenizer and return their folder (`ttl conversations`).

    Raises:
        InputError: no such model, a context longer than the model's, or see `prepare_conversations`.
    """
    ensure(config.model_name_or_path, "model_name_or_path: missing. Give the model to be tuned: a folder or a Hub id.")
    base = load_base(config.model_name_or_path, config.model_revision)
    check_fits(base, config.context)
    folder = prepare_conversations(config, base.tokenizer)
    SFT.print_summary(folder)
    return folder


def check_fits(base: BaseModel, context: int) -> None:
    """Check that rows of a context fit into the model.

    Raises:
        InputError: they are longer than the model's context.
    """
    longest = getattr(base.config, "max_position_embeddings", None)
    ensure(
        longest is None or context <= longest,
        f"context={context}: longer than the context of model_name_or_path={base.name}, which is {longest} tokens. Use "
        f"{longest} or less.",
    )


def _check_tokens_of(base: BaseModel, manifest: dict[str, Any], what: str, remake: str) -> str:
    """Check that prepared tokens are by the base model's tokenizer and chat template; return the tokenizer's hash.

    Raises:
        InputError: they are by another.
    """
    fingerprint = tokenizer_fingerprint(base.tokenizer)
    template = sha256_json(base.tokenizer.chat_template)
    for name, own in (("tokenizer", fingerprint), ("chat template", template)):
        ensure(
            manifest["plan"][f"{name.replace(' ', '_')}_sha256"] == own,
            f"{what}: was made with another {name} than that of model_name_or_path={base.name}. Prepare it again with "
            f"`{remake} --model_name_or_path {base.name}`.",
        )
    return fingerprint
