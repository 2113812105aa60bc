"""The base model of a tuning: its tokenizer made ready for conversations, and its weights for the new tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..adapters import base_fingerprint
from ..chat.template import ConversationEncoder, install_chat_template
from ..checks import InputError, ensure
from ..model_files import is_local
from ..published import ensure_llama_shape, from_pretrained, load_config, load_tokenizer, resize_embeddings
from ..tokenizer import END_INSTRUCTION_TOKEN, INSTRUCTION_TOKEN

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
