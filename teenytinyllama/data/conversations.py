"""Instruction files become tokens with labels: what `ttl sft` trains on, in a folder of its own.

A folder holds `train.parquet` and `validation.parquet` with one conversation a row, and `run.json`, written last:

* `messages`, `source`: what it is made of;
* `input_ids`: the conversation by the chat template;
* `labels`: the same where an answer stands (its end token included), -100 elsewhere.
"""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat.template import ConversationEncoder
from ..checks import InputError, ensure
from ..manifest import MANIFEST_NAME, read_manifest, sha256_file, sha256_json, write_manifest
from ..tokenizer import tokenizer_fingerprint
from .instructions import DUPLICATE, TOO_LONG, Conversation, Counts, read_conversations, split_to_fit
from .readers import RECORD_SUFFIXES, read_records
from .sources import SourceFile, hash_files, resolve_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a token that is not learnt; transformers' convention
CUT = "cut at the context"
HELD_OUT = "asked in validation_inputs too"
SPLITS = ("train", "validation")


@dataclass
class ConversationsConfig:
    """Which conversations, and what becomes of long and bad ones."""

    inputs: list[str] = field(
        metadata={"help": "files, folders, globs or hf://datasets/user/name@commit; rows of conversations, "
                          "messages, instruction and output, or prompt and completion"}
    )  # fmt: skip
    output_dir: str = field(default="", metadata={"help": "folder for the tokens"})
    context: int = field(default=2048, metadata={"help": "most tokens of a conversation"})
    validation_inputs: list[str] | None = field(
        default=None, metadata={"help": "held-out conversations of their own; then nothing of `inputs` is held out"}
    )
    validation_fraction: float = field(
        default=0.03, metadata={"help": "share of the first questions held out, chosen by a hash of their text"}
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
            self.counts.drop(CUT, place)
            cut = {name: row[name][: self.config.context] for name in ("input_ids", "labels")}
            if any(label != IGNORED for label in cut["labels"]):
                yield {**row, **cut}
        elif self.config.long_conversations == "drop":
            self.counts.drop(TOO_LONG, place)
        else:
            parts, left_out = split_to_fit(conversation, self._fits)
            for _ in range(left_out):
                self.counts.drop(TOO_LONG, place)
            for part in parts:
                yield self._row(part)

    def _fits(self, messages: list[dict[str, str]]) -> bool:
        return len(self.encoder.encode(messages).ids) <= self.config.context

    def _row(self, conversation: Conversation) -> dict[str, Any]:
        encoded = self.encoder.encode(conversation.messages)
        learnt = encoded.is_answer if self.config.assistant_only_loss else [True] * len(encoded.ids)
        labels = [index if learn else IGNORED for index, learn in zip(encoded.ids, learnt, strict=True)]
        return {
            "messages": conversation.messages,
            "source": conversation.source,
            "input_ids": encoded.ids,
            "labels": labels,
        }


def prepare_conversations(config: ConversationsConfig, tokenizer: "PreTrainedTokenizerBase") -> Path:
    """Write the tokens of conversations and return their folder; a second call with the same inputs finds it done.

    Args:
        config: which conversations.
        tokenizer: with a chat template.

    Raises:
        InputError: bad inputs or rows, a template that marks no answers, nothing left to learn, or a folder that holds
            something else.
    """
    ensure(
        not Path(config.output_dir).exists() or Path(config.output_dir).is_dir(),
        f"output_dir={config.output_dir}: is a file. Choose a folder.",
    )
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
        **{name: value for name, value in asdict(config).items() if name != "output_dir"},
        "hashes": hash_files([*train, *held_out]),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": sha256_json(tokenizer.chat_template),
    }
    if _is_done(output, sha256_json(plan)):
        return output
    counts = Counts()
    rows = _rows(config, train, held_out, encoder, counts)
    _refuse_bad_rows(config, counts)
    ensure(
        rows["train"], f"inputs={', '.join(config.inputs)}: hold no conversation to learn from ({_reasons(counts)})."
    )
    _write(output, rows, counts, plan)
    return output


def _rows(
    config: ConversationsConfig,
    train: list[SourceFile],
    held_out: list[SourceFile],
    encoder: ConversationEncoder,
    counts: Counts,
) -> dict[str, list[dict[str, Any]]]:
    from tqdm import tqdm

    fraction = 0.0 if held_out else config.validation_fraction
    preparation = _Preparation(config, encoder, counts)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    questions: set[str] = set()
    for key, files in (("validation_inputs", held_out), ("inputs", train)):
        found = read_conversations(_records(key, files), counts, fraction)
        bar = tqdm(found, desc="reading conversations", unit=" rows", mininterval=1.0, leave=False, disable=None)
        for split, conversation, place in bar:
            side = "validation" if key == "validation_inputs" else split
            if key == "validation_inputs":
                questions.add(conversation.first_question())
            elif conversation.first_question() in questions:
                counts.drop(HELD_OUT, place)
                continue
            for row in preparation.rows(conversation, place):
                rows[side].append(row)
                counts.keep(side, conversation)
    return rows


def _records(key: str, files: list[SourceFile]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for file in files:
        stem = file.path.name.split(".")[0]
        for number, record in enumerate(read_records(key, file.path), start=1):
            yield f"{file.name}:{number}", stem, record


def _reasons(counts: Counts) -> str:
    found = counts.dropped.most_common()
    texts = [f"{number:,} x {reason}, first {counts.first_dropped[reason]}" for reason, number in found]
    return "; ".join(texts) or "no row at all"


def _refuse_bad_rows(config: ConversationsConfig, counts: Counts) -> None:
    bad = {reason: n for reason, n in counts.dropped.items() if reason not in (DUPLICATE, TOO_LONG, CUT, HELD_OUT)}
    ensure(
        not bad or config.invalid_rows == "drop",
        f"inputs={', '.join(config.inputs)}: {sum(bad.values()):,} rows are no conversation ({_reasons(counts)}). Mend "
        "them, or set invalid_rows: drop to leave them out.",
    )


def _is_done(output: Path, plan_sha256: str) -> bool:
    if (output / MANIFEST_NAME).exists():
        found = read_manifest("output_dir", output, "conversations", "Choose another folder.")
        ensure(
            found["plan_sha256"] == plan_sha256,
            f"output_dir={output}: holds conversations of other inputs or settings. Choose another folder.",
        )
        return True
    own = {f"{split}.parquet.partial" for split in SPLITS}  # a train.parquet without run.json may be the user's
    others = sorted({path.name for path in output.iterdir()} - own) if output.is_dir() else []
    ensure(not others, f"output_dir={output}: is not empty ({', '.join(others[:3])}). Choose an empty or new folder.")
    return False


def _write(output: Path, rows: dict[str, list[dict[str, Any]]], counts: Counts, plan: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    schema = pyarrow.schema(
        [
            ("messages", pyarrow.list_(message)),
            ("source", pyarrow.string()),
            ("input_ids", pyarrow.list_(pyarrow.int32())),
            ("labels", pyarrow.list_(pyarrow.int32())),
        ]
    )
    output.mkdir(parents=True, exist_ok=True)
    summary = {}
    for split in SPLITS:
        table = pyarrow.Table.from_pylist(rows[split], schema)
        pyarrow.parquet.write_table(table, output / f"{split}.parquet.partial")
        lengths = [len(row["input_ids"]) for row in rows[split]]
        summary[split] = {
            "conversations": len(lengths),
            "sources": dict(counts.kept[split]),
            "tokens": sum(lengths),
            "answer_tokens": sum(label != IGNORED for row in rows[split] for label in row["labels"]),
            "median_tokens": statistics.median(lengths) if lengths else None,
            "longest_tokens": max(lengths, default=None),
        }
    for split in SPLITS:
        (output / f"{split}.parquet.partial").replace(output / f"{split}.parquet")
    content = {
        "plan_sha256": sha256_json(plan),
        "plan": plan,
        **summary,
        "dropped": dict(counts.dropped),
        "first_dropped": counts.first_dropped,
        "hashes": {f"{split}.parquet": sha256_file(output / f"{split}.parquet") for split in SPLITS},
    }
    write_manifest(output, "conversations", content)
