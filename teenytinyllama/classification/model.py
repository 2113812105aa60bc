"""The model that is fine-tuned: its tokenizer with a padding token of its own, and its weights under a new head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..manifest import sha256_json
from ..published import load_classifier, load_config, load_tokenizer, resize_embeddings, weights_identity

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PAD_TOKEN = "<pad>"


@dataclass(frozen=True)
class Base:
    """A model before its weights are read.

    Attributes:
        name: folder or repository.
        revision: branch or commit, or None.
        tokenizer: with a padding token that no row can hold.
        config: the model's, with the labels.
        is_encoder: whether it reads in both directions (BERT and its kin) and its tokenizer joins pairs itself.
        context: most tokens of a row; None: no limit is known.
        random_init: whether the weights are drawn instead of read.
        identity: tells the weights (or, drawn, their shape) from others.
    """

    name: str
    revision: str | None
    tokenizer: "PreTrainedTokenizerBase"
    config: "PreTrainedConfig"
    is_encoder: bool
    context: int | None
    random_init: bool
    identity: str


def load_base(name: str, revision: str | None, labels: tuple[str, ...], random_init: bool) -> Base:
    """Return the config and tokenizer of a model that is to classify.

    Raises:
        InputError: no such model, one that cannot classify texts, without tokenizer, or without readable weights.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = load_config("model_name_or_path", name, revision, classifier=True)
    tokenizer = load_tokenizer("model_name_or_path", name, revision)
    shape = sha256_json({key: str(value) for key, value in config.to_dict().items() if not key.startswith("_")})
    identity = f"random {shape}" if random_init else weights_identity(name, revision)
    give_pad_token(tokenizer)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    config.use_cache = False
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Base(name, revision, tokenizer, config, is_encoder, _context(config, tokenizer), random_init, identity)


def give_pad_token(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make sure, in place, that padding is a token of its own, on the right.

    A decoder classifies at the last token that is no padding. If padding is the end token, as many recipes set it, the
    end of every row counts as padding and the model answers one token too early; if it is the unknown token, rows that
    end with an unknown word do so.
    """
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id} - {None}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in others:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    tokenizer.padding_side = "right"


def _context(config: Any, tokenizer: Any) -> int | None:
    limits = [getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)]
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "roberta-prelayernorm"):
        limits = [limit and limit - config.pad_token_id - 1 for limit in limits]  # positions begin behind padding
    if tokenizer.model_max_length < 1_000_000:  # else the library's way to say that it does not know
        limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if limit]
    return min(known) if known else None


def build_classifier(base: Base, seed: int) -> "PreTrainedModel":
    """Return the model with a new head, and with padding where the tokenizer has it.

    Args:
        base: see `load_base`.
        seed: of all weights that are drawn.
    """
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification, set_seed
    from transformers.utils import logging as transformers_logging

    config: Any = copy.deepcopy(base.config)
    pad = config.pad_token_id
    if pad is not None and not 0 <= pad < config.vocab_size:  # -1 in some Llamas: no row of the embeddings
        config.pad_token_id = None
    set_seed(seed)
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it warns that the head is new, which is what is wanted
    transformers_logging.disable_progress_bar()
    try:
        if base.random_init:
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32, trust_remote_code=False)
        else:
            model, _ = load_classifier(base.name, base.revision, config)
        resize_embeddings(model, base.tokenizer)
    finally:
        transformers_logging.set_verbosity(before)
    # The model looks for the last token that differs from this one: another id than the rows are padded with, and it
    # would silently read the padding.
    model.config.pad_token_id = base.tokenizer.pad_token_id
    return model
