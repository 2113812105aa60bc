"""Measure generated stories: words that exist, text copied from train, agreement by the grammar of the sample corpus.

Pure functions on strings. Words are compared lower-cased and without punctuation. A share is None where there was
nothing to measure, as with an untrained model that writes no noun at all.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from ..checks import ensure
from .agreement import agreement_pairs

_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
COPY_NGRAM_WORDS = 8
"""Length of the word runs that count as copied; the one the project's demo reports."""


def story_words(text: str) -> list[str]:
    """Return the words of a text, lower-cased, hyphenated words whole, punctuation and digits dropped."""
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def check_agreement(text: str) -> tuple[int, int]:
    """Return (pairs that agree, pairs checked) of a Portuguese text.

    Only words of the sample corpus are known; what the grammar cannot decide is not counted.

    Example:
        >>> check_agreement("A menina viu um casa pequena.")
        (2, 3)
    """
    verdicts = [pair.agrees for pair in agreement_pairs(text)]
    return sum(verdicts), len(verdicts)


def _search_train(
    train_texts: Iterable[str], wanted_words: set[str], wanted_ngrams: set[tuple[str, ...]], n: int
) -> tuple[set[str], set[tuple[str, ...]]]:
    """Return which of the wanted words and n-grams occur in train.

    One pass over train, and only what the samples hold is kept in memory.
    """
    words_found: set[str] = set()
    ngrams_found: set[tuple[str, ...]] = set()
    for text in train_texts:
        words = story_words(text)
        words_found.update(wanted_words.intersection(words))
        if wanted_ngrams:
            ngrams_found.update(wanted_ngrams.intersection(_ngrams(words, n)))
    return words_found, ngrams_found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def copied_ngrams(samples: Sequence[str], train_texts: Iterable[str], n: int = COPY_NGRAM_WORDS) -> float | None:
    """Return the share of the samples' word n-grams that occur in a train text, or None if no sample has n words.

    Raises:
        InputError: `n` is below 1.
    """
    ensure(n >= 1, f"n={n}: must be 1 or more words. Use {COPY_NGRAM_WORDS}.")
    ngrams = [ngram for sample in samples for ngram in _ngrams(story_words(sample), n)]
    _, found = _search_train(train_texts, set(), set(ngrams), n)
    return _share(sum(ngram in found for ngram in ngrams), len(ngrams))


def lexicon_share(samples: Sequence[str], train_texts: Iterable[str]) -> float | None:
    """Return the share of the samples' words that occur anywhere in train, or None if the samples have no words."""
    words = [word for sample in samples for word in story_words(sample)]
    found, _ = _search_train(train_texts, set(words), set(), COPY_NGRAM_WORDS)
    return _share(sum(word in found for word in words), len(words))


def story_report(samples: Sequence[str], train_texts: Iterable[str]) -> dict[str, float | int | None]:
    """Return the three shares of the samples (0 to 1, None where nothing could be checked) and their counts.

    Args:
        samples: generated texts, without special tokens.
        train_texts: the texts the model was trained on; read once.

    Returns:
        `lexicon_share`, `copied_share`, `agreement_share`, and `num_samples`, `num_words`, `num_ngrams`,
        `num_agreement_pairs`.
    """
    documents = [story_words(sample) for sample in samples]
    words = [word for document in documents for word in document]
    ngrams = [ngram for document in documents for ngram in _ngrams(document, COPY_NGRAM_WORDS)]
    known, copied = _search_train(train_texts, set(words), set(ngrams), COPY_NGRAM_WORDS)
    checks = [check_agreement(sample) for sample in samples]
    num_agree, num_pairs = sum(agree for agree, _ in checks), sum(pairs for _, pairs in checks)
    return {
        "lexicon_share": _share(sum(word in known for word in words), len(words)),
        "copied_share": _share(sum(ngram in copied for ngram in ngrams), len(ngrams)),
        "agreement_share": _share(num_agree, num_pairs),
        "num_samples": len(samples),
        "num_words": len(words),
        "num_ngrams": len(ngrams),
        "num_agreement_pairs": num_pairs,
    }
