"""One document's text with what the quality rules count on it, each counted at most once.

How much of a text its repeated n-grams of words make (Rae et al. 2021, arXiv 2112.11446, table A1) is exact where it
exceeds the limit of its rule, and else a number that does not exceed it: most texts are far from every limit, which a
bound shows without the exact count.
"""

import functools
import re
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .words import SENTENCE_ENDS, WordTable, hash_texts

_PARAGRAPHS = re.compile(r"\n{2,}")
_SENTENCE_END = re.compile(r"[.?!…]+(?=[\s\"'”’»)\]]|\Z)")
_FEW = 8  # values that are sooner looked for one by one than sorted
_BULLETS, _ELLIPSES = ("•", "-"), ("...", "…")


@functools.cache
def _table() -> WordTable:
    """Return the process's table of words: it only saves time, no result depends on it."""
    return WordTable()


def _repeated(parts: list[str]) -> tuple[int, int]:
    """Return how many parts occurred before, and their characters."""
    distinct = set(parts)
    return len(parts) - len(distinct), sum(map(len, parts)) - sum(map(len, distinct))


@functools.cache
def _hashes_of(words: tuple[str, ...]) -> list[np.uint64]:
    return list(hash_texts(list(dict.fromkeys(words))))


class MeasuredText:
    """A text and its counts.

    Attributes:
        text: as given.
        num_words: words, those of symbols alone counted.
        num_real_words: words that are more than symbols.
        lengths: (words,) characters of each word.
        hashes: (words,) 64-bit hash of each word.
        alphabetic_words: share of words with a letter.
        word_characters: average characters of a real word.
        most_frequent: by words of an n-gram, an upper bound of how often one occurs, as far as counted.
        covered: by words of an n-gram, the characters in n-grams that occurred before, as far as counted.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        table = _table()
        numbers = table.read(text)
        self.num_words = len(numbers)
        self.lengths: NDArray[np.int64] = table.lengths[numbers]
        self.hashes: NDArray[np.uint64] = table.hashes[numbers]
        real = table.real[numbers]
        self.num_real_words = int(np.count_nonzero(real))
        self.word_characters = float(self.lengths @ real) / max(1, self.num_real_words)
        self.alphabetic_words = int(np.count_nonzero(table.letters[numbers])) / max(1, self.num_words)
        self._n_gram_hashes: dict[int, NDArray[np.uint64]] = {1: self.hashes}
        self.most_frequent: dict[int, int] = {}
        self.covered: dict[int, int] = {}

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Return the (words + 1,) number of characters in all words before each, and in all."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    @cached_property
    def lines(self) -> list[str]:
        """Return the lines between line feeds, empty ones too."""
        return self.text.split("\n")

    @cached_property
    def written_lines(self) -> list[str]:
        """Return the lines that hold more than white space."""
        return [line for line in self.lines if line and not line.isspace()]

    @cached_property
    def duplicate_lines(self) -> float:
        """Return the share of lines that occurred before; rows of line feeds are one line end."""
        lines = [line for line in self.lines if line]
        lines += [""] * ((self.text[:1] == "\n") + (self.text[-1:] == "\n"))
        return _repeated(lines)[0] / max(1, len(lines))

    @cached_property
    def duplicate_line_characters(self) -> float:
        """Return the share of characters that stand in lines that occurred before; line feeds are not counted."""
        characters = len(self.text) - len(self.lines) + 1
        return _repeated(self.written_lines)[1] / max(1, characters)

    @cached_property
    def duplicate_paragraphs(self) -> tuple[float, float]:
        """Return the share of paragraphs that occurred before, and of characters in them."""
        paragraphs = _PARAGRAPHS.split(self.text.strip())
        number, characters = _repeated(paragraphs)
        return number / len(paragraphs), characters / max(1, len(self.text))

    @cached_property
    def punctuated_lines(self) -> float:
        """Return the share of written lines whose last character ends a sentence."""
        lines = self.written_lines
        return sum(line[-1] in SENTENCE_ENDS for line in lines) / max(1, len(lines))

    @cached_property
    def _unicode_lines(self) -> list[str]:
        """Return the lines between line ends of any kind, as `str.splitlines` knows them."""
        return self.text.splitlines()

    @cached_property
    def bullet_lines(self) -> float:
        """Return the share of lines that begin with a bullet or a hyphen."""
        if "•" not in self.text and "-" not in self.text:
            return 0.0
        return sum(line.lstrip().startswith(_BULLETS) for line in self._unicode_lines) / len(self._unicode_lines)

    @cached_property
    def ellipsis_lines(self) -> float:
        """Return the share of lines that end in an ellipsis."""
        if "..." not in self.text and "…" not in self.text:
            return 0.0
        return sum(line.rstrip().endswith(_ELLIPSES) for line in self._unicode_lines) / len(self._unicode_lines)

    @cached_property
    def num_sentences(self) -> int:
        """Return the number of marks that end a sentence, before white space, a quote or the end."""
        return sum(1 for _ in _SENTENCE_END.finditer(self.text))

    def different_words_of(self, words: tuple[str, ...], enough: int) -> int:
        """Return how many of some words the text holds, in this spelling.

        Args:
            words: to look for.
            enough: the result where it is reached; the rest is not looked for.
        """
        found = 0
        for value in _hashes_of(words):
            found += bool((self.hashes == value).any())
            if found >= enough:
                break
        return found

    def n_gram_hashes(self, size: int) -> NDArray[np.uint64]:
        """Return the (words - size + 1,) hash of each n-gram, or none for a text that is too short.

        Args:
            size: words of an n-gram.
        """
        if size not in self._n_gram_hashes:
            shorter = self.n_gram_hashes(size - 1)
            rest = self.num_words - size + 1
            # A polynomial of the words' hashes modulo 2**64; the factor is the odd one of Knuth's MMIX generator.
            joined = shorter[: max(0, rest)] * np.uint64(6364136223846793005) + self.hashes[size - 1 :]
            self._n_gram_hashes[size] = joined
        return self._n_gram_hashes[size]


def _n_gram_lengths(text: MeasuredText, size: int) -> NDArray[np.int64]:
    """Return the (n-grams,) characters of each n-gram's words, without the spaces between them."""
    return text.ends[size:] - text.ends[:-size]


def _repeated_n_grams(
    hashes: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return where the n-grams begin that occur more than once, ascending.

    Args:
        hashes: (n-grams,) of all n-grams.

    Returns:
        (repeated,) places, a number of the n-gram at each, and whether it occurred before.
    """
    if not len(hashes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool)
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = np.zeros(len(hashes) + 1, bool)
    same[1:-1] = ordered[1:] == ordered[:-1]
    inside = np.flatnonzero(same[1:] | same[:-1])  # in a run of equal hashes
    if not len(inside):
        return inside, inside, np.zeros(0, bool)
    starts = np.flatnonzero(~same[inside])
    numbers = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(inside))))
    places = order[inside]
    firsts = np.minimum.reduceat(places, starts)
    ascending = np.argsort(places)
    places, numbers = places[ascending], numbers[ascending]
    return places, numbers, places != firsts[numbers]


def top_n_gram_share(text: MeasuredText, size: int, limit: float) -> float:
    """Return the share of characters in the most frequent n-gram, spaces between its words counted.

    Among n-grams of the same frequency the one that comes first is taken, as datatrove does.

    Args:
        text: with its words.
        size: words of an n-gram.
        limit: up to it the result may be any bound that does not exceed it.
    """
    hashes = text.n_gram_hashes(size)
    if not len(hashes):
        return 0.0
    lengths = _n_gram_lengths(text, size) + (size - 1)
    longest, characters = int(lengths.max()), max(1, len(text.text))
    known = text.most_frequent.get(size - 1)
    if known is not None and known * longest <= limit * characters:
        text.most_frequent[size] = known
        return known * longest / characters
    ordered = np.sort(hashes)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(np.append(starts, len(ordered)))
    most = int(counts.max())
    text.most_frequent[size] = most
    if most * longest <= limit * characters:
        return most * longest / characters
    first = 0
    if most > 1:
        candidates = ordered[starts[counts == most]]
        few = len(candidates) <= _FEW
        first = min(int((hashes == value).argmax()) for value in candidates) if few else int(
            np.isin(hashes, candidates).argmax())  # fmt: skip
    return most * int(lengths[first]) / characters


def _covered_characters(text: MeasuredText, size: int, places: NDArray[np.int64]) -> int:
    """Return the characters of all words that lie in an n-gram which begins at one of the places."""
    marks = np.zeros(text.num_words + 1, np.int64)
    marks[places] += 1
    marks[places + size] -= 1
    return int(text.lengths[np.cumsum(marks[:-1]) > 0].sum())


def duplicate_n_gram_share(text: MeasuredText, size: int, limit: float) -> float:
    """Return the share of characters in n-grams that occurred before, each word counted once.

    The text is read from its first word; where an n-gram occurred before, reading goes on behind it, and what lies
    inside it is not remembered (datatrove's `find_all_duplicate`).

    Args:
        text: with its words.
        size: words of an n-gram.
        limit: up to it the result may be any bound that does not exceed it.
    """
    characters = max(1, len(text.text))
    for shorter, covered in text.covered.items():
        if shorter <= size and covered <= limit * characters:  # a repeated n-gram lies in repeated shorter ones
            return covered / characters
    places, numbers, again = _repeated_n_grams(text.n_gram_hashes(size))
    text.covered[size] = covered = _covered_characters(text, size, places[again]) if len(places) else 0
    if covered <= limit * characters:
        return covered / characters
    return _read_duplicates(text, size, places.tolist(), numbers.tolist()) / characters


def _read_duplicates(text: MeasuredText, size: int, places: list[int], numbers: list[int]) -> int:
    """Return the characters of the n-grams that occurred before, read in order.

    Args:
        text: with its words.
        size: words of an n-gram.
        places: of the n-grams that occur more than once, ascending.
        numbers: for each place a number of its n-gram.
    """
    seen: set[int] = set()
    begin, characters = 0, 0
    ends = text.ends
    for place, number in zip(places, numbers, strict=True):
        if place < begin:
            continue
        if number in seen:
            begin = place + size
            characters += int(ends[begin] - ends[place])
        else:
            seen.add(number)
    return characters
