"""Instruction data: rows become distinct conversations, each on one side of a split, with counts of what is left out.

`turns` says which forms a row may have. A conversation is: optional system text, then user and assistant in turn,
ending with an answer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..manifest import sha256_json
from .sources import Split, is_held_out, parse_metadata
from .turns import Message, RowError, read_turns

# Characters from which on an equal answer is no chance: "A resposta é 73." is shared by questions that differ.
_TELLING_ANSWER = 40

_MOST_REASONS = 20  # told apart by what was found, such as each unknown role

DUPLICATE = "a duplicate"
TOO_LONG = "longer than the context"


@dataclass(frozen=True)
class Conversation:
    """Checked turns, the source they count under, and the licence they carry (empty when unknown)."""

    messages: list[Message]
    source: str = ""
    license: str = ""

    def fingerprint(self) -> str:
        """Return a hash of the turns; equal but for white space and case is equal."""
        return sha256_json([[message["role"], _folded(message["content"])] for message in self.messages])

    def first_question(self) -> str:
        """Return the first question, folded: conversations that begin with it stay on one side of the split."""
        return _folded(next(message["content"] for message in self.messages if message["role"] == "user"))

    def telling_texts(self) -> list[str]:
        """Return the texts, folded, by which another conversation is known to be of the same family."""
        answers = [_folded(message["content"]) for message in self.messages if message["role"] == "assistant"]
        return [self.first_question(), *(answer for answer in answers if len(answer) >= _TELLING_ANSWER)]


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().casefold()


def read_origin(row: dict[str, Any], default_source: str) -> tuple[str, str]:
    """Return (source, licence) of a row: of its own columns, else of its `metadata`; an empty licence when unknown."""
    source, license = parse_metadata(row.get("metadata"), default_source)
    own = {name: row[name] for name in ("source", "license", "licence") if isinstance(row.get(name), str)}
    own_source, own_license = parse_metadata(own, source)
    return own_source, own_license or license


@dataclass
class Counts:
    """What became of the rows: conversations kept by split and source, and rows left out by reason.

    Attributes:
        kept: conversations by split, then source.
        dropped: rows (or, when split for length, pairs of turns) by reason.
        first_dropped: by reason, the first row it happened to, as `file:row`.
        unused: rows by the name of a filled column that no turn was made of (`turn.name` inside a turn).
    """

    kept: dict[str, Counter[str]] = field(default_factory=lambda: {"train": Counter(), "validation": Counter()})
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out.

        Reasons may end with what was found, `reason: 'Maria'`; when there are many, the ends of further ones go.
        """
        if reason not in self.dropped and len(self.dropped) >= _MOST_REASONS:
            reason = reason.partition(":")[0]
        self.dropped[reason] += 1
        self.first_dropped.setdefault(reason, place)

    def keep(self, split: str, conversation: Conversation) -> None:
        """Count a conversation."""
        self.kept[split][conversation.source] += 1


def read_conversations(
    rows: Iterable[tuple[str, str, dict[str, Any]]], counts: Counts, validation_fraction: float
) -> Iterator[tuple[Split, Conversation, str]]:
    """Yield (split, conversation, place) of the rows that are conversations, each once; count the others.

    Conversations that share a first question or a long answer stay on one side: instruction sets ask one question in
    many ways, and a model that has learnt the answer by heart would look as if it had understood it.

    Args:
        rows: (place, default source, row) each.
        counts: filled while reading: what is left out, with its reason. What is kept is counted by who keeps it.
        validation_fraction: share of the families (see above) that are held out, by a hash of one of their texts, so
            that the split does not depend on the order of the rows; with two families or more, one at least.
    """
    found: list[tuple[Conversation, str]] = []
    families = _Families()
    for conversation, place in _distinct(rows, counts):
        found.append((conversation, place))
        families.join(conversation.telling_texts())
    names = [families.name(conversation.first_question()) for conversation, _ in found]
    held_out = held_out_texts(names, validation_fraction)
    for name, (conversation, place) in zip(names, found, strict=True):
        yield "validation" if name in held_out else "train", conversation, place


def held_out_texts(texts: Iterable[str], fraction: float) -> set[str]:
    """Return those of the texts that are held out, by a hash of each; of two or more that differ, at least one.

    Which one, where the fraction would hold out none or all, is decided by the same texts alone, in whatever order.
    """
    distinct = set(texts)
    held_out = {text for text in distinct if is_held_out(text, fraction)}
    if held_out == distinct:  # something has to be left to learn from
        held_out.discard(max(distinct, key=sha256_json, default=""))
    if not held_out and fraction > 0 and len(distinct) > 1:
        held_out.add(min(distinct, key=sha256_json))
    return held_out


class _Families:
    """Texts joined into families (union-find); a family is named by the least of its texts."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, texts: list[str]) -> None:
        """Put the texts, and all that share a family with them, into one family."""
        names = sorted({self.name(text) for text in texts})
        for name in names:
            self._parents[name] = names[0]

    def name(self, text: str) -> str:
        """Return the name of the text's family; a text that is new is one of its own."""
        path = []
        while (parent := self._parents.get(text, text)) != text:
            path.append(text)
            text = parent
        for passed in path:  # so that the next way is short
            self._parents[passed] = text
        return text


def _distinct(rows: Iterable[tuple[str, str, dict[str, Any]]], counts: Counts) -> Iterator[tuple[Conversation, str]]:
    """Yield (conversation, place) of the rows that are conversations, each once; count the others."""
    seen: set[str] = set()
    for place, default_source, row in rows:
        try:
            turns = read_turns(row)
        except RowError as error:
            counts.drop(str(error), place)
            continue
        conversation = Conversation(turns.messages, *read_origin(row, default_source))
        if (fingerprint := conversation.fingerprint()) in seen:
            counts.drop(DUPLICATE, place)
            continue
        seen.add(fingerprint)
        counts.unused.update(turns.unused)
        yield conversation, place


def split_to_fit(conversation: Conversation, fits: Any) -> tuple[list[Conversation], int]:
    """Return parts of a conversation that are short enough, and how many questions with their answers are left out.

    Turns stay together as long as they fit; a system text is repeated in every part. A question whose answer follows in
    another part would be useless, so both go together.

    Args:
        conversation: the whole.
        fits: returns whether a list of messages is short enough.
    """
    system = [message for message in conversation.messages if message["role"] == "system"]
    turns = conversation.messages[len(system) :]
    parts: list[Conversation] = []
    left_out, current = 0, list[Message]()
    for pair in (turns[place : place + 2] for place in range(0, len(turns), 2)):
        if fits([*system, *current, *pair]):
            current += pair
            continue
        if current:
            parts.append(replace(conversation, messages=[*system, *current]))
        current = pair if fits([*system, *pair]) else []
        left_out += not current
    if current:
        parts.append(replace(conversation, messages=[*system, *current]))
    return parts, left_out
