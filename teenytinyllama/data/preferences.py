"""Preference files become pairs of answers to one prompt, in tokens: what `ttl dpo` trains on.

A row has `chosen` and `rejected`, texts or lists of turns of which the last is the answer, and a prompt (`turns` lists
its forms). A folder holds
`train.parquet` and `validation.parquet` with one pair a row, and `run.json`, written last.
"""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat.template import ConversationEncoder
from ..checks import InputError, ensure
from ..energy.emissions import GRID_KEYS, GridSettings
from ..energy.meter import check_energy
from ..energy.recorder import measured_into
from ..stage_folder import StageFolder, read_manifest, sha256_json
from ..tokenizer.encode import tokenizer_fingerprint
from .input_files import RECORD_SUFFIXES, SourceFile, hash_files, resolve_files
from .instructions import (
    DUPLICATE,
    SPLITS,
    TOO_LONG,
    Conversation,
    Counts,
    examples_folder,
    held_out_texts,
    messages_type,
    read_origin,
    reasons,
    records,
    refuse_bad_rows,
    write_examples,
)
from .sources import Split
from .turns import Message, PairOfTurns, RowError, read_pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The tokenizer's hash says more.
_NOT_OF_THE_DATA = GRID_KEYS | {"output_dir", "model_name_or_path", "model_revision"}


@dataclass
class PreferencesConfig(GridSettings):
    """Which pairs, and what becomes of bad ones; pairs longer than the context are left out and counted."""

    inputs: list[str] = field(
        metadata={"help": "files, folders, globs or hf://datasets/user/name@commit; rows of prompt, chosen, rejected"}
    )
    output_dir: str = field(default="", metadata={"help": "folder for the tokens"})
    model_name_or_path: str = field(
        default="",
        metadata={"help": "the model to be tuned: folder or Hub id; its tokenizer and chat template are used"},
    )
    model_revision: str | None = field(default=None, metadata={"help": "branch or commit of model_name_or_path"})
    context: int = field(default=1024, metadata={"help": "most tokens of a prompt with an answer"})
    validation_fraction: float = field(
        default=0.05, metadata={"help": "share of the prompts held out, chosen by a hash of their text"}
    )
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "rows that are no pair: refuse them all, or drop and count them"}
    )

    def __post_init__(self) -> None:
        """Refuse values that nothing can be made with.

        Raises:
            InputError: no input, no folder, or a number outside its range.
        """
        ensure(self.inputs, "inputs=[]: empty. Give at least one file of preferences.")
        ensure(self.output_dir, "output_dir: missing. Give a folder for the tokens.")
        ensure(self.context >= 16, f"context={self.context}: must be at least 16 tokens. 1024 is usual.")
        ensure(
            0 <= self.validation_fraction <= 0.5,
            f"validation_fraction={self.validation_fraction}: must lie between 0 and 0.5. 0.05 is usual.",
        )


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in their last answer alone, where they belong, and their licence."""

    split: Split
    chosen: list[Message]
    rejected: list[Message]
    source: str
    license: str


def read_preferences(
    rows: Iterable[tuple[str, str, dict[str, Any]]], counts: Counts, validation_fraction: float
) -> Iterator[tuple[Pair, str]]:
    """Yield (pair, place) of the rows that are pairs, each once; count the others.

    Args:
        rows: (place, default source, row) each.
        counts: filled while reading: what is left out, with its reason.
        validation_fraction: share of the first questions held out, see `held_out_texts`.
    """
    seen: set[str] = set()
    found: list[tuple[PairOfTurns, tuple[str, str], str]] = []
    for place, default_source, record in rows:
        try:
            pair = read_pair(record)
        except RowError as error:
            counts.drop(str(error), place)
            continue
        chosen, rejected = pair.chosen, pair.rejected
        fingerprint = sha256_json([chosen, rejected[-1]])
        if fingerprint in seen:
            counts.drop(DUPLICATE, place)
            continue
        seen.add(fingerprint)
        counts.unused.update(pair.unused)
        found.append((pair, read_origin(record, default_source), place))
    questions = [Conversation(pair.chosen).first_question() for pair, _, _ in found]
    held_out = held_out_texts(questions, validation_fraction)
    for question, (pair, origin, place) in zip(questions, found, strict=True):
        split: Split = "validation" if question in held_out else "train"
        yield Pair(split, pair.chosen, pair.rejected, *origin), place


def preferences_manifest(folder: str | Path, key: str = "preferences") -> dict[str, Any]:
    """Return the manifest of a folder of preferences.

    Raises:
        InputError: it is missing, unfinished, or something else.
    """
    return read_manifest(key, folder, "preferences", "Make it with `ttl dpo --inputs …`.")


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
    output = Path(config.output_dir)
    plan = {
        **{name: value for name, value in asdict(config).items() if name not in _NOT_OF_THE_DATA},
        "hashes": hash_files(files),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "chat_template_sha256": sha256_json(tokenizer.chat_template),
    }
    place = examples_folder(output, "preferences")
    if place.is_done(sha256_json(plan)):
        return output
    counts = Counts()
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    with place.held("preparing preferences in it"):
        with measured_into(output, config):
            for split, row in _rows(config, files, encoder, counts):
                rows[split].append(row)
            refuse_bad_rows(config, counts, "are no pair of answers", (DUPLICATE, TOO_LONG))
            ensure(rows["train"], f"inputs={', '.join(config.inputs)}: hold no pair to learn from ({reasons(counts)}).")
        _write(place, rows, counts, plan)
    return output


def _rows(
    config: PreferencesConfig, files: list[SourceFile], encoder: ConversationEncoder, counts: Counts
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (split, row) of each pair; the rest is counted."""
    for pair, place in read_preferences(records("inputs", files), counts, config.validation_fraction):
        try:
            row = _encode(pair.chosen, pair.rejected, encoder)
        except InputError as error:  # the template's refusal, or a special token in a text
            counts.drop(str(error).removeprefix("messages: "), place)
            continue
        if len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > config.context:
            counts.drop(TOO_LONG, place)
            continue
        yield pair.split, {**row, "source": pair.source, "license": pair.license}


def _encode(chosen: list[Message], rejected: list[Message], encoder: ConversationEncoder) -> dict[str, Any]:
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


def _write(place: StageFolder, rows: dict[str, list[dict[str, Any]]], counts: Counts, plan: dict[str, Any]) -> None:
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema(
        [("messages", messages_type()), ("source", pyarrow.string()), ("prompt_ids", ids), ("chosen_ids", ids),
         ("rejected_ids", ids)]
    )  # fmt: skip
    summary: dict[str, Any] = {}
    for split in SPLITS:
        lengths = [_tokens(row) for row in rows[split]]
        summary[split] = {
            "pairs": len(lengths),
            "sources": _by_source(rows[split]),
            "tokens": sum(lengths),
            "median_tokens": statistics.median(lengths) if lengths else None,
            "longest_tokens": max(lengths, default=None),
        }
    write_examples(place, schema, rows, plan, summary, counts)


def _by_source(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return what cards tell of each source: pairs, bytes of prompts and chosen answers, tokens of both sides."""
    sources: dict[str, dict[str, Any]] = {}
    for row in rows:
        source = sources.setdefault(row["source"], {"documents": 0, "bytes": 0, "tokens": 0, "licenses": []})
        source["documents"] += 1
        source["bytes"] += sum(len(message["content"].encode()) for message in row["messages"])
        source["tokens"] += _tokens(row)
        if row["license"] and row["license"] not in source["licenses"]:
            source["licenses"].append(row["license"])
    return sources


def _tokens(row: dict[str, Any]) -> int:
    """Return the tokens of both sides of a pair."""
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
