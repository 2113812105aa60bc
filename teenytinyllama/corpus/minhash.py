"""MinHash signatures of texts, and the true similarity that they estimate.

The similarity of two texts is the Jaccard similarity of their sets of 5-grams of words, |A and B| / |A or B|. A
signature (Broder 1997) holds, for each of many random orders, the first 5-gram of the text: two texts agree in one
with the probability of their similarity. Signatures are cut into bands, and texts that agree in a whole band are
proposed as near duplicates (Leskovec et al., Mining of Massive Datasets, chapter 3.4): with 14 bands of 8 rows, as
FineWeb-2 (Penedo et al. 2025) has them, a pair of similarity s is proposed with probability 1 - (1 - s^8)^14, which is
0.77 at 0.75, 0.92 at 0.8 and 0.99 at 0.85.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..checks import ensure
from ..cleaning.word_hashes import Hashes, Places, hash_batches, hash_runs, mix, odd_constants

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


def signatures(texts: Iterable[str], config: DuplicatesConfig | None = None) -> Hashes:
    """Return the MinHash signatures of texts.

    Args:
        texts: any number, read once.
        config: bands, rows and words of an n-gram; the defaults if None.

    Returns:
        uint64 of (texts, bands * rows); a text without words has the largest number in every column.
    """
    config = config or DuplicatesConfig()
    parts = [_batch_signatures(words, bounds, config) for _, words, bounds in hash_batches(texts)]
    return np.concatenate(parts) if parts else np.empty((0, config.bands * config.rows), dtype=np.uint64)


def fingerprints(texts: Iterable[str], config: DuplicatesConfig | None = None) -> Hashes:
    """Return what `find_duplicates` needs of texts: a hash of each one's words and a key for each band.

    Args:
        texts: any number, read once.
        config: as for `signatures`.

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
            keys = band_keys(_batch_signatures(words, bounds, config), config)
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


def _batch_signatures(words: Hashes, bounds: Places, config: DuplicatesConfig) -> Hashes:
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
