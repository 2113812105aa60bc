"""Conversations and preferences in tokens: what `ttl sft` and `ttl dpo` train on, each in a folder of its own.

A folder holds `train.parquet` and `validation.parquet`, and `run.json`, written last. A row of conversations has

* `messages`, `source`, `license`: what it is made of;
* `input_ids`: the conversation by the chat template;
* `labels`: the same where an answer stands (its end token included), -100 elsewhere.

A row of preferences has `messages` (the prompt and the chosen answer), `source`, and the tokens of the prompt and of
both answers: `prompt_ids`, `chosen_ids`, `rejected_ids`.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..chat.template import ConversationEncoder
from ..checks import InputError, ensure
from ..energy.emissions import GRID_KEYS, GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import measured_into
from ..progress import progress
from ..stage_folder import (
    EMISSIONS_NAME,
    LEDGER_NAME,
    StageFolder,
    read_manifest,
    sha256_file,
    sha256_json,
)
from ..tokenizer.encode import tokenizer_fingerprint
from .input_files import RECORD_SUFFIXES, hash_files, resolve_files
from .instructions import (
    DUPLICATE,
    HELD_OUT,
    SPLITS,
    TOO_LONG,
    Conversation,
    Counts,
    begun_messages,
    messages_type,
    read_preferences,
    reasons,
    records,
    refuse_bad_rows,
    split_conversations,
    split_to_fit,
    without_weightless,
)
from .sources import Split, count_document, sample_hash
from .turns import NOTHING_LEARNT, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learnt; transformers' convention
CUT = "cut at the context"
# Keys that decide no row: the hash of the tokenizer stands for the model.
_NOT_OF_THE_DATA = GRID_KEYS | {"output_dir", "model_name_or_path", "model_revision"}

Row = dict[str, Any]  # of a prepared split


@dataclass
class _ExamplesConfig(GridSettings):
    """The keys that conversations and preferences share; their own classes say what is usual."""

    kind: ClassVar[str]

    inputs: list[str]
    output_dir: str = field(default="", metadata={"help": "folder for the tokens"})
    model_name_or_path: str = field(
        default="",
        metadata={"help": "the model to be tuned: folder or Hub id; its tokenizer and chat template are used"},
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch or commit of model_name_or_path"})
    context: int = 2048
    validation_fraction: float = 0.05
    invalid_rows: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        """Refuse values with which no row can be made.

        Raises:
            InputError: no input, no folder, or a number outside its range.
        """
        usual = type(self)  # its attributes are the defaults
        ensure(self.inputs, f"inputs=[]: empty. Give at least one file of {self.kind}.")
        ensure(self.output_dir, "output_dir: missing. Give a folder for the tokens.")
        ensure(self.context >= 16, f"context={self.context}: must be at least 16 tokens. {usual.context} is usual.")
        ensure(
            0 <= self.validation_fraction <= 0.5,
            f"validation_fraction={self.validation_fraction}: must lie between 0 and 0.5. {usual.validation_fraction} "
            "is usual.",
        )


@dataclass
class ConversationsConfig(_ExamplesConfig):
    """`ttl conversations`: which conversations to prepare, and what becomes of long and bad ones."""

    kind: ClassVar[str] = "conversations"

    inputs: list[str] = field(
        metadata={"help": "files, folders, globs, hf://datasets/user/name@commit or `sample`; rows of conversations, "
                          "messages, instruction and output, or prompt and completion"}
    )  # fmt: skip
    context: int = field(default=2048, metadata={"help": "most tokens of a conversation"})
    validation_inputs: list[str] | None = field(
        default=None, metadata={"help": "held-out conversations of their own; then nothing of `inputs` is held out"}
    )
    validation_fraction: float = field(
        default=0.03,
        metadata={"help": "share held out; conversations with an equal question or long answer stay on one side"},
    )
    long_conversations: Literal["split", "drop", "cut"] = field(
        default="split",
        metadata={"help": "longer than the context: split between turns, drop, or cut (their last answer has no end)"},
    )
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "rows that are no conversation: refuse them all, or drop and count them"}
    )
    assistant_only_loss: bool = field(
        default=True, metadata={"help": "learn the answers alone; false: learn the questions as well"}
    )


@dataclass
class PreferencesConfig(_ExamplesConfig):
    """Which pairs `ttl dpo` prepares, and what becomes of bad ones; too long ones are left out and counted."""

    kind: ClassVar[str] = "preferences"

    inputs: list[str] = field(
        metadata={"help": "files, folders, globs or hf://datasets/user/name@commit; rows of prompt, chosen, rejected"}
    )
    context: int = field(default=1024, metadata={"help": "most tokens of a prompt with an answer"})
    validation_fraction: float = field(
        default=0.05, metadata={"help": "share of the prompts held out, chosen by a hash of their text"}
    )
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "rows that are no pair: refuse them all, or drop and count them"}
    )


def prepare_conversations(config: ConversationsConfig, tokenizer: "PreTrainedTokenizerBase") -> Path:
    """Write the tokens of conversations and return their folder; a second call with the same inputs finds it done.

    Args:
        config: which conversations.
        tokenizer: with a chat template.

    Raises:
        InputError: bad inputs or rows, a template that marks no answers, nothing left to learn, or a folder that holds
            something else.
    """
    check_energy(config)
    encoder = ConversationEncoder(tokenizer)
    ensure(
        encoder.has_marks or not config.assistant_only_loss,
        "assistant_only_loss=True: the chat template has no {% generation %} marks, so nothing says what an answer is. "
        "Use our template, add the marks, or set assistant_only_loss: false to learn the questions as well.",
    )
    train = resolve_files("inputs", config.inputs, RECORD_SUFFIXES)
    held_out = resolve_files("validation_inputs", config.validation_inputs or [], RECORD_SUFFIXES)

    def rows(counts: Counts) -> Iterator[tuple[Split, Row]]:
        preparation = _ConversationRows(config, encoder, counts)
        found = split_conversations(config.inputs, train, held_out, config.validation_fraction, counts)
        for split, conversation, place in found:
            for row in preparation.rows(conversation, place):
                yield split, row

    hashes = hash_files([*train, *held_out]) | sample_hash(config.inputs)
    return _prepare(config, tokenizer, hashes, _CONVERSATIONS, rows)


class _ConversationRows:
    """Makes rows of conversations that fit into the context, and counts what is left out."""

    def __init__(self, config: ConversationsConfig, encoder: ConversationEncoder, counts: Counts) -> None:
        self.config, self.encoder, self.counts = config, encoder, counts

    def rows(self, conversation: Conversation, place: str) -> Iterator[Row]:
        """Yield the rows of a conversation: one, several when it is split, or none."""
        try:
            row = self._row(conversation)
        except InputError as error:  # the template's refusal, or a special token in a text
            self.counts.drop(str(error).removeprefix("messages: "), place)
            return
        if len(row["input_ids"]) <= self.config.context:
            yield row
        elif self.config.long_conversations == "cut":
            cut = {name: row[name][: self.config.context] for name in ("input_ids", "labels")}
            has_answer = any(label != IGNORED for label in cut["labels"])
            self.counts.drop(CUT if has_answer else TOO_LONG, place)
            if has_answer:
                yield {**row, **cut, "messages": self._kept(conversation.messages, cut["input_ids"])}
        elif self.config.long_conversations == "drop":
            self.counts.drop(TOO_LONG, place)
        else:
            parts, left_out = split_to_fit(conversation, self._fits)
            for _ in range(left_out):
                self.counts.drop(TOO_LONG, place)
            for row in map(self._row, parts):
                if any(label != IGNORED for label in row["labels"]):
                    yield row
                else:  # a step of such rows would have no loss
                    self.counts.drop(NOTHING_LEARNT, place)

    def _kept(self, messages: list[Message], ids: list[int]) -> list[Message]:
        """Return what the first tokens of a conversation hold of its messages: whole ones and the beginning of one."""
        whole, num_ids = 0, 0
        for number in range(1, len(messages) + 1):
            try:
                found = self.encoder.encode(messages[:number]).ids
            except InputError:  # a template that wants an answer after each question
                continue
            if found != ids[: len(found)]:
                break
            whole, num_ids = number, len(found)
        rest = str(self.encoder.tokenizer.decode(ids[num_ids:], skip_special_tokens=True)).rstrip("\ufffd")
        return [dict(message) for message in messages[:whole]] + begun_messages(messages[whole:], rest)

    def _fits(self, messages: list[Message]) -> bool:
        return len(self.encoder.encode(messages).ids) <= self.config.context

    def _row(self, conversation: Conversation) -> Row:
        encoded = self.encoder.encode(conversation.messages)
        learnt = encoded.is_answer if self.config.assistant_only_loss else [True] * len(encoded.ids)
        if any(message.get("weight") == 0 for message in conversation.messages):
            learnt = without_weightless(learnt, encoded.is_answer, conversation.messages)
        labels = [index if learn else IGNORED for index, learn in zip(encoded.ids, learnt, strict=True)]
        return {
            "messages": conversation.messages,
            "source": conversation.source,
            "license": conversation.license,
            "input_ids": encoded.ids,
            "labels": labels,
        }


def prepare_preferences(config: PreferencesConfig, tokenizer: "PreTrainedTokenizerBase") -> Path:
    """Write the tokens of pairs and return their folder; a second call with the same inputs finds it done.

    Args:
        config: which pairs.
        tokenizer: with a chat template.

    Raises:
        InputError: bad inputs or rows, nothing left to learn, or a folder that holds something else.
    """
    check_energy(config)
    encoder = ConversationEncoder(tokenizer)
    files = resolve_files("inputs", config.inputs, RECORD_SUFFIXES)

    def rows(counts: Counts) -> Iterator[tuple[Split, Row]]:
        for pair, place in read_preferences(records("inputs", files), counts, config.validation_fraction):
            try:
                row = _encode_pair(pair.chosen, pair.rejected, encoder)
            except InputError as error:  # the template's refusal, or a special token in a text
                counts.drop(str(error).removeprefix("messages: "), place)
                continue
            if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > config.context:
                counts.drop(TOO_LONG, place)
            else:
                yield pair.split, {**row, "source": pair.source, "license": pair.license}

    return _prepare(config, tokenizer, hash_files(files), _PREFERENCES, rows)


def _encode_pair(chosen: list[Message], rejected: list[Message], encoder: ConversationEncoder) -> Row:
    prompt = encoder.encode(chosen[:-1], for_answer=True).ids
    answers = [encoder.encode(messages).ids for messages in (chosen, rejected)]
    for ids in answers:
        ensure(
            ids[: len(prompt)] == prompt,
            "messages: the chat template writes the prompt in another way before an answer; "
            "`ttl chat --check-template` says more",
        )
    return {
        "messages": chosen,
        "prompt_ids": prompt,
        "chosen_ids": answers[0][len(prompt) :],
        "rejected_ids": answers[1][len(prompt) :],
    }


# --- the folders of both


@dataclass(frozen=True)
class _Kind:
    """The differences between a row of conversations and a row of preferences, for the code that both share.

    Attributes:
        unit: what a split is counted in.
        row: what a good row is, for messages.
        texts: columns of text beside the messages.
        ids: columns of tokens.
        amounts: what is counted of the tokens of a row, by its name in the manifest.
        harmless: reasons for which rows may be left out without `invalid_rows: drop`.
    """

    unit: str
    row: str
    texts: tuple[str, ...]
    ids: tuple[str, ...]
    amounts: dict[str, Callable[[Row], int]]
    harmless: tuple[str, ...]


_CONVERSATIONS = _Kind(
    "conversations",
    "conversation",
    texts=("source", "license"),
    ids=("input_ids", "labels"),
    amounts={
        "tokens": lambda row: len(row["input_ids"]),
        "answer_tokens": lambda row: sum(label != IGNORED for label in row["labels"]),
    },
    harmless=(DUPLICATE, TOO_LONG, CUT, HELD_OUT, NOTHING_LEARNT),
)
_PREFERENCES = _Kind(
    "pairs",
    "pair of answers",
    texts=("source",),
    ids=("prompt_ids", "chosen_ids", "rejected_ids"),
    amounts={"tokens": lambda row: 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])},
    harmless=(DUPLICATE, TOO_LONG),
)


def _prepare(
    config: ConversationsConfig | PreferencesConfig,
    tokenizer: "PreTrainedTokenizerBase",
    hashes: dict[str, str],
    kind: _Kind,
    read: Callable[[Counts], Iterator[tuple[Split, Row]]],
) -> Path:
    """Write a folder of conversations or preferences, unless it is there already; bad inputs leave nothing behind.

    Args:
        config: which examples.
        tokenizer: whose tokens the rows hold.
        hashes: of the files that are read.
        kind: of the rows.
        read: returns the rows with their splits, and fills the counts meanwhile.
    """
    output = Path(config.output_dir)
    plan = {
        **{name: value for name, value in asdict(config).items() if name not in _NOT_OF_THE_DATA},
        "hashes": hashes,
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": sha256_json(tokenizer.chat_template),
    }
    place = examples_folder(output, config.kind)
    if place.is_done(sha256_json(plan)):
        return output
    counts = Counts()
    rows: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    with place.held(f"preparing {config.kind} in it"):
        with measured_into(output, config):
            for split, row in progress(read(counts), "encoding", kind.unit):
                rows[split].append(row)
            refuse_bad_rows(config, counts, f"are no {kind.row}", kind.harmless)
            where = ", ".join(config.inputs)
            ensure(rows["train"], f"inputs={where}: hold no {kind.row} to learn from ({reasons(counts)}).")
        _write(place, kind, rows, plan, counts)
    return output


def examples_folder(output: Path, stage: str) -> StageFolder:
    """Return the folder of prepared examples, with the names that a start which was killed leaves in it."""
    # Of the parquet files the half-written ones alone: a train.parquet without run.json may be the user's.
    own = {*(f"{split}.parquet.partial" for split in SPLITS), EMISSIONS_NAME, LEDGER_NAME}
    return StageFolder(output, stage, stage, frozenset(own))


def _write(place: StageFolder, kind: _Kind, rows: dict[Split, list[Row]], plan: dict[str, Any], counts: Counts) -> None:
    """Write both splits and then the manifest, with the plan, a summary of each split and what was left out."""
    import pyarrow
    import pyarrow.parquet

    weighted = any("weight" in turn for part in rows.values() for row in part for turn in row["messages"])
    columns: list[tuple[str, Any]] = [(name, pyarrow.string()) for name in kind.texts]
    columns += [(name, pyarrow.list_(pyarrow.int32())) for name in kind.ids]
    schema = pyarrow.schema([("messages", messages_type(weighted)), *columns])
    output = place.path
    output.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table = pyarrow.Table.from_pylist(rows[split], schema)
        pyarrow.parquet.write_table(table, (output / f"{split}.parquet.partial").absolute())  # else `a:b` is an address
    for split in SPLITS:
        (output / f"{split}.parquet.partial").replace(output / f"{split}.parquet")
    content = {
        "plan_sha256": sha256_json(plan),
        "plan": plan,
        "train": _summarise(kind, rows["train"]),
        "validation": _summarise(kind, rows["validation"]),
        "dropped": dict(counts.dropped),
        "first_dropped": counts.first_dropped,
        "unused_columns": dict(counts.unused),
        "hashes": {f"{split}.parquet": sha256_file(output / f"{split}.parquet") for split in SPLITS},
    }
    place.finish(content)


def _summarise(kind: _Kind, rows: list[Row]) -> dict[str, Any]:
    """Return what a manifest says of a split; of each source: documents, bytes of the messages, tokens, licences."""
    sources: dict[str, dict[str, Any]] = {}
    for row in rows:
        num_bytes = sum(len(message["content"].encode()) for message in row["messages"])
        counted = {name: count(row) for name, count in kind.amounts.items()}
        count_document(sources, row["source"], row["license"], bytes=num_bytes, **counted)
    lengths = [kind.amounts["tokens"](row) for row in rows]
    return {
        kind.unit: len(rows),
        "sources": sources,
        **{name: sum(record[name] for record in sources.values()) for name in kind.amounts},
        "median_tokens": statistics.median(lengths) if lengths else None,
        "longest_tokens": max(lengths, default=None),
    }


def conversations_manifest(folder: str | Path, key: str = "conversations") -> dict[str, Any]:
    """Return the manifest of a folder of conversations.

    Raises:
        InputError: it is missing, unfinished, or something else.
    """
    return read_manifest(key, folder, "conversations", "Make it with `ttl conversations`.")


def preferences_manifest(folder: str | Path, key: str = "preferences") -> dict[str, Any]:
    """Return the manifest of a folder of preferences.

    Raises:
        InputError: it is missing, unfinished, or something else.
    """
    return read_manifest(key, folder, "preferences", "Make it with `ttl dpo --inputs …`.")
