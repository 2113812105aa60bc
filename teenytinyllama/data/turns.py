"""Turns: one row of instruction or preference data, of any known form, becomes checked turns of a conversation.

A cell that is empty (null, NaN, blank text, an empty list) counts as absent: data sets that were joined carry the
columns of all of them. The form of a row is then chosen by what is filled:

* a list of turns in `messages`, `conversations` or `conversation`: `role` and `content`, or `from` and `value`;
* a question in `instruction`, `prompt`, `question` or, alone, `input`; with it optionally `input` or `context` (Alpaca,
  Dolly) and `history` (pairs of question and answer before it); and an answer in `completion`, `response`, `answer` or
  `output`. Question and answer are texts, `prompt` and `completion` may be lists of turns;
* for preferences the same question, or the turns before the answer, beside `chosen` and `rejected`.

A list of turns goes before the other columns, which it was often made from. System text stands in a turn or in a column
of its own. Two columns for one thing that differ refuse the row by their names; a filled column that the chosen form
does not use is named, for `Counts.unused`.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from ..tokenizer.encode import compose

# A turn: `role` and `content`; `weight` 0 beside them where the data says that this answer is not to be learnt.
Message = dict[str, Any]

TURN_KEYS = ("messages", "conversations", "conversation")
QUESTION_KEYS = ("instruction", "prompt", "question")
INPUT_KEYS = ("input", "context")
ANSWER_KEYS = ("completion", "response", "answer", "output")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
_ORIGIN_KEYS = ("source", "license", "licence", "metadata")  # read by `instructions.read_origin`
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_WEIGHT_KEYS = ("weight", "train")  # OpenAI's fine-tuning files; Axolotl's
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "usuário", "usuario"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "assistente"), "assistant"),
}
_TOOL_ROLES = ("tool", "function", "observation", "ipython", "function_call")
_TEXT_PARTS = ("text", "input_text", "output_text")
_NOTES_OF_PARTS = {"type", "text", "annotations", "cache_control", "citations", "id", "index"}
_DEEPEST_LEVELS = 8  # turns with parts have five

UNKNOWN_FORM = "no known form"
NOT_TEXT = "a turn that is no text"
NOT_UNICODE = "a turn that is not valid Unicode"
UNKNOWN_ROLE = "a role other than system, user, assistant"
TOOL_TURN = "a turn of a tool, or a call of one: tools are not supported"
OTHER_PART = "a part of a turn that is no text"
BAD_WEIGHT = "a turn's weight or train other than 0 and 1"
NOTHING_LEARNT = "no answer with a weight above 0"
EMPTY_TURN = "an empty turn"
BAD_ORDER = "roles that do not alternate"
NO_ANSWER = "no answer at the end"
TWO_SYSTEMS = "two system texts that differ"
ONE_ANSWER_LABELLED = "one answer with a label (KTO): preferences need chosen and rejected"
EQUAL_ANSWERS = "chosen and rejected are equal"
OTHER_PROMPTS = "chosen and rejected answer different prompts"


class RowError(ValueError):
    """A row that is no conversation; its text is the reason, the same for all rows of that kind."""


@dataclass(frozen=True)
class Turns:
    """The turns of a row, and the names of its filled columns that they leave unused (`turn.name` inside a turn)."""

    messages: list[Message]
    unused: list[str]


@dataclass(frozen=True)
class PairOfTurns:
    """Two conversations that differ in their last turn alone, and the filled columns that they leave unused."""

    chosen: list[Message]
    rejected: list[Message]
    unused: list[str]


def is_filled(value: Any, levels: int = _DEEPEST_LEVELS) -> bool:
    """Return whether a cell holds something: not null, NaN, blank text, or a list or mapping of such.

    What lies deeper than `levels` lists and mappings is not looked at and counts as something.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple | dict) and levels:
        return any(is_filled(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value))
    return True


def read_turns(row: dict[str, Any]) -> Turns:
    """Return the turns of a row of instruction data, contents stripped and composed (NFC).

    Raises:
        RowError: it is no conversation, or has two readings that differ.
    """
    reading = _Reading(row)
    lists = [name for name in TURN_KEYS if isinstance(reading.cells.get(name), list)]
    if reading.of(ANSWER_KEYS) and reading.of((*QUESTION_KEYS, "input")):  # turns without a text are no other form
        lists = [name for name in lists if _holds_text(row[name])]
    if lists:  # columns beside them, such as a prompt, are often what the turns were made from
        readings = [_with_system(_checked(_plain_turns(row[name]), reading), reading) for name in lists]
        for name, other in zip(lists, readings, strict=True):
            if other != readings[0]:
                raise RowError(f"{lists[0]} and {name} that differ")
        messages = readings[0]
        reading.used.update(lists)
    elif reading.of(ANSWER_KEYS) and (asked := reading.asked_turns()):
        if isinstance(reading.cells.get("label"), bool):
            raise RowError(ONE_ANSWER_LABELLED)
        _, answer = reading.one_of(ANSWER_KEYS)
        messages = _with_system(_checked([*asked, *_side(answer, "assistant")], reading), reading)
    else:
        raise RowError(_why_no_form(row, reading))
    _check_order(messages)
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise RowError(NOTHING_LEARNT)
    return Turns(messages, reading.unused())


def read_pair(row: dict[str, Any]) -> PairOfTurns:
    """Return the conversations of a preference row: with the chosen and with the rejected answer.

    Raises:
        RowError: the row is no pair, or has two readings that differ.
    """
    reading = _Reading(row)
    cells = reading.cells
    if "chosen" not in cells or "rejected" not in cells:
        is_labelled = isinstance(cells.get("label"), bool) and bool(reading.of(ANSWER_KEYS))
        empty = {"chosen", "rejected"} <= set(row) and bool({"chosen", "rejected"} & set(cells))
        raise RowError(ONE_ANSWER_LABELLED if is_labelled else EMPTY_TURN if empty else UNKNOWN_FORM)
    sides = [_side(cells[side], "assistant") for side in ("chosen", "rejected")]
    reading.used.update(("chosen", "rejected"))
    if any(len(side) == 1 for side in sides):  # answers alone: the prompt stands in a column of its own
        prompt = reading.prompt_turns()
        sides = [[*prompt, *side] if len(side) == 1 else side for side in sides]
    else:
        sides = [[*_system_before(reading, side), *side] for side in sides]
    chosen, rejected = (_with_system(_checked(side, reading), reading) for side in sides)
    for messages in (chosen, rejected):
        _check_order(messages)
        for message in messages:
            if message.pop("weight", None) is not None:
                reading.unused_in_turns.add("turn.weight")
    if chosen[:-1] != rejected[:-1]:
        raise RowError(OTHER_PROMPTS)
    if chosen[-1]["content"] == rejected[-1]["content"]:
        raise RowError(EQUAL_ANSWERS)
    return PairOfTurns(chosen, rejected, reading.unused())


class _Reading:
    """One row while it is read: its filled cells, and which of them were used."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.cells = {name: value for name, value in row.items() if is_filled(value)}
        self.used: set[str] = {name for name in _ORIGIN_KEYS if name in self.cells}
        self.unused_in_turns: set[str] = set()

    def of(self, names: tuple[str, ...]) -> list[str]:
        """Return those of the names whose cells are filled."""
        return [name for name in names if name in self.cells]

    def one_of(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """Return the first filled column of the names and its value; the others must say the same.

        Raises:
            RowError: two are filled and differ.
        """
        filled = self.of(names)
        for name in filled[1:]:
            if not _same(self.cells[name], self.cells[filled[0]]):
                raise RowError(f"{filled[0]} and {name} that differ")
        self.used.update(filled)
        return filled[0], self.cells[filled[0]]

    def asked_turns(self) -> list[Any]:
        """Return what is asked in columns of its own, as turns: the history, and the question with its input.

        Raises:
            RowError: two questions that differ, or one that is no text.
        """
        questions = QUESTION_KEYS if self.of(QUESTION_KEYS) else ("input",)
        if not self.of(questions):
            return []
        _, question = self.one_of(questions)
        extra = [name for name in INPUT_KEYS if name in self.cells and name not in questions]
        if isinstance(question, list | dict):
            turns = _plain_turns(question)
        else:
            parts = [question, *(self.cells[name] for name in extra)]
            if not all(isinstance(part, str) for part in parts):
                raise RowError(NOT_TEXT)
            turns = [_turn("user", "\n\n".join(part.strip() for part in parts))]
            self.used.update(extra)
        return [*self._history(), *turns]

    def prompt_turns(self) -> list[Any]:
        """Return the turns before an answer that stands in a column of its own.

        Raises:
            RowError: there are none, or two readings of them.
        """
        asked = self.asked_turns()
        turns = [name for name in TURN_KEYS if isinstance(self.cells.get(name), list)]
        if not asked and not turns:
            raise RowError(NOT_TEXT)
        if asked or not turns:
            return asked
        return _plain_turns(self.one_of(tuple(turns))[1])

    def _history(self) -> list[Any]:
        history = self.cells.get("history")
        if history is None:
            return []
        if not isinstance(history, list):
            raise RowError(NOT_TEXT)
        self.used.add("history")
        turns: list[Any] = []
        for item in history:
            if isinstance(item, list | tuple) and len(item) == 2:  # Alpaca: [question, answer]
                turns += [_turn("user", item[0]), _turn("assistant", item[1])]
            else:
                turns.append(item)
        return turns

    def system_text(self) -> str | None:
        """Return the system text of a column of its own, or None.

        Raises:
            RowError: two that differ, or one that is no text.
        """
        if not self.of(SYSTEM_KEYS):
            return None
        _, text = self.one_of(SYSTEM_KEYS)
        if not isinstance(text, str):
            raise RowError(NOT_TEXT)
        return _clean(text)

    def unused(self) -> list[str]:
        """Return the names of the filled columns that were not used, those inside of turns as `turn.name`."""
        names = [name for name in self.cells if name not in self.used] + sorted(self.unused_in_turns)
        return [name.encode("utf-8", "backslashreplace").decode() for name in names]  # jsonl can escape half a letter


def _why_no_form(row: dict[str, Any], reading: _Reading) -> str:
    """Return why no form fits: a form whose cells are there and empty, or none."""
    is_asked, is_answered = bool(reading.of((*QUESTION_KEYS, "input"))), bool(reading.of(ANSWER_KEYS))
    if (is_asked and any(isinstance(row.get(name), str) for name in ANSWER_KEYS)) or (
        is_answered and any(isinstance(row.get(name), str) for name in QUESTION_KEYS)
    ):
        return EMPTY_TURN
    if any(isinstance(row.get(name), list) for name in TURN_KEYS):
        return NO_ANSWER
    return UNKNOWN_FORM


def _same(one: Any, other: Any) -> bool:
    """Return whether two cells say the same, white space aside."""
    if isinstance(one, str) and isinstance(other, str):
        return re.sub(r"\s+", " ", one).strip() == re.sub(r"\s+", " ", other).strip()
    return bool(one == other)


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _side(part: Any, role: str) -> list[Any]:
    """Return an answer as turns: it is a text, one turn, or a list of turns."""
    return _plain_turns(part) if isinstance(part, list | dict) else [_turn(role, part)]


def _plain_turns(value: Any) -> list[Any]:
    """Return a cell's turns; nulls in the list, which joined data sets leave behind, are no turns."""
    turns = [value] if isinstance(value, dict) else value
    return [turn for turn in turns if turn is not None and (not isinstance(turn, dict) or is_filled(turn))]


def _holds_text(turns: list[Any]) -> bool:
    """Return whether one of the turns says something."""
    return any(
        is_filled([turn.get(name) for name in _CONTENT_KEYS] if isinstance(turn, dict) else turn) for turn in turns
    )


def _system_before(reading: "_Reading", side: list[Any]) -> list[Any]:
    """Return the system turn of a prompt whose other turns are those before the answer of a whole conversation.

    Raises:
        RowError: one of the turns cannot be read.
    """
    prompt = reading.cells.get("prompt")
    if not isinstance(prompt, list):
        return []
    turns, found = _checked(_plain_turns(prompt), reading), _checked(side, reading)
    if turns == found[:-1]:
        reading.used.add("prompt")
    if not turns or turns[0]["role"] != "system" or turns[1:] != found[:-1]:
        return []
    reading.used.add("prompt")
    return turns[:1]


def _checked(turns: list[Any], reading: _Reading) -> list[Message]:
    """Return the turns as messages; a system turn without text is left out.

    Raises:
        RowError: one cannot be read, or is empty.
    """
    messages = [_read_turn(turn, reading) for turn in turns]
    messages = [message for message in messages if message["role"] != "system" or message["content"]]
    if any(not message["content"] for message in messages):
        raise RowError(EMPTY_TURN)
    return messages


def _read_turn(turn: Any, reading: _Reading) -> Message:
    if not isinstance(turn, dict):
        raise RowError(NOT_TEXT)
    cells = {name: value for name, value in turn.items() if is_filled(value) or name in _CONTENT_KEYS}
    roles = [cells[name] for name in _ROLE_KEYS if name in cells]
    if not roles or not all(isinstance(role, str) for role in roles):
        raise RowError(NOT_TEXT)
    names = [role.strip().casefold() for role in roles]
    role = names[0]
    if len({_ROLES.get(name, name) for name in names}) > 1:
        raise RowError("role and from that differ")
    if role in _TOOL_ROLES or any(name in cells for name in _TOOL_KEYS):
        raise RowError(TOOL_TURN)
    if role not in _ROLES:
        raise RowError(f"{UNKNOWN_ROLE}: {role[:40]!r}")
    message = _turn(_ROLES[role], _content(cells))
    if "weight" in cells or "train" in cells:
        weights = {cells[name] for name in _WEIGHT_KEYS if isinstance(cells.get(name), int | float)}
        if not weights or not weights <= {0, 1} or len(weights) > 1:
            raise RowError(BAD_WEIGHT)
        if message["role"] == "assistant" and weights == {0}:
            message["weight"] = 0
    known = (*_ROLE_KEYS, *_CONTENT_KEYS, *_WEIGHT_KEYS)
    reading.unused_in_turns.update(f"turn.{name}" for name in cells if name not in known)
    return message


def _content(cells: dict[str, Any]) -> str:
    """Return the text of a turn.

    Raises:
        RowError: there is none, there are two, or it is no text.
    """
    filled = [cells[name] for name in _CONTENT_KEYS if is_filled(cells.get(name))]
    if len(filled) > 1 and filled[0] != filled[1]:
        raise RowError("content and value that differ")
    content = (
        filled[0] if filled else next((cells[name] for name in _CONTENT_KEYS if cells.get(name) is not None), None)
    )
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        content = "".join(map(_part_text, content))  # as chat templates write them: one after the other
    if not isinstance(content, str):
        raise RowError(NOT_TEXT)
    return _clean(content)


def _part_text(part: Any) -> str:
    """Return the text of one part of a content, `{"type": "text", "text": …}` or a text.

    Raises:
        RowError: it is an image, a sound, a tool's call or the like; the reason has its type.
    """
    if part is None or isinstance(part, str):
        return part or ""
    if not isinstance(part, dict):
        raise RowError(NOT_TEXT)
    kind = part.get("type")
    others = sorted(name for name, value in part.items() if name not in _NOTES_OF_PARTS and is_filled(value))
    if kind not in (None, *_TEXT_PARTS) or others:  # a picture may stand beside a text in one part
        raise RowError(f"{OTHER_PART}: {(others[0] if kind in (None, *_TEXT_PARTS) else str(kind))[:40]!r}")
    text = part.get("text")
    if text is None and kind is not None:
        return ""
    if not isinstance(text, str):
        raise RowError(NOT_TEXT)
    return text


def _clean(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # jsonl can escape half of a character
        raise RowError(NOT_UNICODE) from error
    return compose(text.strip())


def _with_system(messages: list[Message], reading: _Reading) -> list[Message]:
    """Return the messages with the system text of the row's own column before them.

    Raises:
        RowError: the conversation begins with another one.
    """
    text = reading.system_text()
    if text is None:
        return messages
    if messages and messages[0]["role"] == "system":
        if not _same(messages[0]["content"], text):
            raise RowError(TWO_SYSTEMS)
        return messages
    return [_turn("system", text), *messages]


def _check_order(messages: list[Message]) -> None:
    """Check that user and assistant take turns and that an answer ends the conversation.

    Raises:
        RowError: they do not.
    """
    turns = messages[1:] if messages[:1] and messages[0]["role"] == "system" else messages
    for place, message in enumerate(turns):
        if message["role"] != ("user", "assistant")[place % 2]:
            raise RowError(BAD_ORDER)
    if not turns or len(turns) % 2:
        raise RowError(NO_ANSWER)
