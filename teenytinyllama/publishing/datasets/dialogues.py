"""Instructions and preferences as datasets: chat turns with source and licence, split as `ttl sft` and `ttl dpo` do.

Instructions have a `messages` column; preferences have `prompt`, `chosen` and `rejected`, each a list of turns, which
is the conversational form that TRL reads. Both are held in memory: an equal question stays on one side of the split,
which only the whole set can tell.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checks import ensure
from ...data.conversations import ConversationsConfig, conversations_manifest, split_conversations
from ...data.examples import SPLITS, messages_type, reasons, records, refuse_bad_rows
from ...data.input_files import hash_files, resolve_files
from ...data.instructions import DUPLICATE, Counts
from ...data.preferences import PreferencesConfig, preferences_manifest, read_preferences
from ...data.readers import RECORD_SUFFIXES, read_records
from ...data.sources import sample_hash
from ...data.turns import Message
from ...manifest import sha256_file
from ..safety import inside
from .content import Content, Row
from .options import DatasetOptions

if TYPE_CHECKING:
    import pyarrow

_INPUTS_FIX = "Publish the files themselves, or prepare the folder again."


def conversations_content(folder: Path) -> Content:
    """Return the content of a folder of `ttl conversations`: its turns, without the tokens.

    Raises:
        InputError: unfinished, or files that are links or changed since.
    """
    manifest = conversations_manifest(folder, "source")
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    hashes = {path.name: sha256_file(inside(folder, path)) for path in files.values() if path.exists()}
    ensure(
        hashes == manifest["hashes"],
        f"source={folder}: its parquet files are not those that `ttl conversations` wrote. Make the folder again.",
    )

    def rows() -> Iterator[Row]:
        for split, path in files.items():
            for record in read_records("source", path, ["messages", "source", "license"]):
                yield _conversation_row(split, record["source"], record.get("license") or "", record["messages"])

    return _instructions(rows, hashes, manifest["plan"]["inputs"], {"prepared": manifest})


def instructions_content(inputs: list[str], options: DatasetOptions) -> Content:
    """Return the content of instruction files.

    Raises:
        InputError: bad inputs, or rows that are no conversation and are not to be dropped.
    """
    config = ConversationsConfig(
        inputs=inputs,
        output_dir="-",  # nothing is written
        validation_inputs=options.validation_inputs,
        invalid_rows=options.invalid_rows,
    )
    if options.validation_fraction is not None:
        config = replace(config, validation_fraction=options.validation_fraction)
    train = resolve_files("source", inputs, RECORD_SUFFIXES)
    held_out = resolve_files("validation_inputs", options.validation_inputs or [], RECORD_SUFFIXES)
    counts = Counts()
    rows = []
    for split, found, _ in split_conversations(config, train, held_out, counts):
        rows.append(_conversation_row(split, found.source, found.license, found.messages))
        counts.unused["turn.weight"] += any("weight" in message for message in found.messages)  # no such column
    counts.unused = +counts.unused  # without zeros
    refuse_bad_rows(config, counts, "are no conversation", (DUPLICATE,))
    ensure(rows, f"source={', '.join(inputs)}: holds no conversation ({reasons(counts)}).")
    facts = {
        "dropped": dict(counts.dropped),
        "unused_columns": dict(counts.unused),
        "validation_fraction": None if held_out else config.validation_fraction,
    }
    hashes = hash_files([*train, *held_out]) | sample_hash(inputs)
    return _instructions(lambda: iter(rows), hashes, inputs, facts)


def preferences_content(inputs: list[str], options: DatasetOptions, folder: Path | None = None) -> Content:
    """Return the content of preference files.

    Args:
        inputs: the files.
        options: of the user.
        folder: of `ttl dpo`, whose inputs and split are to be published; it holds no texts of the rejected answers, so
            the inputs are read again.

    Raises:
        InputError: bad inputs, rows that are no pair and are not to be dropped, or inputs that changed since.
    """
    import pyarrow

    fraction, manifest = options.validation_fraction, None
    if folder is not None:
        manifest = preferences_manifest(folder, "source")
        inputs, fraction = manifest["plan"]["inputs"], manifest["plan"]["validation_fraction"]
    config = PreferencesConfig(inputs=inputs, output_dir="-", invalid_rows=options.invalid_rows)
    if fraction is not None:
        config = replace(config, validation_fraction=fraction)
    files = resolve_files("source", inputs, RECORD_SUFFIXES)
    hashes = hash_files(files)
    ensure(
        manifest is None or manifest["plan"]["hashes"] == hashes,
        f"source={folder}: its inputs ({', '.join(inputs)}) changed since it was prepared. {_INPUTS_FIX}",
    )
    counts, rows = Counts(), []
    for pair, _ in read_preferences(records("inputs", files), counts, config.validation_fraction):
        value = (pair.chosen[:-1], pair.chosen[-1:], pair.rejected[-1:])
        texts = tuple(message["content"] for turns in value for message in turns)
        rows.append(Row(pair.split, pair.source, pair.license, value, texts))
    refuse_bad_rows(config, counts, "are no pair of answers", (DUPLICATE,))
    ensure(rows, f"source={', '.join(inputs)}: holds no pair of answers ({reasons(counts)}).")
    turns = messages_type()
    return Content(
        "preferences",
        pyarrow.schema([("prompt", turns), ("chosen", turns), ("rejected", turns), *_origin_fields()]),
        lambda: iter(rows),
        lambda some, licenses: [*(pyarrow.array(side, turns) for side in _sides(some)), *_origin(some, licenses)],
        hashes,
        {"inputs": _names(inputs)},
        {
            "dropped": dict(counts.dropped),
            "unused_columns": dict(counts.unused),
            "validation_fraction": config.validation_fraction,
            "prepared": manifest,
        },
    )


def _sides(rows: list[Row]) -> Iterable[list[list[Message]]]:
    return ([row.value[side] for row in rows] for side in range(3))


def _instructions(rows: Any, hashes: dict[str, str], inputs: list[str], facts: dict[str, Any]) -> Content:
    import pyarrow

    return Content(
        "instructions",
        pyarrow.schema([("messages", messages_type()), *_origin_fields()]),
        rows,
        lambda some, licenses: [
            pyarrow.array([row.value for row in some], messages_type()),
            *_origin(some, licenses),
        ],
        hashes,
        {"inputs": _names(inputs)},
        facts,
    )


def _conversation_row(split: Any, source: str, license: str, messages: list[Message]) -> Row:
    return Row(split, source, license, messages, tuple(message["content"] for message in messages))


def _origin_fields() -> "list[tuple[str, pyarrow.DataType]]":
    """Return the last two columns: `source` under the name by which `ttl conversations` and `ttl dpo` read it back."""
    import pyarrow

    return [("source", pyarrow.string()), ("license", pyarrow.string())]


def _origin(rows: list[Row], licenses: list[str]) -> "list[pyarrow.Array]":
    import pyarrow

    return [pyarrow.array([row.source for row in rows], pyarrow.string()), pyarrow.array(licenses, pyarrow.string())]


def _names(inputs: list[str]) -> list[str]:
    return sorted(text if text.startswith("hf://") else Path(text).name for text in inputs)
