"""Contents of datasets: what a source holds (corpus, packed rows, instructions, preferences) and the rows of each.

The kind is told from the manifest of a folder of ours, or from the columns of the files. A corpus has `text`, and
`metadata` with source and licence, split by document as `ttl pack` splits. Packed rows have `input_ids` of one length;
of the held-out documents, the end that does not fill a row is left out and counted. Instructions have `messages`;
preferences have `prompt`, `chosen` and `rejected`, each a list of turns, which is the conversational form that TRL
reads. Both are split as `ttl sft` and `ttl dpo` do, and held in memory: an equal question stays on one side of the
split, which only the whole set can tell.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arguments import read_values
from ..checks import ensure
from ..data.conversations import ConversationsConfig, PreferencesConfig, conversations_manifest, preferences_manifest
from ..data.input_files import RECORD_SUFFIXES, SAMPLE, SUFFIXES, SourceFile, hash_files, list_data_files, resolve_files
from ..data.instructions import (
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
from ..data.pack import PackConfig
from ..data.packed import PACKED_NAMES, check_packed, load_packed, packed_manifest
from ..data.readers import read_records, text_column_of
from ..data.sources import Corpus, CorpusConfig, Split, sample_hash
from ..data.turns import ANSWER_KEYS, QUESTION_KEYS, TURN_KEYS, Message
from ..people.study import STUDY_NAME
from ..stage_folder import CONFIG_NAME, MANIFEST_NAME, METRICS_NAME, find_manifest, sha256_file
from .contents import corpus_inputs
from .dataset_shards import DatasetContent, DatasetRow
from .safety import inside

_CORPUS_KEYS = ("validation_inputs", "validation_fraction", "text_column", "metadata_column", "txt_unit", "encoding")
_INPUTS_FIX = "Publish the files themselves, or prepare the folder again."
_STAGE_KINDS = {"corpus": "corpus", "pack": "packed", "conversations": "instructions", "preferences": "preferences"}
_RUN_FILES = ("config.json", "adapter_config.json", CONFIG_NAME, METRICS_NAME, "tokenizer.json", STUDY_NAME)
_CONFIG_SUFFIXES = (".yaml", ".yml")
_KNOWN_FORMS = (
    "A corpus has a column `text` (or another, named with --text_column), instructions have `messages`, or "
    "`instruction` and `output`, or `prompt` and `completion`; preferences have `prompt`, `chosen` and `rejected`. Say "
    "which it is with --kind."
)


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
        """Refuse a shard of no size with an InputError."""
        ensure(self.shard_megabytes > 0, f"shard_megabytes={self.shard_megabytes}: must be more than 0. 500 is usual.")

    def said(self) -> dict[str, object]:
        """Return what differs from the defaults, of the keys above."""
        defaults = asdict(DatasetOptions())
        return {name: value for name in defaults if (value := getattr(self, name)) != defaults[name]}

    def corpus_keys(self) -> dict[str, object]:
        """Return what was said about the reading of a corpus; what was left out is not there."""
        return {name: value for name in _CORPUS_KEYS if (value := getattr(self, name)) is not None}


def is_dataset(source: list[str]) -> bool:
    """Return whether a source is a dataset rather than a model, a checkpoint, a run or a tokenizer; reads little.

    A folder or file of which nothing is known counts as a dataset when data files are in it; what is wrong with it is
    said by `dataset_uploads`.
    """
    if len(source) != 1 or source[0] == SAMPLE or source[0].startswith("hf://"):
        return bool(source)
    path = Path(source[0])
    if not path.is_dir():
        return path.name.lower().endswith((*SUFFIXES, *_CONFIG_SUFFIXES)) or "*" in source[0]
    stage = (find_manifest(path) or {}).get("stage")
    if stage is not None:
        return stage in _STAGE_KINDS
    if any((path / name).exists() for name in _RUN_FILES) or any(path.glob("checkpoint-*")):
        return False
    return (path / ".partial").is_dir() or any(list_data_files(path, SUFFIXES))


def read_content(source: list[str], options: DatasetOptions) -> DatasetContent:
    """Return the content of a source.

    Args:
        source: files, folders, globs, `hf://datasets/user/name@commit`, `sample`; a YAML file for `ttl pack`, whose
            inputs are meant; or one folder of `ttl pack`, `ttl conversations` or `ttl dpo`.
        options: of the user.

    Raises:
        InputError: nothing is there, its kind cannot be told, it is of several kinds, it is a link to elsewhere, or
            options that do not concern it.
    """
    ensure(source, "source: missing. Give the folder or the files of the dataset.")
    shown = ", ".join(source)
    inputs, settings = _of_config(source) if source[0].lower().endswith(_CONFIG_SUFFIXES) else (source, {})
    for text in inputs:
        if (manifest := find_manifest(folder := Path(text))) is not None and (stage := manifest.get("stage")):
            ensure(len(inputs) == 1, f"source={shown}: {text} was made by `{stage}` and is published alone.")
            return _of_stage(folder, stage, options)
        ensure(
            not (Path(text) / ".partial").is_dir(),
            f"source={text}: packing is not finished, it has no {MANIFEST_NAME}. Run the same `ttl pack` again first.",
        )
    for text in (*inputs, *(options.validation_inputs or ()), *(settings.get("validation_inputs") or ())):
        for path in list_data_files(Path(text), SUFFIXES) if Path(text).is_dir() else ():
            inside(Path(text), path)
    kind = options.kind if options.kind != "auto" else _kind_of_files(inputs, shown, options, settings)
    ensure(kind != "packed", f"kind=packed: {shown} is no folder of `ttl pack`, it has no {MANIFEST_NAME}.")
    ensure(kind == "corpus" or options.packed is None, f"packed={options.packed}: concerns a corpus, not {kind}.")
    if kind == "corpus":
        return corpus_content(inputs, settings, options)
    _refuse(options, ("text_column", "metadata_column", "txt_unit"), kind)
    if kind == "instructions":
        return instructions_content(inputs, options)
    _refuse(options, ("validation_inputs",), kind)
    return preferences_content(inputs, options)


def _of_config(source: list[str]) -> tuple[list[str], dict[str, Any]]:
    ensure(len(source) == 1, f"source={', '.join(source)}: a config is published alone.")
    values = read_values(PackConfig, ["--config", source[0]])
    ensure(values.get("inputs"), f"source={source[0]}: has no `inputs`. Give a config for `ttl pack`.")
    return list(values["inputs"]), values


def _of_stage(folder: Path, stage: str, options: DatasetOptions) -> DatasetContent:
    ensure(
        stage in _STAGE_KINDS,
        f"source={folder}: was made by {stage!r}, which makes no dataset. Datasets are made by "
        f"{', '.join(_STAGE_KINDS)}, or are files with texts.",
    )
    kind = _STAGE_KINDS[stage]
    ensure(options.kind in ("auto", kind), f"kind={options.kind}: {folder} holds {kind}. Leave --kind out.")
    _refuse(options, (*options.corpus_keys(), "packed"), f"a folder of {stage!r}")
    if kind == "corpus":
        inputs, settings, facts = corpus_inputs(folder)
        content = corpus_content(inputs, settings, options)
        return replace(content, facts=content.facts | facts, identity={"inputs": [folder.resolve().name]})
    if kind == "packed":
        return packed_content(folder)
    return conversations_content(folder) if kind == "instructions" else preferences_content([], options, folder)


def _refuse(options: DatasetOptions, names: Iterable[str], what: str) -> None:
    for name in names:
        value = getattr(options, name)
        ensure(value is None, f"{name}={value}: does not concern {what}. Leave it out.")


def _kind_of_files(inputs: list[str], shown: str, options: DatasetOptions, settings: dict[str, Any]) -> str:
    """Return the one kind that all files are of, by the columns of their first rows."""
    columns = [
        getattr(options, name) or settings.get(name, default)
        for name, default in (("text_column", "text"), ("metadata_column", "metadata"))
    ]
    kinds = {} if SAMPLE not in inputs else {SAMPLE: "corpus"}
    for file in resolve_files("source", inputs, SUFFIXES):
        is_txt = ".txt" in file.path.suffixes[-2:] or file.path.name.lower().endswith(".txt")
        kinds[file.name] = "corpus" if is_txt else _kind_of_rows(file, *columns)
    found = sorted(set(kinds.values()))
    if len(found) > 1:
        examples = " and ".join(f"{next(name for name in kinds if kinds[name] == kind)} of {kind}" for kind in found)
        ensure(False, f"source={shown}: holds {examples}. Publish them apart, or say what all are with --kind.")
    return found[0]


def _kind_of_rows(file: SourceFile, text_column: str, metadata_column: str) -> str:
    """Return the kind of a file's first row."""
    row = next(iter(read_records("source", file.path)), None)
    ensure(row is not None, f"source={file.path}: holds no row. Take it away or fill it.")
    assert row is not None
    names = {name for name, value in row.items() if value is not None}
    is_asked = bool(names & {*QUESTION_KEYS, "input"})
    forms = {
        "preferences": {"chosen", "rejected"} <= names,
        "instructions": bool(names & set(TURN_KEYS)) or (is_asked and bool(names & set(ANSWER_KEYS))),
        "corpus": text_column in row,
    }
    if not any(forms.values()):  # a column called otherwise is guessed only where nothing else is told
        with_text = [name for name, value in row.items() if isinstance(value, str)]
        forms["corpus"] = text_column_of(list(row), with_text, text_column, metadata_column) is not None
    found = [kind for kind, fits in forms.items() if fits]
    ensure(
        len(found) == 1,
        f"source={file.path}: its kind cannot be told from the columns {', '.join(row) or '(none)'}"
        f"{' (' + ' or '.join(found) + ')' if found else ''}. {_KNOWN_FORMS}",
    )
    return found[0]


def corpus_content(inputs: list[str], settings: dict[str, Any], options: DatasetOptions) -> DatasetContent:
    """Return the content of a corpus.

    Args:
        inputs: see `data.sources`.
        settings: keys of a packing config, where the inputs come from one.
        options: of the user; they go before the settings.

    Raises:
        InputError: see `Corpus`; also a packed folder that was made of other files, or one beside settings of its own.
    """
    import pyarrow

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
    origin = pyarrow.struct([("source", pyarrow.string()), ("license", pyarrow.string())])
    schema = pyarrow.schema([("text", pyarrow.string()), ("metadata", origin)])

    def rows() -> Iterator[DatasetRow]:
        for split, found in corpus.documents():
            yield DatasetRow(split, found.source, found.license, {"text": found.text}, (found.text,))

    return DatasetContent("corpus", schema, rows, hashes, {"inputs": sorted(set(_names(inputs)))}, facts)


def packed_content(folder: Path) -> DatasetContent:
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
        "rows": {"train": len(packed.train), "validation": int(packed.validation.size) // context},
    }

    def rows() -> Iterator[DatasetRow]:
        for row in packed.train:
            yield DatasetRow("train", "", "", {"input_ids": row.astype(np.int32)})
        for start in range(0, packed.validation.size - context + 1, context):  # packing never cuts these into rows
            ids = packed.validation[start : start + context].astype(np.int32)
            yield DatasetRow("validation", "", "", {"input_ids": ids})

    return DatasetContent(
        "packed",
        pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32(), context))]),
        rows,
        hashes,
        {"tokenizer_sha256": manifest["tokenizer_sha256"], "context": context},
        facts,
        row_bytes=4 * context,
    )


def conversations_content(folder: Path) -> DatasetContent:
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

    def rows() -> Iterator[DatasetRow]:
        for split, path in files.items():
            for record in read_records("source", path, ["messages", "source", "license"]):
                columns = {"messages": record["messages"]}
                yield _turns_row(split, record["source"], record.get("license") or "", columns)

    return _turns_content("instructions", rows, hashes, manifest["plan"]["inputs"], {"prepared": manifest})


def instructions_content(inputs: list[str], options: DatasetOptions) -> DatasetContent:
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
        rows.append(_turns_row(split, found.source, found.license, {"messages": found.messages}))
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
    return _turns_content("instructions", lambda: iter(rows), hashes, inputs, facts)


def preferences_content(inputs: list[str], options: DatasetOptions, folder: Path | None = None) -> DatasetContent:
    """Return the content of preference files.

    Args:
        inputs: the files.
        options: of the user.
        folder: of `ttl dpo`, whose inputs and split are to be published; it holds no texts of the rejected answers, so
            the inputs are read again.

    Raises:
        InputError: bad inputs, rows that are no pair and are not to be dropped, or inputs that changed since.
    """
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
        columns = {"prompt": pair.chosen[:-1], "chosen": pair.chosen[-1:], "rejected": pair.rejected[-1:]}
        rows.append(_turns_row(pair.split, pair.source, pair.license, columns))
    refuse_bad_rows(config, counts, "are no pair of answers", (DUPLICATE,))
    ensure(rows, f"source={', '.join(inputs)}: holds no pair of answers ({reasons(counts)}).")
    facts = {
        "dropped": dict(counts.dropped),
        "unused_columns": dict(counts.unused),
        "validation_fraction": config.validation_fraction,
        "prepared": manifest,
    }
    return _turns_content("preferences", lambda: iter(rows), hashes, inputs, facts)


def _turns_content(
    kind: Literal["instructions", "preferences"],
    rows: Callable[[], Iterator[DatasetRow]],
    hashes: dict[str, str],
    inputs: list[str],
    facts: dict[str, Any],
) -> DatasetContent:
    """Return a content whose columns hold turns; `source` has the name by which the stages read it back."""
    import pyarrow

    text, turns = pyarrow.string(), messages_type()
    columns = {"instructions": ("messages",), "preferences": ("prompt", "chosen", "rejected")}[kind]
    schema = pyarrow.schema([*((name, turns) for name in columns), ("source", text), ("license", text)])
    return DatasetContent(kind, schema, rows, hashes, {"inputs": _names(inputs)}, facts)


def _turns_row(split: Split, source: str, license: str, columns: dict[str, list[Message]]) -> DatasetRow:
    texts = tuple(message["content"] for messages in columns.values() for message in messages)
    return DatasetRow(split, source, license, dict(columns), texts)


def _names(inputs: list[str]) -> list[str]:
    return sorted(text if text.startswith("hf://") else Path(text).name for text in inputs)
