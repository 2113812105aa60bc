"""How well a tokenizer fits texts: fertility, bytes, unknown text, exact round trips, use of the vocabulary."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import ensure
from .encode import encode_texts
from .sampling import TextWithSource, encode_utf8, text_and_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_BYTES = 1_000_000  # of text encoded at a time, which bounds the memory
EXAMPLE_CHARS = 80
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass
class _Counts:
    used: np.ndarray  # bool, (entries of the vocabulary,)
    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    byte_tokens: int = 0
    failures: int = 0
    example: dict[str, str] | None = None


@dataclass
class _Vocabulary:
    """The ids that the audit counts apart."""

    size: int
    unknown_id: int | None
    is_byte: np.ndarray = field(repr=False)  # bool, (size,)
    is_ordinary: np.ndarray = field(repr=False)  # bool, (size,): neither special nor a byte


def audit_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str | TextWithSource], allow_none: bool = False
) -> dict[str, dict[str, Any]]:
    """Measure a tokenizer on texts, per source and overall. Works with any transformers tokenizer.

    Streams: no more than about 1 MB of text is held, whatever the input.

    Args:
        tokenizer: ours or a foreign one; special strings in the texts are read as plain text.
        texts: `str` items, or documents with `.text` and `.source`.
        allow_none: no text gives a row of zeros instead of an error.

    Returns:
        `{"overall": row, "sources": {source: row}}`, ready for JSON. A row has `documents`, `words` (separated by
        whitespace, as `str.split`), `bytes` (UTF-8), `tokens`, `tokens_per_word`, `bytes_per_token`, `unknown_rate`
        and `byte_token_rate` (shares of the tokens), `round_trip_failures`, `first_failure` (text, decoded; around
        the first difference) and `vocabulary_use` (share of the entries that are neither special nor bytes).
        Ratios without a denominator are None.

    Raises:
        InputError: no text (without `allow_none`), an item that is not text, or invalid Unicode.
    """
    vocabulary = _describe_vocabulary(tokenizer)
    sources: dict[str, _Counts] = {}
    for batch in _batches(texts):
        for (text, source, size), ids in zip(batch, encode_texts(tokenizer, [row[0] for row in batch]), strict=True):
            counts = sources.setdefault(source, _Counts(np.zeros(vocabulary.size, dtype=bool)))
            counts.bytes += size
            _count(counts, vocabulary, tokenizer, text, np.asarray(ids, dtype=np.int64))
    ensure(sources or allow_none, "texts: nothing to audit (no item). Check the path and the filters of the input.")
    return {
        "overall": _row(_total(sources.values(), vocabulary.size), vocabulary),
        "sources": {name: _row(counts, vocabulary) for name, counts in sources.items()},
    }


def _describe_vocabulary(tokenizer: "PreTrainedTokenizerBase") -> _Vocabulary:
    entries = tokenizer.get_vocab()
    size = max([len(tokenizer) - 1, *entries.values()]) + 1  # ids can have gaps
    is_byte, is_ordinary = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for token, index in entries.items():
        is_byte[index] = _BYTE_TOKEN.fullmatch(token) is not None
        is_ordinary[index] = not is_byte[index]
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    is_ordinary[[*special, *tokenizer.all_special_ids]] = False
    return _Vocabulary(size, tokenizer.unk_token_id, is_byte, is_ordinary)


def _batches(texts: Iterable[str | TextWithSource]) -> Iterator[list[tuple[str, str, int]]]:
    """Yield lists of (text, source, bytes) of about `BATCH_BYTES`."""
    batch: list[tuple[str, str, int]] = []
    filled = 0
    ensure(not isinstance(texts, str), "texts: got one str, and an iterator of str is needed. Write [text].")
    for position, item in enumerate(texts):
        text, source = text_and_source(item, position)
        size = len(encode_utf8(text, position))
        batch.append((text, source, size))
        filled += size
        if filled >= BATCH_BYTES:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def _count(
    counts: _Counts, vocabulary: _Vocabulary, tokenizer: "PreTrainedTokenizerBase", text: str, ids: np.ndarray
) -> None:
    """Add one document to the counts (its bytes are added by the caller)."""
    counts.documents += 1
    counts.words += len(text.split())
    counts.tokens += len(ids)
    counts.unknown += 0 if vocabulary.unknown_id is None else int((ids == vocabulary.unknown_id).sum())
    counts.byte_tokens += int(vocabulary.is_byte[ids].sum())
    counts.used[ids] = True
    decoded = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if decoded != text:
        counts.failures += 1
        counts.example = counts.example or _first_difference(text, decoded)


def _first_difference(text: str, decoded: str) -> dict[str, str]:
    pairs = enumerate(zip(text, decoded, strict=False))
    at = next((place for place, (left, right) in pairs if left != right), min(len(text), len(decoded)))
    start = max(0, at - EXAMPLE_CHARS // 2)
    return {"text": text[start : start + EXAMPLE_CHARS], "decoded": decoded[start : start + EXAMPLE_CHARS]}


def _total(rows: Iterable[_Counts], size: int) -> _Counts:
    total = _Counts(np.zeros(size, dtype=bool))
    for row in rows:
        total.used |= row.used
        total.example = total.example or row.example
        for name in ("documents", "words", "bytes", "tokens", "unknown", "byte_tokens", "failures"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
    return total


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _row(counts: _Counts, vocabulary: _Vocabulary) -> dict[str, Any]:
    return {
        "documents": counts.documents,
        "words": counts.words,
        "bytes": counts.bytes,
        "tokens": counts.tokens,
        "tokens_per_word": _ratio(counts.tokens, counts.words),
        "bytes_per_token": _ratio(counts.bytes, counts.tokens),
        "unknown_rate": _ratio(counts.unknown, counts.tokens),
        "byte_token_rate": _ratio(counts.byte_tokens, counts.tokens),
        "round_trip_failures": counts.failures,
        "first_failure": counts.example,
        "vocabulary_use": _ratio(int((counts.used & vocabulary.is_ordinary).sum()), int(vocabulary.is_ordinary.sum())),
    }


def format_audit(audit: dict[str, dict[str, Any]]) -> str:
    """Return the audit as a table of plain text, one line a source and one overall, then the first failure if any."""
    heads = ("source", "documents", "words", "tokens", "tok/word", "bytes/tok", "unk %", "bytes %", "failed", "vocab %")
    lines: list[tuple[str, ...]] = [heads]
    for name, row in [*sorted(audit["sources"].items()), ("overall", audit["overall"])]:
        lines.append(
            (
                name,
                *(f"{row[key]:,}" for key in ("documents", "words", "tokens")),
                *(_number(row[key], 1, 3) for key in ("tokens_per_word", "bytes_per_token")),
                *(_number(row[key], 100, 3) for key in ("unknown_rate", "byte_token_rate")),
                f"{row['round_trip_failures']:,}",
                _number(row["vocabulary_use"], 100, 1),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    failure = audit["overall"]["first_failure"]
    if failure:
        table.append(f"first failure: {failure['text']!r} decodes to {failure['decoded']!r}")
    return "\n".join(table)


def _number(value: float | None, scale: float, decimals: int) -> str:
    return "-" if value is None else f"{value * scale:.{decimals}f}"
