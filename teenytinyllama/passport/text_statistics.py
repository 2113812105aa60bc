"""Statistics of a corpus: lengths, varieties, topics, years, and whom its texts name. Counts of shards add up."""

import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from ..cleaning.topic import topic_of
from .people import find_groups, find_professions

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_EXAMPLES, _WORDS_AROUND = 3, 8  # kept of each group and profession; words to both sides
_FIRST_YEAR, _LAST_YEAR = 1500, 2100
_YEAR = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d)(?!\d)")
_ISO_DATE = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d)-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])(?!\d)")
_YEAR_KEYS = ("year", "ano", "date", "data", "published", "created")
# The heading of an act, a line in capitals: `LEI Nº 7.282, DE 11 DE DEZEMBRO DE 1984`.
_ACT = re.compile(
    r"(?m)^\W*(?:LEI|DECRETO|MEDIDA|EMENDA|PORTARIA|RESOLUÇÃO|ATO)\b[^\n]{0,80}?(?i:\bde\s+\d{1,2}\W{0,3}º?\s*de\s+"
    r"[a-zç]{4,9}\s+de)\s+(1[5-9]\d\d|20\d\d)\b"
)
_HEADING_CHARACTERS = 600


def fields_of(metadata: Any) -> dict[str, Any]:
    """Return the keys of a metadata cell in lower case: of a mapping, its JSON, or text as `source: x; year: 1999`."""
    if isinstance(metadata, str):
        with contextlib.suppress(ValueError, RecursionError):  # text that is no JSON
            metadata = json.loads(metadata)
    if isinstance(metadata, dict):
        return {str(key).lower(): value for key, value in metadata.items()}
    pairs = (part.partition(":") for part in str(metadata or "").split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def year_of(fields: Mapping[str, Any], text: str) -> int:
    """Return the year of a document, or 0 where it is not known.

    Args:
        fields: of its metadata: `year`, `date` and their like; a `document` whose name holds a date as YYYY-MM-DD.
        text: its beginning; of a law the heading says the date.

    >>> year_of({"date": "3 de maio de 1999"}, ""), year_of({}, "LEI Nº 1, DE 2 DE MAIO DE 1984."), year_of({}, "1984")
    (1999, 1984, 0)
    """
    for key in _YEAR_KEYS:
        if match := _YEAR.search(str(fields.get(key) or "")):
            return int(match[1])
    if match := _ISO_DATE.search(str(fields.get("document") or "")):
        return int(match[1])
    if match := _ACT.search(text[:_HEADING_CHARACTERS]):
        return int(match[1])
    return 0


class TextStatistics:
    """Counts over the documents of one source or of a corpus; `add` takes one, `merge` those of another shard."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.documents = self.words = self.bytes = self.tokens = 0
        self.varieties: Counter[str] = Counter()
        self.licenses: Counter[str] = Counter()
        self.topics: Counter[str] = Counter()  # tokens of the documents on each
        self.years: Counter[str] = Counter()  # documents of each decade that is known
        self.lengths: Counter[int] = Counter()  # by the power of two below the number of words
        self.professions: dict[str, Counter[str]] = defaultdict(Counter)
        self.groups: Counter[str] = Counter()  # mentions
        self.group_documents: Counter[str] = Counter()  # documents with a mention
        self.group_toxic: Counter[str] = Counter()  # documents with a mention that were dropped as toxic
        self.examples: dict[str, list[str]] = defaultdict(list)  # of groups and professions

    def add(self, document: dict[str, Any]) -> None:
        """Count a document with `text`, `variety`, `license`, `year` and `tokens`."""
        text = document["text"]
        words = _WORD.findall(text.lower())
        self.documents += 1
        self.words += len(words)
        self.bytes += len(text.encode())
        self.tokens += document["tokens"]
        self.varieties[document["variety"] or "not asked"] += 1
        self.licenses[document["license"]] += 1
        self.topics[topic_of(text).name] += document["tokens"]
        if document.get("year"):
            self.years[str(document["year"] // 10 * 10)] += 1
        self.lengths[max(0, len(words).bit_length() - 1)] += 1
        for place, name, who in find_professions(words):
            self.professions[name][who] += 1
            if who != "not said":
                self._keep_example(f"{name}, {who}", words, place)
        named = Counter[str]()
        for place, group in find_groups(words):
            named[group] += 1
            if named[group] == 1:  # one example a document, so that examples come from several
                self._keep_example(group, words, place)
        self.groups.update(named)
        self.group_documents.update(dict.fromkeys(named, 1))

    def _keep_example(self, kind: str, words: list[str], place: int) -> None:
        if len(self.examples[kind]) < _EXAMPLES:
            around = words[max(0, place - _WORDS_AROUND) : place + _WORDS_AROUND + 1]
            self.examples[kind].append(" ".join(around))

    def add_toxic(self, text: str) -> None:
        """Count the groups that a document names which is dropped as toxic."""
        words = _WORD.findall(text.lower())
        self.group_toxic.update(dict.fromkeys((group for _, group in find_groups(words)), 1))

    def merge(self, other: "TextStatistics") -> None:
        """Add the counts of another shard; of examples the first ones stay."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, int):
                setattr(self, name, mine + value)
            elif isinstance(value, Counter):
                mine.update(value)
        for profession, counts in other.professions.items():
            self.professions[profession].update(counts)
        for group, examples in other.examples.items():
            self.examples[group] = (self.examples[group] + examples)[:_EXAMPLES]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TextStatistics":
        """Return the counts that `to_json` gave."""
        made = cls()
        for name, value in values.items():
            known = getattr(made, name)
            if name == "lengths":
                known.update({int(power): number for power, number in value.items()})
            elif name == "professions":
                for profession, counts in value.items():
                    known[profession] = Counter(counts)
            elif isinstance(known, dict):
                known.update(value)
            else:
                setattr(made, name, value)
        return made
