"""The model that is fine-tuned: its tokenizer with a padding token of its own, and its weights under a new head.

Rows of a task as tokens: how texts and pairs are framed, and how many had to be cut.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import ensure
from ..models import load_classifier, load_config, load_tokenizer, resize_embeddings, weights_identity
from ..stage_folder import sha256_json
from ..tokenizer.encode import encode_texts
from .labelled_rows import Example

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


LEAST_TEXT_TOKENS = 8


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as the Trainer takes them.

    Attributes:
        rows: `input_ids`, `attention_mask`, `labels` and, for an encoder that knows two segments, `token_type_ids`.
        truncated: how many rows were cut.
        longest: tokens of the longest row.
    """

    rows: list[dict[str, Any]]
    truncated: int
    longest: int


@dataclass(frozen=True)
class Framing:
    """What stands around the texts of a row.

    Attributes:
        has_pairs: whether rows are pairs of texts.
        start: ids in front of the first text.
        separator: ids between the texts of a pair.
        end: ids behind the last text.
        by_tokenizer: whether the tokenizer frames the row by its own rule, as those of encoders do; then the ids above
            are empty.
        num_special: tokens of a row that are no text.
    """

    has_pairs: bool
    start: list[int]
    separator: list[int]
    end: list[int]
    by_tokenizer: bool
    num_special: int


def frame(base: Base, has_pairs: bool, end_token: bool | None = None) -> Framing:
    """Return how rows are framed.

    Of a decoder as in the paper: `<s> text` and `<s> first <s> second </s>`. The head reads the last token: without an
    end token that is where the model would go on with the text; behind one, where it has only ever seen the next
    document begin.

    Args:
        base: the model.
        has_pairs: whether rows are pairs.
        end_token: whether a decoder's rows end with the end token; None for the paper's way.

    Raises:
        InputError: a decoder whose tokenizer has neither a start nor an end token.
    """
    if base.is_encoder:
        special = int(base.tokenizer.num_special_tokens_to_add(pair=has_pairs))
        return Framing(has_pairs, [], [], [], True, special)
    start, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    between = start if start is not None else end
    ensure(
        between is not None,
        f"model_name_or_path={base.name}: its tokenizer has neither a start nor an end token. Set bos_token or "
        "eos_token in its tokenizer_config.json.",
    )
    assert between is not None
    has_end = has_pairs if end_token is None else end_token
    separator, last = [between] if has_pairs else [], [end] if has_end and end is not None else []
    # Always something in front: a text without any token needs one that the head can read.
    return Framing(has_pairs, [between], separator, last, False, 1 + len(separator) + len(last))


def describe_framing(base: Base, framing: Framing) -> str:
    """Return how a row is put together, as a line for reports."""
    if framing.by_tokenizer:
        return f"{'pairs' if framing.has_pairs else 'texts'} framed by the tokenizer's own rule for encoders"
    start, separator, end = (base.tokenizer.decode(ids) for ids in (framing.start, framing.separator, framing.end))
    inside = f"TEXT {separator} PAIR" if framing.has_pairs else "TEXT"
    return " ".join(f"{start} {inside} {end}".split()) + " (the head reads the last token)"


def choose_length(base: Base, framing: Framing, given: int | None, usual: int | None) -> int:
    """Return how many tokens a row may have.

    Args:
        base: the model.
        framing: of its rows.
        given: by the user.
        usual: the paper's for this task, cut to the model's context.

    Raises:
        InputError: more than the model's context, or so few that nearly no text is left.
    """
    if given is not None and base.context is not None and given > base.context:
        ensure(
            False,
            f"max_length={given}: longer than the context of {base.name}, which is {base.context} tokens. Use "
            f"{base.context} or less.",
        )
    known = [limit for limit in (given or usual, base.context) if limit]
    length = min(known) if known else 1 << 20
    needed = framing.num_special + LEAST_TEXT_TOKENS * (2 if framing.has_pairs else 1)
    ensure(
        length >= needed,
        f"max_length={length}: too few tokens for a row of this task, which needs {needed} at least. "
        + ("Raise it." if given else f"The context of {base.name} is too short: use another model."),
    )
    return length


def encode(base: Base, framing: Framing, examples: list[Example], max_length: int) -> Encoded:
    """Return the tokens of rows; of a pair the longer text is cut first, and what frames the texts is never cut.

    Special tokens typed in a text stay text.
    """
    texts = encode_texts(base.tokenizer, [example.text for example in examples])
    pairs = encode_texts(base.tokenizer, [example.pair for example in examples])
    room = max_length - framing.num_special
    truncated = sum(len(text) + len(pair) > room for text, pair in zip(texts, pairs, strict=True))
    if framing.by_tokenizer:
        rows = _encode_by_tokenizer(base, framing, examples, max_length)
    else:
        cut = [_cut(text, pair, room) for text, pair in zip(texts, pairs, strict=True)]
        ids = [[*framing.start, *text, *framing.separator, *pair, *framing.end] for text, pair in cut]
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    for row, example in zip(rows, examples, strict=True):
        row["labels"] = example.label
    return Encoded(rows, truncated, max(len(row["input_ids"]) for row in rows))


def _encode_by_tokenizer(
    base: Base, framing: Framing, examples: list[Example], max_length: int
) -> list[dict[str, Any]]:
    encoded = base.tokenizer(
        [example.text for example in examples],
        [example.pair for example in examples] if framing.has_pairs else None,
        truncation="longest_first",
        max_length=max_length,
        split_special_tokens=True,
    )
    return [{name: encoded[name][index] for name in encoded} for index in range(len(examples))]


def _cut(text: list[int], pair: list[int], room: int) -> tuple[list[int], list[int]]:
    over = len(text) + len(pair) - room
    if over <= 0:
        return text, pair
    short = min(len(text), len(pair))
    keep = max(room - short, (room + 1) // 2)  # of the longer one
    if len(text) >= len(pair):
        return text[:keep], pair[: room - min(keep, len(text))]
    return text[: room - min(keep, len(pair))], pair[:keep]
