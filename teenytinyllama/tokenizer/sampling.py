"""A bounded, seeded sample of text for training a tokenizer, taken from every source at the same rate."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..checks import InputError, ensure

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
        """Return the share kept if one more piece went: asked this way, a source of one piece never loses it."""
        return (self.kept - len(self.heap[0][2])) / self.seen if self.heap else -1.0

    def evict(self) -> int:
        """Drop the piece of lowest priority and return its size in bytes."""
        size = len(heapq.heappop(self.heap)[2])
        self.kept -= size
        return size


class _Evictions:
    """Finds the source that loses a piece next: that with the highest share kept, of equal ones the first.

    There can be as many sources as documents. The heap holds the present share of each, beside shares that it had.
    """

    def __init__(self, sources: dict[str, _Source]) -> None:
        self.sources = list(sources.values())
        self.heap: list[tuple[float, int]] = []
        self._rebuild()

    def changed(self, source: _Source) -> None:
        """Take over the share of a source that got or lost a piece."""
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


def text_and_source(item: Any, position: int) -> tuple[str, str]:
    """Return the text and the source of a `str` or of a document with `.text` and `.source`.

    Args:
        item: what the user's iterator gave.
        position: its place in the input, counted from 0, for the message.

    Raises:
        InputError: neither of the two.
    """
    text = item if isinstance(item, str) else getattr(item, "text", None)
    if not isinstance(text, str):
        raise InputError(
            f"texts[{position}]={type(item).__name__}: each item must be a str, or an object with .text and .source. "
            "Pass the texts themselves, not rows or bytes."
        )
    source = DEFAULT_SOURCE if isinstance(item, str) else getattr(item, "source", DEFAULT_SOURCE)
    return text, str(source)


def encode_utf8(text: str, position: int) -> bytes:
    """Return the text as UTF-8.

    Raises:
        InputError: it has a lone surrogate (half of a character), which no UTF-8 file can hold.
    """
    try:
        return text.encode("utf-8")
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
        text, name = text_and_source(item, position)
        for piece in _cut(encode_utf8(text, position), piece_bytes):
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
