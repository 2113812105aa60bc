"""Texts as arrays of code points: the alphabet, and the stretches that pieces are learnt from."""

import sys
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .vocabulary import ALWAYS_IN_ALPHABET, SPACE_MARK

# Share of the sampled characters that the alphabet must cover; the rest go through bytes. SentencePiece's default is
# 0.9995 (trainer_spec.character_coverage). Ours is a little higher because the difference is cheap in Portuguese: on
# 121 MB of mixed text 0.9995 gives 106 characters, 0.9999 gives 123, and everything 483, most of them seen once.
CHARACTER_COVERAGE = 0.9999

_BATCH_CHARS = 100_000  # of text turned into code points at a time: arrays that stay in the cache
_CUT = "\U0010ffff"  # a noncharacter, in no text


def choose_alphabet(texts: Iterable[str], coverage: float = CHARACTER_COVERAGE) -> list[str]:
    """Return the characters that get entries of their own, in code point order.

    The most frequent ones, until they cover `coverage` of all characters, plus digits and Portuguese letters always.
    Rare ones (an ideogram seen twice) would take the places of useful pieces; they are written in bytes instead. A
    space counts as `▁`.
    """
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for batch in _batches(texts):
        found = np.bincount(_code_points("".join(batch)))
        counts[: len(found)] += found
    counts[ord(SPACE_MARK)] += counts[ord(" ")]
    counts[ord(" ")] = 0
    order = np.argsort(-counts, kind="stable")  # ties: lower code point first
    before = np.cumsum(counts[order]) - counts[order]  # characters covered by the more frequent ones
    frequent = order[(before < coverage * counts.sum()) & (counts[order] > 0)]
    return sorted(ALWAYS_IN_ALPHABET | {chr(code) for code in frequent})


def known_parts(texts: Iterable[str], alphabet: list[str], cut_numbers: bool = True) -> Iterator[str]:
    """Yield the stretches of text that pieces may be learnt from: inside the alphabet, and cut in long numbers.

    The trainer leaves characters outside the alphabet out of a word, and would learn a pair across the gap that no text
    has. A number is cut after every second digit, so that no piece has three in a row: "2026" is "20", "26", and a
    number never becomes an entry of its own. Against free pieces this costs 0.15 % tokens, single digits 1.4 % (27 % on
    gazettes when they also stand alone; docs/lab-log.md).

    Arrays of code points are cut in less than half the time of regular expressions, here or as a pre-tokenizer.
    """
    codes_of = np.full(sys.maxunicode + 1, ord(_CUT), dtype="<u4")
    known = [ord(character) for character in {*alphabet, " "} - {_CUT}]
    codes_of[known] = known
    for batch in _batches(texts):
        codes = codes_of[_code_points(_CUT.join(batch))]
        if cut_numbers:
            codes = np.insert(codes, _cuts_in_numbers(codes), ord(_CUT))
        yield from filter(None, codes.tobytes().decode("utf-32-le").split(_CUT))


def _cuts_in_numbers(codes: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return the places of the third, fifth, … digit of each number."""
    is_digit = (codes >= ord("0")) & (codes <= ord("9"))
    triples = np.flatnonzero(is_digit[:-2] & is_digit[1:-1] & is_digit[2:])  # where three digits in a row begin
    begins_number = np.diff(triples, prepend=-2) > 1
    starts = triples[np.maximum.accumulate(np.where(begins_number, np.arange(len(triples)), 0))]
    return triples[(triples - starts) % 2 == 0] + 2


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of about `_BATCH_CHARS` characters."""
    batch: list[str] = []
    filled = 0
    for text in texts:
        batch.append(text)
        filled += len(text)
        if filled >= _BATCH_CHARS:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
