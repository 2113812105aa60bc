"""Words of texts as 64-bit numbers, with their places, and MinHash: what duplicates and contamination are found by.

A word is a run of letters and digits. Case, accents, punctuation and white space make no difference: "Não-Lugar" and
"nao lugar" are the same two words. Marks that combine with the letter before them, soft hyphens and characters without
width belong to no word and part none.

All is done for a whole text at once, in numpy: a table gives each character its plain form, a sum of characters times
powers of an odd number gives each word its hash (Rabin and Karp 1987, here modulo 2^64), and SplitMix64's last
step (Steele et al. 2014) spreads it over all bits. Two words in a corpus of a million have the same hash with a
probability of about 3e-8.

The similarity of two texts is the Jaccard similarity of their sets of 5-grams of words, |A and B| / |A or B|. A
signature (Broder 1997) holds, for each of many random orders, the first 5-gram of the text: two texts agree in one
with the probability of their similarity. Signatures are cut into bands, and texts that agree in a whole band are
proposed as near duplicates (Leskovec et al., Mining of Massive Datasets, chapter 3.4): with 14 bands of 8 rows, as
FineWeb-2 (Penedo et al. 2025) has them, a pair of similarity s is proposed with probability 1 - (1 - s^8)^14, which is
0.77 at 0.75, 0.92 at 0.8 and 0.99 at 0.85.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import ensure

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


DIGEST_COLUMNS = 2  # 128 bits: among 10^12 documents two different ones agree with a probability of 1e-15
EMPTY_KEY = np.uint64(0xFFFFFFFFFFFFFFFF)  # of a text without words
_CHUNK_GRAMS = 1 << 14  # of 5-grams whose products stay in a processor's second cache


@dataclass
class DuplicatesConfig:
    """How duplicates are found."""

    near: bool = field(default=True, metadata={"help": "also remove near duplicates, not only exact ones"})
    threshold: float = field(
        default=0.75,
        metadata={"help": "smallest Jaccard similarity of 5-grams of words at which a document is removed"},
    )
    bands: int = field(default=14, metadata={"help": "bands of the MinHash signature; sharing one proposes a pair"})
    rows: int = field(default=8, metadata={"help": "values of the signature in a band"})
    ngram: int = field(default=5, metadata={"help": "words in an n-gram"})
    memory_megabytes: int = field(
        default=512, metadata={"help": "memory for sorting; larger corpora are cut into more parts on the disk"}
    )

    def check(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is out of its range.
        """
        ensure(
            0 < self.threshold <= 1,
            f"threshold={self.threshold}: must be above 0 and at most 1. 0.75 is usual; 1 keeps all but equal sets.",
        )
        for name, most in (("bands", 1000), ("rows", 100), ("ngram", 100)):
            value = getattr(self, name)
            ensure(1 <= value <= most, f"{name}={value}: must be from 1 to {most}. Leave it out for the default.")
        ensure(
            self.memory_megabytes >= 1,
            f"memory_megabytes={self.memory_megabytes}: must be 1 or more. 512 is the default.",
        )


def fingerprints(texts: Iterable[str], config: DuplicatesConfig | None = None) -> Hashes:
    """Return what `find_duplicates` needs of texts: a hash of each one's words and a key for each band.

    Args:
        texts: any number, read once.
        config: bands, rows and words of an n-gram; the defaults if None.

    Returns:
        uint64 of (texts, 2 + bands), or of (texts, 2) if near duplicates are not looked for.
    """
    config = config or DuplicatesConfig()
    parts = []
    for batch, words, bounds in hash_batches(texts):
        digests = np.empty((len(batch), DIGEST_COLUMNS), dtype=np.uint64)
        for row, text in enumerate(batch):
            digests[row] = _digest(text, words[bounds[row] : bounds[row + 1]])
        if config.near:
            keys = band_keys(batch_signatures(words, bounds, config), config)
            digests = np.concatenate([digests, keys], axis=1)
        parts.append(digests)
    return np.concatenate(parts) if parts else np.empty((0, fingerprint_columns(config)), dtype=np.uint64)


def band_keys(signature_rows: Hashes, config: DuplicatesConfig | None = None) -> Hashes:
    """Return a key for each band of signatures: uint64 of (texts, bands), `EMPTY_KEY` for texts without words."""
    config = config or DuplicatesConfig()
    banded = signature_rows.reshape(len(signature_rows), config.bands, config.rows)
    sums = (banded * odd_constants(config.rows, seed=3)).sum(axis=2, dtype=np.uint64)
    keys = mix(sums ^ odd_constants(config.bands, seed=4))
    keys[(banded == EMPTY_KEY).all(axis=2)] = EMPTY_KEY
    return keys


def fingerprint_columns(config: DuplicatesConfig) -> int:
    """Return how many numbers `fingerprints` gives for a text."""
    return DIGEST_COLUMNS + (config.bands if config.near else 0)


def _digest(text: str, words: Hashes) -> Hashes:
    """Return 128 bits of a text's words; of its characters, if it has no words."""
    content, kind = (words.tobytes(), b"words") if len(words) else (text.encode("utf-8", "surrogatepass"), b"text")
    return np.frombuffer(hashlib.blake2b(content, digest_size=16, person=kind).digest(), dtype="<u8")


def _batch_grams(words: Hashes, bounds: Places, ngram: int) -> tuple[Hashes, Places]:
    """Return the n-grams of a batch of texts, and the text of each. A text of fewer words counts as one n-gram."""
    counts = np.diff(bounds)
    text_of_word = np.repeat(np.arange(len(counts)), counts)
    grams = hash_runs(words, ngram)
    text_of_gram = text_of_word[: len(grams)]
    inside = text_of_gram == text_of_word[ngram - 1 :]
    grams, text_of_gram = grams[inside], text_of_gram[inside]
    short = np.flatnonzero((counts > 0) & (counts < ngram))
    if len(short):
        whole = [hash_runs(words[bounds[text] : bounds[text + 1]], int(counts[text])) for text in short]
        grams, text_of_gram = np.concatenate([grams, *whole]), np.concatenate([text_of_gram, short])
        order = np.argsort(text_of_gram, kind="stable")
        grams, text_of_gram = grams[order], text_of_gram[order]
    return grams, text_of_gram


def batch_signatures(words: Hashes, bounds: Places, config: DuplicatesConfig) -> Hashes:
    """Return signatures: in each column the smallest product of an n-gram's hash and the column's odd number.

    A product with an odd number modulo 2^64 is one to one, so that it orders the n-grams like a permutation.
    """
    factors = odd_constants(config.bands * config.rows, seed=2)
    grams, text_of_gram = _batch_grams(words, bounds, config.ngram)
    smallest = np.full((len(factors), len(bounds) - 1), EMPTY_KEY, dtype=np.uint64)
    for start in range(0, len(grams), _CHUNK_GRAMS):
        chunk, texts = grams[start : start + _CHUNK_GRAMS], text_of_gram[start : start + _CHUNK_GRAMS]
        first = np.flatnonzero(np.diff(texts, prepend=-1))
        products = np.empty_like(chunk)
        found = np.empty((len(factors), len(first)), dtype=np.uint64)
        for column, factor in enumerate(factors):
            np.multiply(chunk, factor, out=products)
            np.minimum.reduceat(products, first, out=found[column])
        smallest[:, texts[first]] = np.minimum(smallest[:, texts[first]], found)
    return np.ascontiguousarray(smallest.T)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Return the Jaccard similarity of two sets, each given as sorted hashes without repetition; 0 if one is empty."""
    if not len(one) or not len(other):
        return 0.0
    small, large = sorted((one, other), key=len)
    places = np.searchsorted(large, small)
    common = int((large[np.minimum(places, len(large) - 1)] == small).sum())
    return common / (len(one) + len(other) - common)


def gram_sets(texts: Iterable[str], ngram: int = 5) -> Iterator[Hashes]:
    """Yield the set of n-grams of each text, as sorted hashes without repetition."""
    for batch, words, bounds in hash_batches(texts):
        grams, text_of_gram = _batch_grams(words, bounds, ngram)
        places = np.searchsorted(text_of_gram, np.arange(len(batch) + 1))
        for row in range(len(batch)):
            yield np.unique(grams[places[row] : places[row + 1]])
