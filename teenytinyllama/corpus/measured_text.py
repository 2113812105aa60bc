"""One document's text with what the quality rules count on it, each counted at most once."""

import functools
import re
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .words import SENTENCE_ENDS, WordTable, hash_word

_PARAGRAPHS = re.compile(r"\n{2,}")
_SENTENCE_END = re.compile(r"[.?!…]+(?=[\s\"'”’»)\]]|\Z)")
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
    return [np.uint64(hash_word(word)) for word in dict.fromkeys(words)]


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
