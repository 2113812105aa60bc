"""How near a text lies to the instruction data: TF-IDF over five letters at a time, cosine similarity.

Letters rather than words because Portuguese inflects: with half of the endings changed, pieces of words still find the
text (the measurement is in docs/lab-log.md).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..checks import ensure
from ..data.examples import SPLITS
from ..data.input_files import SAMPLE, resolve_files
from ..data.instructions import DUPLICATE, Counts, read_conversations
from ..data.readers import RECORD_SUFFIXES, read_records
from ..data.sample import sample_conversations

Side = Literal["answers", "questions"]

# A hash instead of a vocabulary: what the data lacks still counts against a text, and nothing grows with the data but
# the matrix itself.
_FEATURES = 1 << 20
_CHUNK_TEXTS = 1000
SMALLEST_PERCENT = 5.0  # below, texts share little more than "de" and "que"


@dataclass(frozen=True)
class Pair:
    """A question and its answer in the instruction data, and the source they count under."""

    question: str
    answer: str
    source: str


@dataclass(frozen=True)
class Match:
    """A pair that is similar to a text.

    Attributes:
        percent: cosine similarity, 0 to 100.
        pair: the first pair with that text.
        others: how many more pairs have the same text.
    """

    percent: float
    pair: Pair
    others: int


def read_pairs(inputs: list[str]) -> tuple[list[Pair], Counter[str]]:
    """Return every question with its answer, and how many rows are left out, by reason.

    Args:
        inputs: files, folders, globs or pinned Hub datasets with rows of conversations.

    Raises:
        InputError: a file cannot be read, or none of the rows is a conversation.
    """
    counts = Counts()
    pairs = []
    for _, conversation, _ in read_conversations(_rows(inputs), counts, validation_fraction=0.0):
        turns = [message["content"] for message in conversation.messages if message["role"] != "system"]
        pairs += [Pair(turns[i], turns[i + 1], conversation.source) for i in range(0, len(turns), 2)]
    reasons = "; ".join(
        f"{n:,} x {reason}, first {counts.first_dropped[reason]}" for reason, n in counts.dropped.items()
    )
    ensure(
        pairs,
        f"instructions={', '.join(inputs)}: hold no conversation ({reasons or 'no row at all'}). Give rows of "
        "conversations, of messages, of instruction and output, or of prompt and completion.",
    )
    counts.dropped.pop(DUPLICATE, None)  # nothing is lost with those
    return pairs, counts.dropped


def _rows(inputs: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if SAMPLE in inputs:
        for part in SPLITS:
            for number, row in enumerate(sample_conversations(part), start=1):
                yield f"{SAMPLE}:{number}", SAMPLE, row
    for file in resolve_files("instructions", inputs, RECORD_SUFFIXES):
        for number, record in enumerate(read_records("instructions", file.path), start=1):
            yield f"{file.name}:{number}", file.path.name.split(".")[0], record


class SearchIndex:
    """Finds the pairs whose answers, or whose questions, are most similar to a text."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        """Index the pairs; equal texts are indexed once."""
        self.pairs = list(pairs)
        self._sides: dict[Side, _SideIndex] = {
            "answers": _SideIndex([pair.answer for pair in self.pairs]),
            "questions": _SideIndex([pair.question for pair in self.pairs]),
        }

    def nearest(self, text: str, side: Side = "answers", number: int = 5) -> list[Match]:
        """Return the most similar pairs, best first; none below `SMALLEST_PERCENT`, and none for an empty text.

        Args:
            text: any text.
            side: compare it with the answers or with the questions.
            number: most results.
        """
        found = self._sides[side].nearest(text, number)
        return [Match(percent, self.pairs[place], others) for percent, place, others in found]


class _SideIndex:
    def __init__(self, texts: list[str]) -> None:
        import numpy
        from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

        self._places: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            self._places.setdefault(text, []).append(place)
        self._texts = list(self._places)
        self._vectorizer = HashingVectorizer(
            n_features=_FEATURES, analyzer="char_wb", ngram_range=(5, 5), strip_accents="unicode", norm=None,
            alternate_sign=False, dtype=numpy.float32,
        )  # fmt: skip
        self._weights = TfidfTransformer(sublinear_tf=True)
        self._matrix = self._weights.fit_transform(self._count())

    def _count(self) -> Any:
        """Return the counts of letters of all texts, with a progress bar: 100,000 long answers take minutes."""
        from scipy.sparse import vstack
        from tqdm import tqdm

        starts = tqdm(range(0, len(self._texts), _CHUNK_TEXTS), desc="indexing", unit="k", leave=False, disable=None)
        return vstack([self._vectorizer.transform(self._texts[i : i + _CHUNK_TEXTS]) for i in starts], format="csr")

    def nearest(self, text: str, number: int) -> list[tuple[float, int, int]]:
        """Return (percent, place of the first pair, number of further pairs) each."""
        import numpy

        query = self._weights.transform(self._vectorizer.transform([text])).toarray().ravel()
        percents = 100 * (self._matrix @ query)
        best = numpy.argsort(-percents, kind="stable")[:number]
        found = []
        for row in best:
            percent = min(float(percents[row]), 100.0)  # 100.00001 by rounding
            if percent >= SMALLEST_PERCENT:
                places = self._places[self._texts[row]]
                found.append((percent, places[0], len(places) - 1))
        return found
