"""Instruction files become tokens with labels: what `ttl sft` trains on, in a folder of its own.

A folder holds `train.parquet` and `validation.parquet` with one conversation a row, and `run.json`, written last:

* `messages`, `source`, `license`: what it is made of;
* `input_ids`: the conversation by the chat template;
* `labels`: the same where an answer stands (its end token included), -100 elsewhere.
"""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat.template import ConversationEncoder
from ..checks import InputError, ensure, ensure_folder
from ..energy.emissions import GRID_KEYS, GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import measured_into
from ..stage_folder import StageFolder, read_manifest, sha256_json
from ..tokenizer.encode import tokenizer_fingerprint
from .input_files import RECORD_SUFFIXES, SAMPLE, SourceFile, hash_files, resolve_files
from .instructions import (
    DUPLICATE,
    SPLITS,
    TOO_LONG,
    Conversation,
    Counts,
    examples_folder,
    messages_type,
    read_conversations,
    reasons,
    records,
    refuse_bad_rows,
    split_to_fit,
    write_examples,
)
from .sample import sample_conversations
from .sources import Split, sample_hash
from .turns import NOTHING_LEARNT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learnt; transformers' convention
CUT = "cut at the context"
HELD_OUT = "asked or answered in validation_inputs too"
# The tokenizer's hash says more.
_NOT_OF_THE_DATA = GRID_KEYS | {"output_dir", "model_name_or_path", "model_revision"}


@dataclass
class ConversationsConfig(GridSettings):
    """Which conversations, and what becomes of long and bad ones."""

    inputs: list[str] = field(
        metadata={"help": "files, folders, globs, hf://datasets/user/name@commit or `sample`; rows of conversations, "
                          "messages, instruction and output, or prompt and completion"}
    )  # fmt: skip
    output_dir: str = field(default="", metadata={"help": "folder for the tokens"})
    model_name_or_path: str = field(
        default="",
        metadata={"help": "the model to be tuned: folder or Hub id; its tokenizer and chat template are used"},
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch or commit of model_name_or_path"})
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

    def __post_init__(self) -> None:
        """Refuse values that nothing can be made with.

        Raises:
            InputError: no input, no folder, or a number outside its range.
        """
        ensure(self.inputs, "inputs=[]: empty. Give at least one file of conversations.")
        ensure(self.output_dir, "output_dir: missing. Give a folder for the tokens.")
        ensure(self.context >= 16, f"context={self.context}: must be at least 16 tokens. 2048 is usual.")
        ensure(
            0 <= self.validation_fraction <= 0.5,
            f"validation_fraction={self.validation_fraction}: must lie between 0 and 0.5. 0.03 is usual.",
        )


class _Preparation:
    """Encodes conversations within the context, and counts."""

    def __init__(self, config: ConversationsConfig, encoder: ConversationEncoder, counts: Counts) -> None:
        self.config, self.encoder, self.counts = config, encoder, counts

    def rows(self, conversation: Conversation, place: str) -> Iterator[dict[str, Any]]:
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

    def _kept(self, messages: list[dict[str, str]], ids: list[int]) -> list[dict[str, str]]:
        """Return what the first tokens of a conversation hold of its messages: whole ones and the beginning of one."""
        whole, num_ids = self._whole(messages, ids)
        rest = str(self.encoder.tokenizer.decode(ids[num_ids:], skip_special_tokens=True)).rstrip("\ufffd")
        return [dict(message) for message in messages[:whole]] + _begun(messages[whole:], rest)

    def _whole(self, messages: list[dict[str, str]], ids: list[int]) -> tuple[int, int]:
        """Return how many messages the tokens begin with, and how many tokens these are."""
        whole, num_ids = 0, 0
        for number in range(1, len(messages) + 1):
            try:
                found = self.encoder.encode(messages[:number]).ids
            except InputError:  # a template that wants an answer after each question
                continue
            if found != ids[: len(found)]:
                break
            whole, num_ids = number, len(found)
        return whole, num_ids

    def _fits(self, messages: list[dict[str, str]]) -> bool:
        return len(self.encoder.encode(messages).ids) <= self.config.context

    def _row(self, conversation: Conversation) -> dict[str, Any]:
        encoded = self.encoder.encode(conversation.messages)
        learnt = encoded.is_answer if self.config.assistant_only_loss else [True] * len(encoded.ids)
        if any(message.get("weight") == 0 for message in conversation.messages):
            learnt = _without_weightless(learnt, encoded.is_answer, conversation.messages)
        labels = [index if learn else IGNORED for index, learn in zip(encoded.ids, learnt, strict=True)]
        return {
            "messages": conversation.messages,
            "source": conversation.source,
            "license": conversation.license,
            "input_ids": encoded.ids,
            "labels": labels,
        }


def _without_weightless(learnt: list[bool], is_answer: list[bool], messages: list[dict[str, Any]]) -> list[bool]:
    """Return which tokens are learnt when the answers of weight 0 are not: their tokens are those of the n-th answer.

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


def _begun(messages: list[dict[str, str]], rest: str) -> list[dict[str, str]]:
    """Return the messages that a text cut off somewhere still holds, the last one as far as it goes."""
    kept: list[dict[str, str]] = []
    for message in messages:
        content = message["content"].strip()
        if content in rest:
            kept.append({**message, "content": content})
            rest = rest[rest.index(content) + len(content) :]
            continue
        most = next((end for end in range(min(len(content), len(rest)), 0, -1) if rest.endswith(content[:end])), 0)
        return [*kept, {**message, "content": content[:most]}] if most else kept
    return kept


def prepare_conversations(config: ConversationsConfig, tokenizer: "PreTrainedTokenizerBase") -> Path:
    """Write the tokens of conversations and return their folder; a second call with the same inputs finds it done.

    Args:
        config: which conversations.
        tokenizer: with a chat template.

    Raises:
        InputError: bad inputs or rows, a template that marks no answers, nothing left to learn, or a folder that holds
            something else.
    """
    ensure_folder("output_dir", config.output_dir)
    check_energy(config)
    encoder = ConversationEncoder(tokenizer)
    ensure(
        encoder.has_marks or not config.assistant_only_loss,
        "assistant_only_loss=True: the chat template has no {% generation %} marks, so nothing says what an answer is. "
        "Use our template, add the marks, or set assistant_only_loss: false to learn the questions as well.",
    )
    train = resolve_files("inputs", config.inputs, RECORD_SUFFIXES)
    held_out = resolve_files("validation_inputs", config.validation_inputs or [], RECORD_SUFFIXES)
    output = Path(config.output_dir)
    plan = {
        **{name: value for name, value in asdict(config).items() if name not in _NOT_OF_THE_DATA},
        "hashes": hash_files([*train, *held_out]) | sample_hash(config.inputs),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": sha256_json(tokenizer.chat_template),
    }
    place = examples_folder(output, "conversations")
    if place.is_done(sha256_json(plan)):
        return output
    counts = Counts()
    with place.held("preparing conversations in it"):
        with measured_into(output, config):
            rows = _rows(config, train, held_out, encoder, counts)
            refuse_bad_rows(config, counts, "are no conversation", (DUPLICATE, TOO_LONG, CUT, HELD_OUT, NOTHING_LEARNT))
            ensure(
                rows["train"],
                f"inputs={', '.join(config.inputs)}: hold no conversation to learn from ({reasons(counts)}).",
            )
        _write(place, rows, counts, plan)
    return output


def _rows(
    config: ConversationsConfig,
    train: list[SourceFile],
    held_out: list[SourceFile],
    encoder: ConversationEncoder,
    counts: Counts,
) -> dict[str, list[dict[str, Any]]]:
    preparation = _Preparation(config, encoder, counts)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for split, conversation, place in split_conversations(config, train, held_out, counts):
        for row in preparation.rows(conversation, place):
            rows[split].append(row)
            counts.keep(split, conversation)
    return rows


def split_conversations(
    config: ConversationsConfig, train: list[SourceFile], held_out: list[SourceFile], counts: Counts
) -> Iterator[tuple[Split, Conversation, str]]:
    """Yield (split, conversation, place) of everything that a config names; rows that are left out are counted.

    Args:
        config: which conversations.
        train: the files of `inputs`.
        held_out: the files of `validation_inputs`; what they ask or answer is not in train.
        counts: filled while reading.
    """
    from tqdm import tqdm

    fraction = 0.0 if held_out else config.validation_fraction
    held_out_texts: set[str] = set()
    for key, files in (("validation_inputs", held_out), ("inputs", train)):
        found = read_conversations(records(key, files), counts, fraction)
        bar = tqdm(found, desc="reading conversations", unit=" rows", mininterval=1.0, leave=False, disable=None)
        for split, conversation, place in bar:
            if key == "validation_inputs":
                held_out_texts.update(conversation.telling_texts())
                yield "validation", conversation, place
            elif held_out_texts.intersection(conversation.telling_texts()):
                counts.drop(HELD_OUT, place)
            else:
                yield split, conversation, place
    if SAMPLE in config.inputs:
        for part in SPLITS:
            told = ((f"{SAMPLE}:{number}", SAMPLE, row) for number, row in enumerate(sample_conversations(part), 1))
            for _, conversation, place in read_conversations(told, counts, 0.0):
                yield part, conversation, place


def _by_source(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what cards tell of each source: conversations, bytes of their contents, tokens, and answer tokens."""
    sources: dict[str, dict[str, Any]] = {}
    for row in rows:
        source = sources.setdefault(
            row["source"], {"documents": 0, "bytes": 0, "tokens": 0, "answer_tokens": 0, "licenses": []}
        )
        source["documents"] += 1
        source["bytes"] += sum(len(message["content"].encode()) for message in row["messages"])
        source["tokens"] += len(row["input_ids"])
        source["answer_tokens"] += sum(label != IGNORED for label in row["labels"])
        if row["license"] and row["license"] not in source["licenses"]:
            source["licenses"].append(row["license"])
    return sources


def conversations_manifest(folder: str | Path, key: str = "conversations") -> dict[str, Any]:
    """Return the manifest of a folder of conversations.

    Raises:
        InputError: it is missing, unfinished, or something else.
    """
    return read_manifest(key, folder, "conversations", "Make it with `ttl conversations`.")


def _write(place: StageFolder, rows: dict[str, list[dict[str, Any]]], counts: Counts, plan: dict[str, Any]) -> None:
    import pyarrow

    schema = pyarrow.schema(
        [
            (
                "messages",
                messages_type(
                    any("weight" in turn for part in rows.values() for row in part for turn in row["messages"])
                ),
            ),
            ("source", pyarrow.string()),
            ("license", pyarrow.string()),
            ("input_ids", pyarrow.list_(pyarrow.int32())),
            ("labels", pyarrow.list_(pyarrow.int32())),
        ]
    )
    summary: dict[str, Any] = {}
    for split in SPLITS:
        lengths = [len(row["input_ids"]) for row in rows[split]]
        summary[split] = {
            "conversations": len(lengths),
            "sources": _by_source(rows[split]),
            "tokens": sum(lengths),
            "answer_tokens": sum(label != IGNORED for row in rows[split] for label in row["labels"]),
            "median_tokens": statistics.median(lengths) if lengths else None,
            "longest_tokens": max(lengths, default=None),
        }
    write_examples(place, schema, rows, plan, summary, counts)
