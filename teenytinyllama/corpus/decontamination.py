"""Decontamination: passages of evaluation items are found in a text and cut out, with what stands around them.

A passage of a text is contaminated by an item of an evaluation set if, word by word (see word_hashes.py: case, accents
and punctuation make no difference),

* it shares a run of 13 words with it, as Brown et al. (2020, GPT-3, appendix C) have it, or of 8 words with an item of
  fewer than 80 words, or the whole of an item of fewer than 8 words; or
* 13 of its words stand at the same places as in the item, with at most one other word for each two of them: what
  is left of a copy in which words were changed. Of an item of fewer than 22 words, 0.6 of its words are enough, but
  never fewer than 8.

Both are found from seeds: runs of 4 words of an item, looked up for the whole text at once. Two seeds at the same
distance from the beginning of the item are a candidate; around it, the words of text and item are compared one by one,
and the best stretch is the local alignment without gaps (Smith and Waterman 1981): 1 for a word that is the same, -2
for another one. An inserted or missing word begins a new stretch.

Some of it is chance: laws begin with words that an exam quotes. Like Brown et al., who ignore what more than ten
documents share ("common cultural phrases, legal boilerplate"), words of an item do not count that more than
`most_documents` documents of the corpus hold. Documents that hold at least half of an item are not counted for this, so
that a popular question does not pass for a phrase:

    per shard   count_phrases(texts) -> how many documents hold each word of each item; added up over all shards
    once        ignore_phrases(counts)
    per shard   decontaminate(text, index)
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure, near_name
from ..cleaning import Drop
from ..cleaning.word_hashes import HashedWords, Hashes, Places, hash_batches, hash_runs, hash_words

_SEED_WORDS = 4
_MOST_ITEMS_OF_A_SEED = 16  # a phrase of more items, such as "assinale a alternativa correta", points to the first
_GAP_WORDS = 24  # between seeds of one candidate, and how far beyond them words are compared
_MISMATCH = -2
_CHUNK_WORDS = 1 << 20  # of candidates that are compared at once: about 60 MB
_JOINED_WORDS = 3  # passages of one item with so few words between them are one
_LONGEST_STEP = 60  # characters from a cut to white space


@dataclass
class DecontaminationConfig:
    """What counts as contaminated, and what is removed."""

    remove: Literal["passage", "document"] = field(
        default="passage", metadata={"help": "remove the passage with what stands around it, or the whole document"}
    )
    margin: int = field(default=200, metadata={"help": "characters removed before and after a passage"})
    ngram: int = field(default=13, metadata={"help": "words in a row that text and item share"})
    short_ngram: int = field(default=8, metadata={"help": "the same for items of fewer than short_item words"})
    short_item: int = field(default=80, metadata={"help": "an item of fewer words is short"})
    most_documents: int | None = field(
        default=10,
        metadata={"help": "words of an item that more documents hold, which hold less than half of it, do not count"},
    )
    least_words: int = field(
        default=5, metadata={"help": "items of fewer words are not looked for: they stand in any text by chance"}
    )

    def check(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is out of its range.
        """
        ensure(self.remove in ("passage", "document"), f"remove={self.remove}: must be passage or document.")
        ensure(0 <= self.margin <= 10**6, f"margin={self.margin}: must be from 0 to 1000000 characters.")
        for name in ("ngram", "short_ngram", "least_words"):
            value = getattr(self, name)
            ensure(
                _SEED_WORDS < value <= 1000,
                f"{name}={value}: must be from {_SEED_WORDS + 1} to 1000 words. Leave it out for the default.",
            )
        ensure(
            self.short_ngram <= self.ngram,
            f"short_ngram={self.short_ngram}: must be at most ngram={self.ngram}: a short item has fewer words.",
        )
        ensure(
            self.most_documents is None or self.most_documents >= 0,
            f"most_documents={self.most_documents}: must be 0 or more, or null to count all words.",
        )
        ensure(self.short_item >= 0, f"short_item={self.short_item}: must be 0 or more words.")


@dataclass(frozen=True)
class Passage:
    """A contaminated passage of a text.

    Attributes:
        start: place of its first character in the text.
        end: place behind its last character.
        set: the evaluation set.
        item: place of the item in its set.
    """

    start: int
    end: int
    set: str
    item: int


def item_texts(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return what is looked for of a row of an evaluation set: a text for each column.

    Args:
        row: of the set.
        columns: in the order in which they stand in the benchmark: question, choices. The texts in a list or in a
            mapping make one text.

    Raises:
        InputError: the row has no such column.
    """

    def collect(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from collect(value.values())
        elif isinstance(value, Iterable):
            for inner in value:
                yield from collect(inner)

    for column in columns:
        if column not in row:
            raise InputError(f"columns={column}: no such column.{near_name(column, row)} Columns: {', '.join(row)}.")
    return ["\n".join(collect(row[column])) for column in columns]


class EvaluationIndex:
    """All items of evaluation sets, ready to be found in texts.

    Attributes:
        config: what counts as contaminated.
        sizes: for each set, how many items it has.
        left_out: for each set, how many of them have too few words to be looked for.
    """

    def __init__(self, config: DecontaminationConfig, words: Hashes, starts: Places, names: Places) -> None:
        self.config = config
        self._words, self._starts = words, starts
        self._set_of_item, self._place_in_set, least_run = names
        lengths = np.diff(starts)
        self._least_run = np.minimum(least_run, lengths)
        share = np.ceil(0.6 * lengths).astype(np.int64)
        self._least_matches = np.clip(share, config.short_ngram, config.ngram)
        self._counted = np.ones(len(words), dtype=bool)
        self._index_seeds()
        self._set_names: list[str] = []
        self.sizes: dict[str, int] = {}
        self.left_out: dict[str, int] = {}

    @classmethod
    def from_sets(
        cls, sets: Mapping[str, Iterable[Sequence[str]]], config: DecontaminationConfig | None = None
    ) -> "EvaluationIndex":
        """Index the items of sets.

        An item is looked for as a whole, its texts one after another. If it is long, its short texts are looked for
        apart too, so that a question is found without the passage that it is about.

        Args:
            sets: by name, the items of a set in order, each as its texts (see `item_texts`).
            config: the defaults if None.

        Raises:
            InputError: the config, or a set without items.
        """
        config = config or DecontaminationConfig()
        config.check()
        words: list[Hashes] = []
        names: list[tuple[int, int, int]] = []  # an item may be there more than once, with a text of its own
        sizes, left_out = dict.fromkeys(sets, 0), dict.fromkeys(sets, 0)
        for number, (name, items) in enumerate(sets.items()):
            for texts in _words_of_items(list(items)):
                wanted, least_run = _wanted_words(texts, config)
                words += wanted
                names += [(number, sizes[name], least_run)] * len(wanted)
                left_out[name] += not wanted
                sizes[name] += 1
            ensure(sizes[name], f"evaluation set {name}: has no items. Check its file and its columns.")
        starts = np.cumsum([0, *map(len, words)]).astype(np.int64)
        joined = np.concatenate(words) if words else np.empty(0, dtype=np.uint64)
        index = cls(config, joined, starts, np.array(names, dtype=np.int64).reshape(-1, 3).T)
        index._set_names, index.sizes, index.left_out = list(sets), sizes, left_out
        return index

    def _index_seeds(self) -> None:
        """Sort the runs of four words of all items, and mark them in a table that most other runs miss."""
        seeds = hash_runs(self._words, _SEED_WORDS)
        item = self._item_of(np.arange(len(self._words)))
        places = np.flatnonzero(item[: len(seeds)] == item[_SEED_WORDS - 1 :])
        order = places[np.argsort(seeds[places], kind="stable")]
        ordered = seeds[order]
        first = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
        self._seeds, self._seed_first = ordered[first], first
        self._seed_count = np.minimum(np.diff(first, append=len(ordered)), _MOST_ITEMS_OF_A_SEED)
        self._seed_places = order
        bits = max(10, int(np.ceil(np.log2(16 * max(1, len(first))))))
        self._shift = np.uint64(64 - bits)
        self._marked = np.zeros(1 << bits, dtype=bool)
        self._marked[self._seeds >> self._shift] = True

    def _item_of(self, places: Places) -> Places:
        return np.searchsorted(self._starts, places, side="right") - 1

    def count_phrases(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """Return for each word of all items how many of the texts hold it with a contaminated passage.

        Texts that hold at least half of an item are not counted for it, unless it has fewer than `short_ngram` words.
        """
        counts = np.zeros(len(self._words), dtype=np.int64)
        lengths = np.diff(self._starts)
        for text in texts:
            held: dict[int, set[int]] = {}
            for item, _, start, end in self._stretches(hash_words(text)):
                held.setdefault(item, set()).update(range(start, end))
            for item, places in held.items():
                if 2 * len(places) < lengths[item] or lengths[item] < self.config.short_ngram:
                    counts[list(places)] += 1
        return counts

    def ignore_phrases(self, counts: NDArray[np.int64]) -> int:
        """Let words of items not count that too many documents hold.

        Args:
            counts: the sum of what `count_phrases` gave for all texts of the corpus.

        Returns:
            how many words do not count.
        """
        if self.config.most_documents is not None:
            self._counted = counts <= self.config.most_documents
        return int((~self._counted).sum())

    def find_passages(self, text: str) -> list[Passage]:
        """Return the contaminated passages of a text, in order; those of different items may overlap."""
        words = hash_words(text)
        found: dict[int, list[tuple[int, int]]] = {}
        for item, first, begin, end in sorted(self._stretches(words)):
            of_item, behind = found.setdefault(item, []), first + end - begin
            if of_item and first <= of_item[-1][1] + _JOINED_WORDS:
                of_item[-1] = of_item[-1][0], max(behind, of_item[-1][1])
            else:
                of_item.append((first, behind))
        return sorted(
            (
                Passage(
                    int(words.starts[start]),
                    int(words.ends[end - 1]),
                    self._set_names[self._set_of_item[item]],
                    int(self._place_in_set[item]),
                )
                for item, stretches in found.items()
                for start, end in stretches
            ),
            key=lambda passage: (passage.start, passage.end, passage.set, passage.item),
        )

    def _candidates(self, words: HashedWords) -> tuple[Places, Places, Places]:
        """Return stretches to compare.

        Returns:
            (2, stretches) words of the text where each begins and ends; its item; and the distance of a word in the
            text from the same word among those of all items.
        """
        grams = hash_runs(words.hashes, _SEED_WORDS)
        hits = np.flatnonzero(self._marked[grams >> self._shift])
        seed = np.searchsorted(self._seeds, grams[hits])
        seed = np.minimum(seed, max(0, len(self._seeds) - 1))
        same = self._seeds[seed] == grams[hits] if len(self._seeds) else np.zeros(len(hits), dtype=bool)
        hits, seed = hits[same], seed[same]
        counts = self._seed_count[seed]
        place = self._seed_places[_ranges(self._seed_first[seed], counts)]
        in_text = np.repeat(hits, counts)
        shift = in_text - place
        order = np.lexsort((in_text, shift))
        in_text, shift = in_text[order], shift[order]
        item = self._item_of(place[order])
        new = (np.diff(shift) != 0) | (np.diff(in_text) > _GAP_WORDS) | (np.diff(item) != 0)
        first = np.flatnonzero(np.concatenate([[True], new])[: len(item)])
        last = np.append(first[1:], len(item)) - 1
        several = last > first
        first, last = first[several], last[several]
        shift, item = shift[first], item[first]
        start = np.maximum(in_text[first] - _GAP_WORDS, np.maximum(0, self._starts[item] + shift))
        end = in_text[last] + _SEED_WORDS + _GAP_WORDS
        end = np.minimum(end, np.minimum(len(words.hashes), self._starts[item + 1] + shift))
        return np.stack([start, end]), item, shift

    def _stretches(self, words: HashedWords) -> Iterator[tuple[int, int, int, int]]:
        """Yield contaminated stretches: item, first word in the text, first and last among the words of all items.

        The last is the one behind the stretch.
        """
        (starts, ends), items, shifts = self._candidates(words)
        lengths = ends - starts
        chunks = np.cumsum(lengths) // _CHUNK_WORDS
        bounds = np.flatnonzero(np.diff(chunks, prepend=-1, append=-1))
        for first, last in itertools.pairwise(bounds):
            chunk = slice(first, last)
            yield from self._compare(words, starts[chunk], lengths[chunk], items[chunk], shifts[chunk])

    def _compare(
        self, words: HashedWords, starts: Places, lengths: Places, items: Places, shifts: Places
    ) -> Iterator[tuple[int, int, int, int]]:
        in_text = _ranges(starts, lengths)
        in_items = in_text - np.repeat(shifts, lengths)
        match, counted = words.hashes[in_text] == self._words[in_items], self._counted[in_items]
        candidate = np.repeat(np.arange(len(items)), lengths)
        for begin, end in (
            *_runs(match & counted, candidate, self._least_run[items]),
            *_aligned(match, counted, candidate, self._least_matches[items]),
        ):
            start = int(in_items[begin])
            yield int(items[candidate[begin]]), int(in_text[begin]), start, start + end - begin


def _words_of_items(items: list[Sequence[str]]) -> Iterator[list[Hashes]]:
    """Yield the words of each text of each item."""
    batches = hash_batches(text for texts in items for text in texts)
    each = (words[start:end] for _, words, bounds in batches for start, end in itertools.pairwise(bounds))
    for texts in items:
        yield list(itertools.islice(each, len(texts)))


def _wanted_words(texts: list[Hashes], config: DecontaminationConfig) -> tuple[list[Hashes], int]:
    """Return what is looked for of an item, and the words in a row that are enough (or all, where there are fewer).

    These are its words, and if it is long also its short texts of enough words.
    """
    whole = np.concatenate([*texts, np.empty(0, dtype=np.uint64)])
    if len(whole) < config.least_words:
        return [], config.short_ngram
    if len(whole) < config.short_item:
        return [whole], config.short_ngram
    short = [words for words in texts if config.short_ngram <= len(words) < config.short_item]
    return [whole, *short], config.ngram


def _ranges(starts: Places, lengths: Places) -> Places:
    """Return the numbers from each start on, so many as each length, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _runs(match: NDArray[np.bool_], candidate: Places, least: Places) -> Iterator[tuple[int, int]]:
    """Yield runs of equal words that are long enough: first place and the one behind the last."""
    edge = np.concatenate([[True], (np.diff(match) != 0) | (np.diff(candidate) != 0), [True]])
    edges = np.flatnonzero(edge)
    begins, ends = edges[:-1], edges[1:]
    long = match[begins] & (ends - begins >= least[candidate[begins]])
    yield from zip(begins[long].tolist(), ends[long].tolist(), strict=True)


def _aligned(
    match: NDArray[np.bool_], counted: NDArray[np.bool_], candidate: Places, least: Places
) -> Iterator[tuple[int, int]]:
    """Yield stretches whose equal words outnumber the others by more than two to one, and are enough.

    The score of a place is the best sum of a stretch that ends there. Since sums of candidates are put far apart, the
    lowest sum so far begins anew with each candidate.
    """
    score = np.where(match, 1, _MISMATCH) * counted
    total = np.cumsum(score) - candidate * (4 * len(match) + 4)
    before = total - score
    lowest = np.minimum.accumulate(before)
    is_start = before == lowest  # no stretch that ends here is worth carrying on
    begins = np.flatnonzero(is_start)
    heights = total - lowest
    peaks = np.maximum.reduceat(heights, begins)
    piece = np.cumsum(is_start) - 1
    at_peak = np.flatnonzero(heights == peaks[piece])
    at_peak = at_peak[np.diff(piece[at_peak], prepend=-1) != 0]  # the first place of the peak
    equal = np.concatenate([[0], np.cumsum(match & counted)])
    matches = equal[at_peak + 1] - equal[begins]
    enough = (peaks > 0) & (matches >= least[candidate[begins]])
    yield from zip(begins[enough].tolist(), (at_peak[enough] + 1).tolist(), strict=True)


def cut_passages(text: str, passages: Sequence[Passage], margin: int) -> str:
    """Return a text without passages and without `margin` characters before and after each, cut at white space.

    What is left before and after a cut stands in paragraphs of its own.
    """
    kept: list[str] = []
    place = 0
    for start, end in cut_ranges(text, passages, margin):
        kept.append(text[place:start])
        place = end
    kept.append(text[place:])
    return "\n\n".join(part for part in (part.strip() for part in kept) if part) if passages else text


def cut_ranges(text: str, passages: Sequence[Passage], margin: int) -> list[tuple[int, int]]:
    """Return start and end of what `cut_passages` cuts, in order; cuts that touch are one."""
    ranges: list[tuple[int, int]] = []
    for passage in sorted(passages, key=lambda passage: passage.start):
        start, end = max(0, passage.start - margin), min(len(text), passage.end + margin)
        place = ranges[-1][1] if ranges else 0
        end = max(place, _space_after(text, end))
        if ranges and start <= place:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((_space_before(text, start), end))
    return ranges


def _space_before(text: str, place: int) -> int:
    for step in range(min(_LONGEST_STEP, place)):
        if text[place - step - 1].isspace():
            return place - step
    return place if place > _LONGEST_STEP else 0


def _space_after(text: str, place: int) -> int:
    for step in range(min(_LONGEST_STEP, len(text) - place)):
        if text[place + step].isspace():
            return place + step
    return place if len(text) - place > _LONGEST_STEP else len(text)


def decontaminate(text: str, index: EvaluationIndex, whole: bool = False) -> tuple[str, Drop | None, dict[str, int]]:
    """Return a text without the passages of evaluation items.

    Args:
        text: of a document.
        index: of the items.
        whole: a document with a passage is dropped, as with `remove: document`: one that makes no sense with a cut.

    Returns:
        the text that is left; a verdict if the document is to be dropped, because nothing is left of it or because
        whole documents are to be removed; and for each evaluation set found, its number of passages.
    """
    passages = index.find_passages(text)
    counts: dict[str, int] = {}
    for passage in passages:
        counts[passage.set] = counts.get(passage.set, 0) + 1
    if not passages:
        return text, None, counts
    whole = whole or index.config.remove == "document"
    left = "" if whole else cut_passages(text, passages, index.config.margin)
    return left, None if left else Drop("contamination", len(passages), 0), counts
