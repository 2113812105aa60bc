"""Instruction data: rows become distinct conversations, each on one side of a split, with counts of what is left out.

`turns` says which forms a row may have. A conversation is: optional system text, then user and assistant in turn,
ending with an answer.

What folders of tokenized examples share, conversations or preferences: reading rows, refusing bad ones, writing.

A folder holds `train.parquet` and `validation.parquet`, and `run.json`, written last.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_folder
from ..stage_folder import (
    EMISSIONS_NAME,
    LEDGER_NAME,
    MANIFEST_NAME,
    read_manifest,
    sha256_file,
    sha256_json,
    write_manifest,
)
from .input_files import SourceFile, hub_datasets
from .readers import read_records
from .sources import Split, default_source, is_held_out, parse_metadata
from .turns import Message, RowError, read_turns

if TYPE_CHECKING:
    import pyarrow


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
    for place, file_source, row in rows:
        try:
            turns = read_turns(row)
        except RowError as error:
            counts.drop(str(error), place)
            continue
        conversation = Conversation(turns.messages, *read_origin(row, file_source))
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


SPLITS: tuple[Split, Split] = ("train", "validation")


def records(key: str, files: list[SourceFile]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (place, default source, row) of each row of the files.

    Raises:
        InputError: a file cannot be read; it names the config key.
    """
    for file in files:
        source = default_source(file.path)
        for number, record in enumerate(read_records(key, file.path), start=1):
            yield f"{file.name}:{number}", source, record


def reasons(counts: Counts) -> str:
    """Return why rows were left out, the most frequent reason first, each with its first row."""
    found = counts.dropped.most_common()
    texts = [f"{number:,} x {reason}, first {counts.first_dropped[reason]}" for reason, number in found]
    return "; ".join(texts) or "no row at all"


def print_left_out(manifest: dict[str, Any]) -> None:
    """Print what a folder of examples leaves out: rows by reason, and columns that no turn was made of."""
    for reason, number in manifest["dropped"].items():
        print(f"left out   {number:,} x {reason} (first: {manifest['first_dropped'][reason]})")
    if unused := manifest.get("unused_columns"):  # manifests of older versions have none
        names = ", ".join(f"{name} ({number:,} rows)" for name, number in unused.items())
        print(f"not used   columns {names}")


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


def examples_are_done(output: Path, stage: str, plan: dict[str, Any]) -> bool:
    """Return whether a folder already holds the examples of a plan.

    Raises:
        InputError: it is a file, or holds something else.
    """
    ensure_folder("output_dir", output)
    if (output / MANIFEST_NAME).exists():
        found = read_manifest("output_dir", output, stage, "Choose another folder.")
        ensure(
            found["plan_sha256"] == sha256_json(plan),
            f"output_dir={output}: holds {stage} of other inputs or settings. Choose another folder.",
        )
        return True
    # A train.parquet without run.json may be the user's.
    own = {*(f"{split}.parquet.partial" for split in SPLITS), EMISSIONS_NAME, LEDGER_NAME}
    others = sorted({path.name for path in output.iterdir()} - own) if output.is_dir() else []
    ensure(not others, f"output_dir={output}: is not empty ({', '.join(others[:3])}). Choose an empty or new folder.")
    return False


def describe_examples(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a tuning's manifest says of its prepared examples, whatever their kind, and where they come from."""
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


def write_examples(
    output: Path,
    stage: str,
    schema: "pyarrow.Schema",
    rows: dict[str, list[dict[str, Any]]],
    plan: dict[str, Any],
    summary: dict[str, Any],
    counts: Counts,
) -> None:
    """Write both splits and then the manifest, with the plan, a summary of each split and what was left out."""
    import pyarrow
    import pyarrow.parquet

    output.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table = pyarrow.Table.from_pylist(rows[split], schema)
        pyarrow.parquet.write_table(table, output / f"{split}.parquet.partial")
    for split in SPLITS:
        (output / f"{split}.parquet.partial").replace(output / f"{split}.parquet")
    content = {
        "plan_sha256": sha256_json(plan),
        "plan": plan,
        **summary,
        "dropped": dict(counts.dropped),
        "first_dropped": counts.first_dropped,
        "unused_columns": dict(counts.unused),
        "hashes": {f"{split}.parquet": sha256_file(output / f"{split}.parquet") for split in SPLITS},
    }
    write_manifest(output, stage, content)
