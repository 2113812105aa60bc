"""What every kind of dataset comes down to: rows with a source and a licence, and the columns they are written in.

What a user can say about a dataset that is to be published.

A corpus as a dataset: `text`, and `metadata` with source and licence, split by document as `ttl pack` splits.

Packed rows as a dataset: `input_ids` of one length, train and validation.

The held-out documents of a packed folder are never cut; here they are cut into rows of the same length, since both
splits of a dataset have the same columns. The end that does not fill a row is left out and counted.

Instructions and preferences as datasets: chat turns with source and licence, split as `ttl sft` and `ttl dpo` do.

Instructions have a `messages` column; preferences have `prompt`, `chosen` and `rejected`, each a list of turns, which
is the conversational form that TRL reads. Both are held in memory: an equal question stays on one side of the split,
which only the whole set can tell.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...checks import ensure
from ...data.conversations import (
    ConversationsConfig,
    PreferencesConfig,
    conversations_manifest,
    preferences_manifest,
)
from ...data.input_files import RECORD_SUFFIXES, hash_files, resolve_files
from ...data.instructions import (
    DUPLICATE,
    SPLITS,
    Counts,
    messages_type,
    read_preferences,
    reasons,
    records,
    refuse_bad_rows,
    split_conversations,
)
from ...data.packed import PACKED_NAMES, PackedCorpus, check_packed, load_packed, packed_manifest
from ...data.readers import read_records
from ...data.sources import Corpus, CorpusConfig, Split, sample_hash
from ...data.turns import Message
from ...stage_folder import sha256_file
from .safety import inside

if TYPE_CHECKING:
    import pyarrow


Kind = Literal["corpus", "packed", "instructions", "preferences"]


@dataclass
class DatasetOptions:
    """Options of `ttl publish` that concern datasets alone."""

    kind: Literal["auto", "corpus", "packed", "instructions", "preferences"] = field(
        default="auto", metadata={"help": "what the data is; auto: told from run.json or from the columns"}
    )
    license: list[str] = field(
        default_factory=list,
        metadata={"help": "licence of documents that state none: one for all, or SOURCE=LICENCE for each source; "
                          "`unknown` says in public that it is not known"},
    )  # fmt: skip
    packed: str | None = field(
        default=None,
        metadata={"help": "of a corpus: the folder of `ttl pack` whose documents and split it is to have"},
    )
    validation_inputs: list[str] | None = field(
        default=None, metadata={"help": "held-out documents of their own; then nothing else is held out"}
    )
    validation_fraction: float | None = field(
        default=None, metadata={"help": "share held out; null: as the stage that reads such data has it"}
    )
    text_column: str | None = field(default=None, metadata={"help": "of a corpus; null: `text`"})
    metadata_column: str | None = field(default=None, metadata={"help": "of a corpus; null: `metadata`"})
    txt_unit: Literal["file", "line"] | None = field(
        default=None, metadata={"help": "of a corpus: what a document is in a txt file; null: the file"}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "of a corpus: of files that are no parquet, such as cp1252; null: recognised"}
    )
    invalid_rows: Literal["refuse", "drop"] = field(
        default="refuse",
        metadata={"help": "rows that are no conversation or pair of answers: refuse them all, or drop and count them"},
    )
    shard_megabytes: float = field(
        default=500.0, metadata={"help": "most data in one parquet file, in 10^6 bytes before compression"}
    )
    language: str | None = field(default=None, metadata={"help": "of the card: en, pt or both; null: both"})

    def __post_init__(self) -> None:
        """Refuse values that no dataset can be made with.

        Raises:
            InputError: a shard of no size.
        """
        ensure(self.shard_megabytes > 0, f"shard_megabytes={self.shard_megabytes}: must be more than 0. 500 is usual.")

    def said(self) -> dict[str, object]:
        """Return what differs from the defaults, of the keys above."""
        values = {
            item.name: (getattr(self, item.name), getattr(_DEFAULTS, item.name)) for item in fields(DatasetOptions)
        }
        return {name: value for name, (value, default) in values.items() if value != default}

    def corpus_keys(self) -> dict[str, object]:
        """Return what was said about the reading of a corpus; what was left out is not there."""
        names = ("validation_inputs", "validation_fraction", "text_column", "metadata_column", "txt_unit", "encoding")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


_DEFAULTS = DatasetOptions()


@dataclass(frozen=True)
class Row:
    """One row before it is written.

    Attributes:
        split: train or validation.
        source: that it counts under.
        license: as the data states it; empty when it does not.
        value: what the kind's `columns` writes.
        texts: what bytes and words are counted of.
    """

    split: Split
    source: str
    license: str
    value: Any
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Content:
    """A dataset to be published, before it is counted and written.

    Attributes:
        kind: of the data.
        schema: of the parquet files.
        rows: yields all rows in a fixed order, again at each call.
        columns: returns the arrays of some rows, given their licences.
        inputs: sha256 by name of what is read.
        identity: what says, at the next publication, that it is the same dataset in a newer state.
        facts: what the card tells of this kind, from manifests and settings.
        row_bytes: of each row where all are alike and need not be counted (packed rows), else None.
    """

    kind: Kind
    schema: "pyarrow.Schema"
    rows: Callable[[], Iterator[Row]]
    columns: "Callable[[list[Row], list[str]], list[pyarrow.Array]]"
    inputs: dict[str, str]
    identity: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    row_bytes: int | None = None


def features_of(schema: "pyarrow.Schema") -> list[dict[str, Any]]:
    """Return a schema as `dataset_info` of a card spells features, which `datasets` reads back as the same ones."""
    return [{"name": name, **_feature(kind)} for name, kind in zip(schema.names, schema.types, strict=True)]


def _feature(kind: "pyarrow.DataType") -> dict[str, Any]:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        fields = [kind.field(place) for place in range(kind.num_fields)]
        return {"struct": [{"name": part.name, **_feature(part.type)} for part in fields]}
    if pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        inner = _feature(kind.value_type)
        length = {"length": kind.list_size} if pyarrow.types.is_fixed_size_list(kind) else {}
        return {"list": inner.get("struct") or inner["dtype"], **length}
    return {"dtype": str(kind)}


_CORPUS_KEYS = ("validation_inputs", "validation_fraction", "text_column", "metadata_column", "txt_unit", "encoding")


def corpus_content(inputs: list[str], settings: dict[str, Any], options: DatasetOptions) -> Content:
    """Return the content of a corpus.

    Args:
        inputs: see `data.sources`.
        settings: keys of a packing config, where the inputs come from one.
        options: of the user; they go before the settings.

    Raises:
        InputError: see `Corpus`; also a packed folder that was made of other files, or one beside settings of its own.
    """
    packing = None
    settings = {name: settings[name] for name in _CORPUS_KEYS if name in settings} | options.corpus_keys()
    if options.packed is not None:
        ensure(
            not options.corpus_keys(),
            f"packed={options.packed}: decides the split and the columns already. Leave out "
            f"{', '.join(options.corpus_keys())}.",
        )
        packing = packed_manifest(options.packed)
        settings = {name: packing["config"][name] for name in _CORPUS_KEYS if name in packing["config"]}
    config = CorpusConfig(inputs=inputs, **settings)
    corpus = Corpus(config)
    hashes = corpus.fingerprint()
    if packing is not None:
        ensure(
            sorted(hashes.values()) == sorted(packing["plan"]["inputs"].values()),
            f"packed={options.packed}: was made of other files than these. Give the inputs of its run.json "
            f"({', '.join(packing['config']['inputs'])}), unchanged, or leave --packed out.",
        )
    facts = {
        "packing": packing,
        # None: what is held out was set apart beforehand, as that of the sample always is.
        "validation_fraction": config.validation_fraction if corpus.files and not config.validation_inputs else None,
    }
    names = sorted({Path(text).name if not text.startswith("hf://") else text for text in inputs})
    return Content("corpus", _schema(), lambda: _corpus_rows(corpus), _corpus_columns, hashes, {"inputs": names}, facts)


def _schema() -> "pyarrow.Schema":
    import pyarrow

    origin = pyarrow.struct([("source", pyarrow.string()), ("license", pyarrow.string())])
    return pyarrow.schema([("text", pyarrow.string()), ("metadata", origin)])


def _corpus_rows(corpus: Corpus) -> Iterator[Row]:
    for split, document in corpus.documents():
        yield Row(split, document.source, document.license, document.text, (document.text,))


def _corpus_columns(rows: list[Row], licenses: list[str]) -> "list[pyarrow.Array]":
    import pyarrow

    sources = pyarrow.array([row.source for row in rows], pyarrow.string())
    origin = [sources, pyarrow.array(licenses, pyarrow.string())]
    return [
        pyarrow.array([row.value for row in rows], pyarrow.string()),
        pyarrow.StructArray.from_arrays(origin, names=["source", "license"]),
    ]


def packed_content(folder: Path) -> Content:
    """Return the content of a packed folder.

    Raises:
        InputError: see `load_packed`; also files that are links, or that changed after packing.
    """
    import pyarrow

    packed = load_packed(folder, "source")
    manifest = packed.manifest
    for name in PACKED_NAMES:
        inside(folder, folder / name)
    check_packed(packed, "source")
    hashes = {name: manifest["hashes"][name] for name in PACKED_NAMES}
    context = int(manifest["context"])
    facts = {
        "packing": manifest,
        "context": context,
        "tokenizer_sha256": manifest["tokenizer_sha256"],
        "vocab_size": manifest["vocab_size"],
        "dropped_validation_tokens": int(packed.validation.size) % context,
        "counted": counted_sources(manifest),
        "rows": {"train": len(packed.train), "validation": int(packed.validation.size) // context},
    }
    return Content(
        "packed",
        pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32(), context))]),
        lambda: _token_rows(packed, context),
        lambda rows, _: _token_columns(rows, context),
        hashes,
        {"tokenizer_sha256": manifest["tokenizer_sha256"], "context": context},
        facts,
        row_bytes=4 * context,
    )


def counted_sources(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what packing counted of each source, of both splits together."""
    counted: dict[str, dict[str, Any]] = {}
    for split, sources in (("train", manifest["sources"]), ("validation", manifest["validation_sources"])):
        for name, record in sources.items():
            source = counted.setdefault(
                name, {"rows": 0, "validation_rows": 0, "bytes": 0, "tokens": 0, "licenses": []}
            )
            source["rows"] += record["documents"]
            source["validation_rows"] += record["documents"] if split == "validation" else 0
            source["bytes"] += record["bytes"]
            source["tokens"] += record["tokens"]
            source["licenses"] += [name for name in record["licenses"] if name not in source["licenses"]]
    return counted


def _token_rows(packed: PackedCorpus, context: int) -> Iterator[Row]:
    for row in packed.train:
        yield Row("train", "", "", row, ())
    for start in range(0, packed.validation.size - context + 1, context):
        yield Row("validation", "", "", packed.validation[start : start + context], ())


def _token_columns(rows: list[Row], context: int) -> "list[pyarrow.Array]":
    import pyarrow

    flat = np.concatenate([row.value for row in rows]).astype(np.int32)
    return [pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), context)]


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
    for split, found, _ in split_conversations(config.inputs, train, held_out, config.validation_fraction, counts):
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
