"""Rows of instruction and preference data: distinct conversations and pairs, each on one side of a split.

`turns` says which forms a row may have. A conversation is: optional system text, then user and assistant in turn,
ending with an answer. A pair is two conversations that differ in their last answer alone. Rows that are left out are
counted with the reason.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..checks import ensure
from ..progress import reading_bar
from ..stage_folder import sha256_json
from .input_files import SAMPLE, SourceFile, hub_datasets
from .readers import read_records
from .sources import Split, default_source, is_held_out, parse_metadata
from .turns import Message, PairOfTurns, RowError, Turns, read_pair, read_turns

if TYPE_CHECKING:
    import pyarrow

SPLITS: tuple[Split, Split] = ("train", "validation")
# Questions with an equal answer of at least so many characters are one question asked in two ways. A shorter answer,
# such as "A resposta é 73.", may be equal by chance.
_LONG_ANSWER_CHARS = 40
_MOST_REASONS = 20  # reasons with what was found in a row, such as each unknown role, that are counted apart

DUPLICATE = "a duplicate"
TOO_LONG = "longer than the context"
HELD_OUT = "asked or answered in validation_inputs too"

PlacedRow = tuple[str, str, dict[str, Any]]  # `file:number`, the source that counts where the row names none, the row
AnyTurns = TypeVar("AnyTurns", Turns, PairOfTurns)


@dataclass(frozen=True)
class Conversation:
    """Checked turns, the source they count under, and the licence they carry (empty when unknown)."""

    messages: list[Message]
    source: str = ""
    license: str = ""

    def first_question(self) -> str:
        """Return the first question, folded: conversations that begin with it stay on one side of the split."""
        return _folded(next(message["content"] for message in self.messages if message["role"] == "user"))

    def family_texts(self) -> list[str]:
        """Return the first question and the long answers, folded: conversations that share one are of one family."""
        answers = [_folded(message["content"]) for message in self.messages if message["role"] == "assistant"]
        return [self.first_question(), *(answer for answer in answers if len(answer) >= _LONG_ANSWER_CHARS)]


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in their last answer alone, the split and source they belong to, their licence."""

    split: Split
    chosen: list[Message]
    rejected: list[Message]
    source: str
    license: str


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
    """What is left out of rows and why.

    Attributes:
        dropped: rows (or, when split for length, pairs of turns) by reason.
        first_dropped: by reason, the first row it happened to, as `file:row`.
        unused: rows by the name of a filled column that no turn was made of (`turn.name` inside a turn).
    """

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


def records(key: str, files: list[SourceFile]) -> Iterator[PlacedRow]:
    """Yield every row of the files with its place and the default source.

    Raises:
        InputError: a file cannot be read; it names the config key.
    """
    with reading_bar([file.path for file in files], "reading rows"):
        for file in files:
            source = default_source(file.path)
            for number, record in enumerate(read_records(key, file.path), start=1):
                yield f"{file.name}:{number}", source, record


def _distinct(
    rows: Iterable[PlacedRow],
    counts: Counts,
    read: Callable[[dict[str, Any]], AnyTurns],
    fingerprint: Callable[[AnyTurns], str],
) -> Iterator[tuple[AnyTurns, tuple[str, str], str]]:
    """Yield (turns, (source, licence), place) of the rows that can be read, each once; count the others."""
    seen: set[str] = set()
    for place, file_source, row in rows:
        try:
            found = read(row)
        except RowError as error:
            counts.drop(str(error), place)
            continue
        if (mark := fingerprint(found)) in seen:
            counts.drop(DUPLICATE, place)
            continue
        seen.add(mark)
        counts.unused.update(found.unused)
        yield found, read_origin(row, file_source), place


def read_conversations(
    rows: Iterable[PlacedRow], counts: Counts, validation_fraction: float
) -> Iterator[tuple[Split, Conversation, str]]:
    """Yield (split, conversation, place) of the rows that are conversations, each once; count the others.

    Conversations that share a first question or a long answer stay on one side: instruction sets ask one question in
    many ways, and a model that has learnt the answer by heart would look as if it had understood it.

    Args:
        rows: such as those of `records`.
        counts: filled while reading: what is left out, with its reason.
        validation_fraction: share of the families (see above) that are held out, by a hash of one of their texts, so
            that the split does not depend on the order of the rows; with two families or more, one at least.
    """
    found: list[tuple[Conversation, str]] = []
    families = _Families()
    for turns, origin, place in _distinct(rows, counts, read_turns, _fingerprint):
        found.append((Conversation(turns.messages, *origin), place))
        families.join(found[-1][0].family_texts())
    names = [families.name(conversation.first_question()) for conversation, _ in found]
    held_out = held_out_texts(names, validation_fraction)
    for name, (conversation, place) in zip(names, found, strict=True):
        yield "validation" if name in held_out else "train", conversation, place


def _fingerprint(turns: Turns) -> str:
    """Return a hash of the turns; turns that are equal but for white space and case have one."""
    return sha256_json([[message["role"], _folded(message["content"])] for message in turns.messages])


def split_conversations(
    inputs: list[str], train: list[SourceFile], held_out: list[SourceFile], validation_fraction: float, counts: Counts
) -> Iterator[tuple[Split, Conversation, str]]:
    """Yield (split, conversation, place) of all conversations that the inputs name, the embedded ones among them.

    Args:
        inputs: as the config has them.
        train: the files of `inputs`.
        held_out: the files of `validation_inputs`; what they ask or answer is not in train.
        validation_fraction: share of `inputs` that is held out where there are no `validation_inputs`.
        counts: filled while reading.
    """
    from .sample import sample_conversations

    fraction = 0.0 if held_out else validation_fraction
    held_out_texts: set[str] = set()
    for key, files in (("validation_inputs", held_out), ("inputs", train)):
        found = read_conversations(records(key, files), counts, fraction)
        for split, conversation, place in found:
            if key == "validation_inputs":
                held_out_texts.update(conversation.family_texts())
                yield "validation", conversation, place
            elif held_out_texts.intersection(conversation.family_texts()):
                counts.drop(HELD_OUT, place)
            else:
                yield split, conversation, place
    if SAMPLE in inputs:
        for part in SPLITS:
            told = ((f"{SAMPLE}:{number}", SAMPLE, row) for number, row in enumerate(sample_conversations(part), 1))
            for _, conversation, place in read_conversations(told, counts, 0.0):
                yield part, conversation, place


def read_preferences(
    rows: Iterable[PlacedRow], counts: Counts, validation_fraction: float
) -> Iterator[tuple[Pair, str]]:
    """Yield (pair, place) of the rows that are pairs, each once; count the others.

    Args:
        rows: such as those of `records`.
        counts: filled while reading: what is left out, with its reason.
        validation_fraction: share of the first questions held out, see `held_out_texts`.
    """
    found = list(
        _distinct(rows, counts, read_pair, lambda pair: sha256_json([pair.chosen, pair.rejected[-1]])),
    )
    questions = [Conversation(pair.chosen).first_question() for pair, _, _ in found]
    held_out = held_out_texts(questions, validation_fraction)
    for question, (pair, origin, place) in zip(questions, found, strict=True):
        yield Pair("validation" if question in held_out else "train", pair.chosen, pair.rejected, *origin), place


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


def begun_messages(messages: list[Message], rest: str) -> list[Message]:
    """Return the messages that a text which was cut off still holds, the last one as far as it goes.

    Args:
        messages: of the whole conversation, from the text's first one on.
        rest: the text.
    """
    kept: list[Message] = []
    for message in messages:
        content = message["content"].strip()
        if content in rest:
            kept.append({**message, "content": content})
            rest = rest[rest.index(content) + len(content) :]
            continue
        most = next((end for end in range(min(len(content), len(rest)), 0, -1) if rest.endswith(content[:end])), 0)
        return [*kept, {**message, "content": content[:most]}] if most else kept
    return kept


def without_weightless(learnt: list[bool], is_answer: list[bool], messages: list[Message]) -> list[bool]:
    """Return which tokens are learnt if the answers of weight 0 are not; the n-th marked stretch is the n-th answer.

    Raises:
        InputError: the template marks more or fewer answers than there are, so that none can be told from another.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    number, kept = 0, list[bool]()
    for place, (learn, marked) in enumerate(zip(learnt, is_answer, strict=True)):
        number += marked and not (place and is_answer[place - 1])
        kept.append(learn and not (marked and number <= len(answers) and answers[number - 1].get("weight") == 0))
    ensure(
        number == len(answers),
        f"messages: a turn has weight 0, and the chat template marks {number} answers where {len(answers)} stand",
    )
    return kept


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


def reasons(counts: Counts) -> str:
    """Return the reasons why rows were left out, the most frequent one first, each with its first row."""
    found = counts.dropped.most_common()
    texts = [f"{number:,} x {reason}, first {counts.first_dropped[reason]}" for reason, number in found]
    return "; ".join(texts) or "no row at all"


def refuse_bad_rows(config: Any, counts: Counts, what: str, harmless: tuple[str, ...]) -> None:
    """Refuse inputs with rows that were left out for more than the harmless reasons, unless they are to be dropped.

    Raises:
        InputError: there are some; it counts them by reason.
    """
    bad = {reason: number for reason, number in counts.dropped.items() if reason not in harmless}
    ensure(
        not bad or config.invalid_rows == "drop",
        f"inputs={', '.join(config.inputs)}: {sum(bad.values()):,} rows {what} ({reasons(counts)}). Mend them, or set "
        "invalid_rows: drop to leave them out.",
    )


def print_left_out(manifest: dict[str, Any]) -> None:
    """Print what a folder of examples leaves out: rows by reason, and columns that no turn was made of."""
    for reason, number in manifest["dropped"].items():
        print(f"left out   {number:,} x {reason} (first: {manifest['first_dropped'][reason]})")
    if unused := manifest.get("unused_columns"):  # manifests of older versions have none
        names = ", ".join(f"{name} ({number:,} rows)" for name, number in unused.items())
        print(f"not used   columns {names}")


def describe_examples(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest of a tuned model says of the conversations or pairs that it was tuned on."""
    return {
        "inputs": manifest["plan"]["inputs"],
        "hub_datasets": hub_datasets(manifest["plan"]["inputs"]),
        "tokenizer_sha256": manifest["plan"]["tokenizer_sha256"],
        "packed_sha256": manifest["hashes"]["train.parquet"],
        "sources": manifest["train"]["sources"],
        "train_tokens": manifest["train"]["tokens"],
        "dropped": manifest["dropped"],
    }


def messages_type(weighted: bool = False) -> "pyarrow.DataType":
    """Return the parquet type of a list of turns; `weighted`: some have a weight of 0, the others null."""
    import pyarrow

    weight = [("weight", pyarrow.int8())] if weighted else []
    return pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), *weight]))
