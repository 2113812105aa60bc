"""Learning the entries of the tokenizer: a sample of the text, the alphabet, pieces of words, superwords.

A sample is bounded, seeded, and takes text from every source at the same rate. Pieces are learnt by byte-pair encoding
inside the words of the sample. A superword is one entry for a sequence of function words, such as `▁de▁um`; superwords
are learnt last, on runs of function words (`files` says why they join function words alone).
"""

import heapq
import random
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure
from .encode import in_batches
from .files import (
    ALWAYS_IN_ALPHABET,
    FUNCTION_WORDS,
    NUM_RESERVED_TOKENS,
    RESERVED_TOKENS,
    SPACE_MARK,
    keep_reachable,
    split_at_spaces,
)

DEFAULT_SOURCE = "text"  # the source of items that are plain strings
PIECE_BYTES = 65_536  # long documents are sampled in parts, so that one book cannot fill the sample
_PIECES_AT_LEAST = 100  # a small sample is made of smaller pieces, or it would hold one
# A source of n bytes counts as n ** 0.7: small ones more than their share. On 121 MB of 12 sources, against 1.0, that
# saved 1.2 % of the tokens on the mean of 21 registers and cost 1.4 % on the largest source (docs/lab-log.md).
SOURCE_EXPONENT = 0.7


class TextWithSource(Protocol):
    """A document with its text and the name of the source that it came from."""

    @property
    def text(self) -> str:
        """The text."""
        ...

    @property
    def source(self) -> str:
        """The name of the source."""
        ...


@dataclass(frozen=True)
class TextSample:
    """What `sample_texts` kept.

    Attributes:
        pieces: the kept pieces, UTF-8, in the order of the input.
        seen_bytes: bytes of UTF-8 read, by source.
        kept_bytes: bytes of UTF-8 kept, by source.
        piece_sources: the source of each piece.
    """

    pieces: list[bytes]
    seen_bytes: dict[str, int]
    kept_bytes: dict[str, int]
    piece_sources: list[str]

    def texts(self) -> Iterator[str]:
        """Yield the kept pieces as `str`, one at a time (a `str` can take four times the memory of its UTF-8)."""
        for piece in self.pieces:
            yield piece.decode("utf-8")

    def weighted_texts(self, every: int = 1) -> Iterator[str]:
        """Yield pieces of small sources more than once and leave out some of large ones, so that small ones weigh more.

        Each source then has its bytes to the power `SOURCE_EXPONENT`, on the scale where all together have as many
        bytes as were kept. Weights that are not whole numbers are met on the average over the pieces of the source.

        Args:
            every: take only each n-th piece of each source, for counts that need less text.
        """
        shares = {name: kept**SOURCE_EXPONENT for name, kept in self.kept_bytes.items() if kept}
        scale = sum(self.kept_bytes.values()) / sum(shares.values())
        weights = {name: scale * share / self.kept_bytes[name] for name, share in shares.items()}
        due = dict.fromkeys(weights, 0.0)
        places = dict.fromkeys(weights, -1)
        for piece, source in zip(self.pieces, self.piece_sources, strict=True):
            places[source] += 1
            if places[source] % every:
                continue
            due[source] += weights[source]
            times = round(due[source])
            due[source] -= times
            text = piece.decode("utf-8")
            for _ in range(times):
                yield text


@dataclass
class _Source:
    number: int  # in the order of their first texts
    heap: list[tuple[float, int, bytes]]  # (priority, place in the input, piece); the lowest priority goes first
    seen: int = 0
    kept: int = 0

    def rate_after_eviction(self) -> float:
        """Return the share of the source that is kept if it loses one more piece.

        A source with a single piece has the share 0, so that it never loses it while another has more.
        """
        return (self.kept - len(self.heap[0][2])) / self.seen if self.heap else -1.0

    def evict(self) -> int:
        """Drop the piece of lowest priority and return its size in bytes."""
        size = len(heapq.heappop(self.heap)[2])
        self.kept -= size
        return size


class _Evictions:
    """Finds the source that loses a piece next: the one with the highest share kept, of equal ones the first.

    There can be as many sources as documents, so they stand in a heap by their shares. It holds the present share of
    each source, beside shares that the source had before.
    """

    def __init__(self, sources: dict[str, _Source]) -> None:
        self.sources = list(sources.values())
        self.heap: list[tuple[float, int]] = []
        self._rebuild()

    def changed(self, source: _Source) -> None:
        """Add the present share of a source that got or lost a piece."""
        if source.number == len(self.sources):
            self.sources.append(source)
        heapq.heappush(self.heap, (-source.rate_after_eviction(), source.number))
        if len(self.heap) > 4 * len(self.sources) + 1000:
            self._rebuild()

    def evict(self) -> int:
        """Drop a piece and return its size in bytes."""
        while True:
            rate, number = self.heap[0]
            source = self.sources[number]
            if -rate == source.rate_after_eviction():
                size = source.evict()
                heapq.heapreplace(self.heap, (-source.rate_after_eviction(), number))
                return size
            heapq.heappop(self.heap)

    def _rebuild(self) -> None:
        self.heap = [(-source.rate_after_eviction(), source.number) for source in self.sources]
        heapq.heapify(self.heap)


def read_item(item: Any, position: int) -> tuple[str, bytes, str]:
    """Return the text, its UTF-8 and the source of a `str` or of a document with `.text` and `.source`.

    Args:
        item: what the user's iterator gave.
        position: its place in the input, counted from 0, for the message.

    Raises:
        InputError: neither of the two, or a text with a lone surrogate (half of a character), which no UTF-8 file can
            hold.
    """
    text = item if isinstance(item, str) else getattr(item, "text", None)
    if not isinstance(text, str):
        raise InputError(
            f"texts[{position}]={type(item).__name__}: each item must be a str, or an object with .text and .source. "
            "Pass the texts themselves, not rows or bytes."
        )
    source = DEFAULT_SOURCE if isinstance(item, str) else getattr(item, "source", DEFAULT_SOURCE)
    try:
        return text, text.encode("utf-8"), str(source)
    except UnicodeEncodeError as error:
        raise InputError(
            f"texts[{position}]: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: not valid "
            "Unicode. Repair it, for example with text.encode('utf-8', 'replace').decode()."
        ) from error


def sample_texts(texts: Iterable[str | TextWithSource], max_bytes: int, seed: int = 0) -> TextSample:
    """Keep a random sample of at most `max_bytes` of the texts, at about the same rate from each source.

    Reads the input once and holds no more than the sample. Documents are cut before whitespace into pieces of at most
    64 KiB; each piece gets a random priority, and while there is too much, the source with the highest share kept
    loses its piece of lowest priority (bottom-k sampling within each source). Everything is kept when it fits. Same
    input in the same order and same seed: same sample.

    Args:
        texts: `str` items, or documents with `.text` and `.source`.
        max_bytes: upper bound of the sample, in bytes of UTF-8.
        seed: of the priorities.

    Returns:
        The pieces and what was seen and kept of each source.

    Raises:
        InputError: `max_bytes` below 1, an item of the wrong type, a lone surrogate, one string instead of a list of
            strings, or no text at all.
    """
    ensure(max_bytes >= 1, f"max_bytes={max_bytes}: must be at least 1. Leave it out for 1,000,000,000 (1 GB).")
    ensure(not isinstance(texts, str), "texts: got one str, and an iterator of str is needed. Write [text].")
    piece_bytes = max(4, min(PIECE_BYTES, max_bytes // _PIECES_AT_LEAST))  # 4 bytes hold any character
    priorities = random.Random(seed)
    sources: dict[str, _Source] = {}
    evictions: _Evictions | None = None
    total = place = 0
    for position, item in enumerate(texts):
        _, data, name = read_item(item, position)
        for piece in _cut(data, piece_bytes):
            source = sources.setdefault(name, _Source(len(sources), []))
            heapq.heappush(source.heap, (priorities.random(), place, piece))
            place += 1
            source.seen += len(piece)
            source.kept += len(piece)
            total += len(piece)
            if evictions is not None:
                evictions.changed(source)
            elif total > max_bytes:
                evictions = _Evictions(sources)
            while evictions is not None and total > max_bytes:
                total -= evictions.evict()
    ensure(sources, "texts: no text at all (no item, or only empty ones). Check the path and the filters of the input.")
    ensure(total, f"max_bytes={max_bytes}: too small to keep even one piece of text. Use at least 1,000.")
    kept = sorted(
        ((place, piece, name) for name, source in sources.items() for _, place, piece in source.heap),
        key=lambda entry: entry[0],
    )
    return TextSample(
        [piece for _, piece, _ in kept],
        {name: source.seen for name, source in sources.items()},
        {name: source.kept for name, source in sources.items()},
        [name for _, _, name in kept],
    )


def _cut(data: bytes, piece_bytes: int) -> Iterator[bytes]:
    """Yield the parts of `data`, cut before whitespace where there is some, and never inside a character."""
    start = 0
    while len(data) - start > piece_bytes:
        end = start + piece_bytes
        cut = max(data.rfind(b" ", start + 1, end), data.rfind(b"\n", start + 1, end))
        if cut < 0:
            cut = end
            while data[cut] & 0xC0 == 0x80:  # a continuation byte of UTF-8: step back to the start of the character
                cut -= 1
        yield data[start:cut]
        start = cut
    if start < len(data):
        yield data[start:]


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
    for batch in in_batches(texts, len, _BATCH_CHARS):
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
    for batch in in_batches(texts, len, _BATCH_CHARS):
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


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


# Longest piece, in characters. Longer ones are template lines of one site; the longest common words of Portuguese
# ("responsabilidade", "desenvolvimento") stay below 20.
MAX_PIECE_CHARS = 32
MIN_PAIR_COUNT = 2  # a pair seen once says nothing about the language
SUPERWORD_BYTES = 25_000_000  # of text that superwords are counted in: a quarter of 121 MB gave the same as all


def learn_entries(sample: TextSample, alphabet: list[str], vocab_size: int, num_superwords: int | None) -> list[str]:
    """Return the vocabulary: reserved entries, alphabet, pieces, superwords; shorter when the texts support no more.

    Args:
        sample: the texts.
        alphabet: the characters with entries of their own.
        vocab_size: entries wanted.
        num_superwords: the most superwords; None for the usual share, and for any number where pieces run out.
    """
    head = [*RESERVED_TOKENS, *alphabet]
    entries = keep_reachable(head, _learn_pieces(sample.weighted_texts(), alphabet, vocab_size), vocab_size)
    if len(entries) < vocab_size:
        wanted = vocab_size if num_superwords is None else num_superwords
        room = min(wanted, vocab_size - len(entries))
        start = len(entries)
    else:
        wanted = vocab_size // ENTRIES_PER_SUPERWORD if num_superwords is None else num_superwords
        room = min(wanted, vocab_size - len(head))
        start = vocab_size - room
    every = -(-sum(sample.kept_bytes.values()) // SUPERWORD_BYTES)
    found = learn_superwords(sample.weighted_texts(every), function_word_pieces(entries[:start]), room)
    superwords = keep_reachable(entries[:start], found, vocab_size)[start:]
    return [*entries[: vocab_size - len(superwords)], *superwords]


def _learn_pieces(texts: Iterable[str], alphabet: list[str], vocab_size: int) -> list[str]:
    """Return the learnt pieces of two or more characters, best first; a few more than wanted, as some are dropped."""
    from tokenizers import Tokenizer, models, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = split_at_spaces()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + vocab_size // 50 + 64,
        min_frequency=MIN_PAIR_COUNT,
        special_tokens=list(RESERVED_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_CHARS,
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(known_parts(texts, alphabet), trainer)
    pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in pieces[NUM_RESERVED_TOKENS + len(alphabet) :]]


MAX_WORDS = 4  # in a superword; longer ones hardly occur
# One entry in 32: 1,000 of 32,000. On 121 MB of mixed text 500, 1,000, 2,000 and 4,000 of 32,000 took 3.9, 4.2, 4.3 and
# 3.7 % fewer tokens than none; more of them join more places where a text can be cut (docs/lab-log.md).
ENTRIES_PER_SUPERWORD = 32
MIN_RUN_COUNT = 2  # a sequence seen once says nothing about the language

_FIRST_CODE = 0xE000  # private use area: each function word becomes one character while sequences are learnt


def function_word_pieces(vocabulary: Iterable[str]) -> list[str]:
    """Return the function words (with their mark) that are whole pieces of the vocabulary, in the order of the list."""
    pieces = set(vocabulary)
    return [SPACE_MARK + word for word in FUNCTION_WORDS if SPACE_MARK + word in pieces]


def learn_superwords(texts: Iterable[str], pieces: list[str], how_many: int) -> list[str]:
    """Learn the most frequent sequences of 2 to 4 of the words, best first.

    Byte-pair encoding one level up: its texts are runs of such words, its characters are the words.

    Args:
        texts: the texts to count in, read once.
        pieces: the words to join, each a whole piece of the vocabulary and with its mark: `function_word_pieces`.
        how_many: the most superwords wanted; fewer when the texts have fewer.

    Returns:
        Superwords such as `▁de▁um`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not pieces or how_many < 1:
        return []
    words = [piece[1:] for piece in pieces]
    codes = {word: chr(_FIRST_CODE + index) for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=len(codes) + how_many,
        min_frequency=MIN_RUN_COUNT,
        initial_alphabet=list(codes.values()),
        limit_alphabet=len(codes),
        max_token_length=MAX_WORDS + 1,  # `tokenizers` learns pieces strictly shorter than this
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(_coded_runs(texts, codes), trainer)
    learnt = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    marked = {ord(code): SPACE_MARK + word for word, code in codes.items()}
    return [run.translate(marked) for run, _ in learnt if len(run) > 1]


def _coded_runs(texts: Iterable[str], codes: dict[str, str]) -> Iterator[str]:
    """Yield for each text its runs of function words, one character a word, spaces between runs.

    A word that goes on with anything but a letter ends a run ("de um," has one); the first word of a text has no space
    before it and starts none.
    """
    head = re.compile(r"\w+")

    @lru_cache(maxsize=200_000)
    def code(word: str) -> str:
        if word in codes:
            return codes[word]
        start = head.match(word)
        return codes.get(start.group(), "") + " " if start else " "

    for text in texts:
        coded = "".join(map(code, text.split(" ")[1:]))
        yield " ".join(run for run in coded.split() if len(run) > 1)
