"""Instruction data: rows of many forms become checked conversations, with counts of what was left out and why.

A row is recognised by its keys:

* `messages` or `conversations`: a list of turns, `role`/`content` or (ShareGPT) `from`/`value`;
* `instruction`, optional `input` or `context`, `output` (Alpaca, Dolly);
* `prompt` and `completion`, `response` or `answer`: two texts, or two lists of turns.

A conversation is: optional system text, then user and assistant in turn, ending with an answer.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ..manifest import sha256_json
from .sources import Split, is_held_out, parse_metadata

Message = dict[str, str]

_ROLES = {"system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant",
          "gpt": "assistant", "bot": "assistant", "model": "assistant"}  # fmt: skip
# Characters from which on an equal answer is no chance: "A resposta é 73." is shared by questions that differ.
_TELLING_ANSWER = 40
TURN_KEYS = ("messages", "conversations", "conversation")
ANSWER_KEYS = ("completion", "response", "answer", "output")

UNKNOWN_FORM = "no known form"
NOT_TEXT = "a turn that is no text"
NOT_UNICODE = "a turn that is not valid Unicode"
UNKNOWN_ROLE = "a role other than system, user, assistant"
EMPTY_TURN = "an empty turn"
BAD_ORDER = "roles that do not alternate"
NO_ANSWER = "no answer at the end"
DUPLICATE = "a duplicate"
TOO_LONG = "longer than the context"


class RowError(ValueError):
    """A row that is no conversation; its text is the reason, the same for all rows of that kind."""


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


def read_conversation(row: dict[str, Any]) -> list[Message]:
    """Return the turns of a row, contents stripped.

    Raises:
        RowError: it is no conversation.
    """
    messages = [_read_turn(turn) for turn in _turns(row)]
    if any(not message["content"] for message in messages):
        raise RowError(EMPTY_TURN)
    turns = messages[1:] if messages[:1] and messages[0]["role"] == "system" else messages
    for place, message in enumerate(turns):
        if message["role"] != ("user", "assistant")[place % 2]:
            raise RowError(BAD_ORDER)
    if not turns or len(turns) % 2:
        raise RowError(NO_ANSWER)
    return messages


def _turns(row: dict[str, Any]) -> list[Any]:
    for name in TURN_KEYS:
        if isinstance(row.get(name), list):
            return list(row[name])
    answer = next((row[name] for name in ANSWER_KEYS if row.get(name) is not None), None)
    if "instruction" in row and answer is not None:
        parts = [row["instruction"], *(row[name] for name in ("input", "context") if row.get(name))]
        if not all(isinstance(part, str) for part in parts):
            raise RowError(NOT_TEXT)
        head = [_turn("system", row["system"])] if row.get("system") else []
        return [*head, _turn("user", "\n\n".join(parts)), _turn("assistant", answer)]
    if "prompt" in row and answer is not None:
        return [*_side(row["prompt"], "user"), *_side(answer, "assistant")]
    raise RowError(UNKNOWN_FORM)


def _side(part: Any, role: str) -> list[Any]:
    return part if isinstance(part, list) else [_turn(role, part)]


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _read_turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise RowError(NOT_TEXT)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError(NOT_TEXT)
    if role.lower() not in _ROLES:
        raise RowError(UNKNOWN_ROLE)
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:  # jsonl can escape half of a character
        raise RowError(NOT_UNICODE) from error
    return {"role": _ROLES[role.lower()], "content": unicodedata.normalize("NFC", content.strip())}


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
    """

    kept: dict[str, Counter[str]] = field(default_factory=lambda: {"train": Counter(), "validation": Counter()})
    dropped: Counter[str] = field(default_factory=Counter)
    first_dropped: dict[str, str] = field(default_factory=dict)

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
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
            that the split does not depend on the order of the rows.
    """
    found: list[tuple[Conversation, str]] = []
    families = _Families()
    for conversation, place in _distinct(rows, counts):
        found.append((conversation, place))
        families.join(conversation.telling_texts())
    for conversation, place in found:
        held_out = is_held_out(families.name(conversation.first_question()), validation_fraction)
        yield "validation" if held_out else "train", conversation, place


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
            messages = read_conversation(row)
        except RowError as error:
            counts.drop(str(error), place)
            continue
        conversation = Conversation(messages, *read_origin(row, default_source))
        if (fingerprint := conversation.fingerprint()) in seen:
            counts.drop(DUPLICATE, place)
            continue
        seen.add(fingerprint)
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
