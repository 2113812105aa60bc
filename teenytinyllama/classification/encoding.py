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
