"""How much of a text its repeated n-grams of words make, after Rae et al. 2021 (arXiv 2112.11446, table A1).

Each function gives the exact share where it exceeds the limit, and else a number that does not exceed it: most texts
are far from every limit, which a bound shows without the exact count.
"""

import numpy as np
from numpy.typing import NDArray

from .measured_text import MeasuredText


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
        first = int(np.isin(hashes, ordered[starts[counts == most]]).argmax())
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
