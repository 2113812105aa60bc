"""Words of texts as 64-bit numbers, with their places: what duplicates and contamination are found by.

A word is a run of letters and digits. Case, accents, punctuation and white space make no difference: "Não-Lugar" and
"nao lugar" are the same two words. Marks that combine with the letter before them, soft hyphens and characters without
width belong to no word and part none.

All is done for a whole text at once, in numpy: a table gives each character its plain form, a sum of characters times
powers of an odd number gives each word its hash (Rabin and Karp 1987, here modulo 2^64), and SplitMix64's last
step (Steele et al. 2014) spreads it over all bits. Two words in a corpus of a million have the same hash with a
probability of about 3e-8.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

PIECE_CHARACTERS = 1 << 20  # a text is hashed in pieces of so many characters: about 50 MB of memory
_LONGEST_WORD = 1000  # a piece ends at white space unless a word is longer than this
_BASE = 0xD6E8FEB86659FD93  # any large odd number
_SEPARATOR, _SKIPPED = 0, 0xFFFF


@dataclass(frozen=True)
class HashedWords:
    """The words of a text, in order.

    Attributes:
        hashes: uint64, one a word.
        starts: int64, the place of each word's first character in the text.
        ends: int64, the place behind each word's last character and the marks that follow it.
    """

    hashes: Hashes
    starts: Places
    ends: Places


def mix(values: Hashes) -> Hashes:
    """Spread each number over all 64 bits: the last step of SplitMix64, one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def odd_constants(count: int, seed: int) -> Hashes:
    """Return odd 64-bit numbers without a pattern, the same on every machine; seeds up to 2^32."""
    counters = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)
    return mix(counters * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


@lru_cache(maxsize=1)
def _plain_forms() -> NDArray[np.uint16]:
    """Return for each code point up to U+FFFF its letter in small and without accent, or what it is instead."""
    table = np.zeros(1 << 16, dtype=np.uint16)
    for code in range(_SKIPPED):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind[0] == "M" or kind == "Cf":
            table[code] = _SKIPPED
        elif kind[0] in "LN":
            plain = ord(unicodedata.normalize("NFKD", character).casefold()[0])
            table[code] = plain if plain < _SKIPPED else code
    return table


@lru_cache(maxsize=1)
def _powers() -> tuple[Hashes, Hashes]:
    """Return the powers of the base and those of its inverse modulo 2^64, one for each place in a piece."""
    inverse = pow(_BASE, -1, 1 << 64)
    powers = np.full((2, PIECE_CHARACTERS + 1), 1, dtype=np.uint64)
    powers[0, 1:], powers[1, 1:] = _BASE, inverse
    np.multiply.accumulate(powers, axis=1, out=powers)
    return powers[0], powers[1]


def hash_spans(codes: NDArray[Any], starts: Places, ends: Places) -> Hashes:
    """Return a hash of each span of up to `PIECE_CHARACTERS` codes, the same wherever the span stands.

    Args:
        codes: (characters,) unsigned, such as code points.
        starts: (spans,) the place of each span's first code.
        ends: (spans,) the place behind its last one.
    """
    powers, inverses = _powers()
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


def _hash_piece(piece: str) -> HashedWords:
    codes = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    forms = _plain_forms()[np.minimum(codes, _SKIPPED)]  # letters beyond U+FFFE part words
    forms[codes >= _SKIPPED] = _SEPARATOR
    skipped = forms == _SKIPPED
    kept: Places | None = None
    if skipped.any():
        kept = np.flatnonzero(~skipped)
        forms = forms[kept]
    inside = np.zeros(len(forms) + 2, dtype=np.int8)
    inside[1:-1] = forms != _SEPARATOR
    edges = np.flatnonzero(np.diff(inside))
    starts, ends = edges[0::2], edges[1::2]
    hashes = hash_spans(forms, starts, ends)
    if kept is not None:
        kept = np.append(kept, len(codes))
        starts, ends = kept[starts], kept[ends]
    return HashedWords(hashes, starts, ends)


def pieces_of(text: str) -> Iterator[tuple[int, str]]:
    """Cut a text at white space into pieces that are hashed at once, each with its place."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        near = max(text.rfind(" ", end - _LONGEST_WORD, end), text.rfind("\n", end - _LONGEST_WORD, end))
        end = near if near > 0 else end
        yield start, text[start:end]
        start = end
    yield start, text[start:] if start else text


def hash_words(text: str) -> HashedWords:
    """Return the words of a text as hashes, with their places.

    A word of more than a thousand characters may count as two where a piece of a very long text ends.
    """
    parts = [(start, _hash_piece(piece)) for start, piece in pieces_of(text)]
    if len(parts) == 1:
        return parts[0][1]
    return HashedWords(
        np.concatenate([part.hashes for _, part in parts]),
        np.concatenate([part.starts + start for start, part in parts]),
        np.concatenate([part.ends + start for start, part in parts]),
    )


def hash_batches(texts: Iterable[str]) -> Iterator[tuple[list[str], Hashes, Places]]:
    """Hash texts many at a time, which is faster than one by one.

    Yields:
        the texts of a batch (about a million characters, or one longer text), the hashes of all their words one after
        another, and the bounds of the texts among them: int64 of one more than the texts.
    """
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) >= PIECE_CHARACTERS:
            yield _hash_batch(batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield _hash_batch(batch)


def _hash_batch(batch: list[str]) -> tuple[list[str], Hashes, Places]:
    words = hash_words("\n".join(batch) if len(batch) > 1 else batch[0])
    lengths = np.fromiter((len(text) + 1 for text in batch), dtype=np.int64, count=len(batch))
    bounds = np.concatenate([[0], np.searchsorted(words.starts, np.cumsum(lengths))]).astype(np.int64)
    return batch, words.hashes, bounds


def hash_runs(words: Hashes, length: int) -> Hashes:
    """Return a hash for each run of `length` words: uint64, `length - 1` fewer than the words."""
    count = max(0, len(words) - length + 1)
    sums = np.zeros(count, dtype=np.uint64)
    for place, factor in enumerate(odd_constants(length, seed=1)):
        sums += words[place : place + count] * factor
    return mix(sums)
