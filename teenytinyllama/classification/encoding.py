"""Rows of a task as tokens: how texts and pairs are framed, and how many had to be cut."""

from dataclasses import dataclass
from typing import Any

from ..checks import ensure
from ..tokenizer import encode_texts
from .model import Base
from .rows import Example

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


def describe_framing(base: Base, has_pairs: bool) -> str:
    """Return how a row is put together, as a line for reports."""
    if base.is_encoder:
        return f"{'pairs' if has_pairs else 'texts'} framed by the tokenizer's own rule for encoders"
    start, separator, end = (base.tokenizer.decode(ids) if ids else "" for ids in _frame(base))
    inside = f"TEXT {separator} PAIR" if has_pairs else "TEXT"
    return " ".join(f"{start} {inside} {end}".split()) + " (the head reads the last token)"


def choose_length(base: Base, given: int | None, usual: int | None, has_pairs: bool) -> int:
    """Return how many tokens a row may have.

    Args:
        base: the model.
        given: by the user.
        usual: the paper's for this task, cut to the model's context.
        has_pairs: whether rows are pairs.

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
    needed = _num_special(base, has_pairs) + LEAST_TEXT_TOKENS * (2 if has_pairs else 1)
    ensure(
        length >= needed,
        f"max_length={length}: too few tokens for a row of this task, which needs {needed} at least. "
        + ("Raise it." if given else f"The context of {base.name} is too short: use another model."),
    )
    return length


def encode(base: Base, examples: list[Example], max_length: int) -> Encoded:
    """Return the tokens of rows; of a pair the longer text is cut first, and what frames the texts is never cut.

    Special tokens typed in a text stay text.
    """
    has_pairs = any(example.pair for example in examples)
    texts = encode_texts(base.tokenizer, [example.text for example in examples])
    pairs = encode_texts(base.tokenizer, [example.pair for example in examples]) if has_pairs else [[] for _ in texts]
    room = max_length - _num_special(base, has_pairs)
    truncated = sum(len(text) + len(pair) > room for text, pair in zip(texts, pairs, strict=True))
    if base.is_encoder:
        rows = _encode_by_tokenizer(base, examples, has_pairs, max_length)
    else:
        start, separator, end = _frame(base)
        cut = [_cut(text, pair, room) for text, pair in zip(texts, pairs, strict=True)]
        ids = [[*start, *text, *([*separator, *pair] if has_pairs else []), *end] for text, pair in cut]
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    for row, example in zip(rows, examples, strict=True):
        row["labels"] = example.label
    return Encoded(rows, truncated, max(len(row["input_ids"]) for row in rows))


def _encode_by_tokenizer(base: Base, examples: list[Example], has_pairs: bool, max_length: int) -> list[dict[str, Any]]:
    encoded = base.tokenizer(
        [example.text for example in examples],
        [example.pair for example in examples] if has_pairs else None,
        truncation="longest_first",
        max_length=max_length,
        split_special_tokens=True,
    )
    return [{name: encoded[name][index] for name in encoded} for index in range(len(examples))]


def _frame(base: Base) -> tuple[list[int], list[int], list[int]]:
    """Return what a decoder's row starts with, what stands between the texts of a pair, and what it ends with.

    `<s> text </s>` and `<s> text <s> pair </s>`, the paper's form for pairs. Its single texts lack the end token; here
    they have it, so that the head always reads at a token which says that everything has been read.
    """
    start, end = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    between = start if start is not None else end
    ensure(
        between is not None,
        f"model_name_or_path={base.name}: its tokenizer has neither a start nor an end token. Set bos_token or "
        "eos_token in its tokenizer_config.json.",
    )
    assert between is not None
    return [] if start is None else [start], [between], [] if end is None else [end]


def _num_special(base: Base, has_pairs: bool) -> int:
    if base.is_encoder:
        return int(base.tokenizer.num_special_tokens_to_add(pair=has_pairs))
    start, separator, end = _frame(base)
    return len(start) + len(end) + (len(separator) if has_pairs else 0)


def _cut(text: list[int], pair: list[int], room: int) -> tuple[list[int], list[int]]:
    over = len(text) + len(pair) - room
    if over <= 0:
        return text, pair
    short = min(len(text), len(pair))
    keep = max(room - short, (room + 1) // 2)  # of the longer one
    if len(text) >= len(pair):
        return text[:keep], pair[: room - min(keep, len(text))]
    return text[: room - min(keep, len(pair))], pair[:keep]
