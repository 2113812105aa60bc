"""What kind of dataset a source is: told from the manifest of a folder of ours, or from the columns of the files.

From a source to an `Upload`: count, refuse, write the shards that are missing, describe.

Datasets for the Hub: a corpus, packed rows, instructions or preferences become parquet shards with a card.

Nothing here writes to the network: `dataset_uploads` returns what is to be sent.

`ttl publish FOLDER_OR_FILES --to owner/name` for a dataset: to the Hub, into a folder, or only as a list.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...arguments import read_values
from ...checks import RunFailedError, ensure
from ...data.input_files import SAMPLE, SUFFIXES, SourceFile, list_data_files, resolve_files
from ...data.pack import PackConfig
from ...data.readers import read_records, text_column_of
from ...data.turns import ANSWER_KEYS, QUESTION_KEYS, TURN_KEYS
from ...stage_folder import (
    CARD_NAME,
    CONFIG_NAME,
    DATASET_RECORD_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    find_manifest,
    versions,
)
from ..hub import open_hub
from ..publish import PublishConfig, check_folder, describe_uploads, folder_of, push_and_say, write_folder
from ..safety import Upload, UploadFile, check_repository, inside, record_file
from .content import (
    Content,
    DatasetOptions,
    conversations_content,
    corpus_content,
    instructions_content,
    packed_content,
    preferences_content,
)
from .dataset_card import (
    Described,
    describe_making,
    license_metadata,
    render_dataset_card,
    render_licenses,
    source_name,
)
from .shards import LICENSE_NAME, Staging, count, discard_staging, parse_licenses, write_shards

_STAGE_KINDS = {"pack": "packed", "conversations": "instructions", "preferences": "preferences"}
_RUN_FILES = ("config.json", "adapter_config.json", CONFIG_NAME, METRICS_NAME, "tokenizer.json")
_CONFIG_SUFFIXES = (".yaml", ".yml")
_KNOWN_FORMS = (
    "A corpus has a column `text` (or another, named with --text_column), instructions have `messages`, or "
    "`instruction` and `output`, or `prompt` and `completion`; preferences have `prompt`, `chosen` and `rejected`. Say "
    "which it is with --kind."
)


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


def read_content(source: list[str], options: DatasetOptions) -> Content:
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
    _check_links([*inputs, *(options.validation_inputs or []), *(settings.get("validation_inputs") or [])])
    kind = options.kind if options.kind != "auto" else _kind_of_files(inputs, shown, options, settings)
    ensure(
        kind != "packed",
        f"kind=packed: {shown} is no folder of `ttl pack`, it has no {MANIFEST_NAME}.",
    )
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


def _of_stage(folder: Path, stage: str, options: DatasetOptions) -> Content:
    ensure(
        stage in _STAGE_KINDS,
        f"source={folder}: was made by {stage!r}, which makes no dataset. Datasets are made by "
        f"{', '.join(_STAGE_KINDS)}, or are files with texts.",
    )
    kind = _STAGE_KINDS[stage]
    ensure(options.kind in ("auto", kind), f"kind={options.kind}: {folder} holds {kind}. Leave --kind out.")
    _refuse(options, (*options.corpus_keys(), "packed"), f"a folder of {stage!r}")
    if kind == "packed":
        return packed_content(folder)
    return conversations_content(folder) if kind == "instructions" else preferences_content([], options, folder)


def _refuse(options: DatasetOptions, names: Iterable[str], what: str) -> None:
    for name in names:
        value = getattr(options, name)
        ensure(value is None, f"{name}={value}: does not concern {what}. Leave it out.")


def _check_links(inputs: list[str]) -> None:
    for text in inputs:
        if Path(text).is_dir():
            for path in list_data_files(Path(text), SUFFIXES):
                inside(Path(text), path)


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


_FORMAT = 1  # of the shards: a change makes what lies in a staging folder out of date
_UNITS = {"corpus": "documents", "packed": "rows of tokens", "instructions": "conversations",
          "preferences": "pairs of answers"}  # fmt: skip


def dataset_uploads(source: list[str], repository: str, staging: Path, options: DatasetOptions) -> Upload:
    """Write the shards of a dataset and return everything that its repository is to hold.

    Args:
        source: see `kinds.read_content`.
        repository: `owner/name`; empty for a folder, which is called like the source.
        staging: folder for the shards. A second call with the same source finds those that are finished, so a kill
            costs one shard; they must stay until they are sent.
        options: of the user.

    Raises:
        InputError: see `kinds.read_content` and `counting.count`; also a staging folder inside the source, which the
            next call would read. Nothing is written before everything has been read once.
    """
    if repository:
        check_repository(repository)
    licenses = parse_licenses(options.license)
    content = read_content(source, options)
    for text in source:
        ensure(
            not Path(text).is_dir() or not staging.resolve().is_relative_to(Path(text).resolve()),
            f"staging={staging}: lies inside {text}, which is to be published. Choose a folder elsewhere.",
        )
    shard_bytes = int(options.shard_megabytes * 1e6)
    place = Staging(staging, _plan(content, options, shard_bytes))
    counts = place.counts()
    if counts is None:
        counts = count(content, licenses, shard_bytes)
        place.keep_counts(counts)
    shards = write_shards(place, content, licenses, counts)
    described = Described(repository, source, content, counts, shards, options)
    files = [UploadFile(CARD_NAME, render_dataset_card(described).encode())]
    if license_metadata(counts.licenses())["license"] == "other":
        files.append(UploadFile(LICENSE_NAME, render_licenses(described).encode()))
    data = [UploadFile(shard.path, staging / shard.path) for shard in shards]
    files.append(_record(described, [file.path for file in [*files, *data]]))
    rows = sum(shard.rows for shard in shards)
    message = f"{rows:,} {_UNITS[content.kind]} in {len(shards)} file{'' if len(shards) == 1 else 's'}"
    return Upload(repository, "dataset", "main", (*files, *data), message, record=DATASET_RECORD_NAME)


def _plan(content: Content, options: DatasetOptions, shard_bytes: int) -> dict[str, Any]:
    """Return all that decides the shards' bytes."""
    decided = {name: value for name, value in options.said().items() if name not in ("packed", "language")}
    split = content.facts.get("validation_fraction")
    return {
        "format": _FORMAT,
        "kind": content.kind,
        "inputs": content.inputs,
        "options": {**decided, "validation_fraction": split, "shard_bytes": shard_bytes},
        "columns": str(content.schema),
        "versions": versions(("pyarrow",)),
    }


def _record(described: Described, paths: list[str]) -> UploadFile:
    """Return `dataset.json`: what the repository holds and what made it, for programs and for the next publication."""
    content, facts = described.content, described.content.facts
    more: dict[str, Any] = {
        "kind": content.kind,
        "splits": described.splits(),
        "sources": described.counts.sources,
        "inputs": content.inputs,
        "validation_fraction": facts.get("validation_fraction"),
        "dropped": facts.get("dropped", {}),
        **{key: facts[key] for key in ("context", "vocab_size", "tokenizer_sha256") if key in facts},
        "making": describe_making(described),
        "hashes": {shard.path: shard.sha256 for shard in described.shards},
    }
    return record_file(DATASET_RECORD_NAME, {"kind": content.kind, **content.identity}, paths, more)


def default_staging(source: list[str]) -> Path:
    """Return where the shards of a source are kept until they are sent, unless the user says otherwise.

    Beside the source rather than in it, where the next reading would find them.
    """
    first = Path(source[0])
    folder = first.parent if first.exists() else Path()
    return folder / f"{source_name(source)}.publish"


_OF_RUNS = ("follow", "checkpoints", "optimizer_state", "base_model", "skip_damaged", "poll_seconds")


@dataclass
class PublishDatasetConfig(DatasetOptions, PublishConfig):
    """`ttl publish` of a dataset: where to, who may see it, and what it is made of."""

    REFUSED_KEYS: ClassVar[dict[str, str]] = {
        **PublishConfig.REFUSED_KEYS,
        **dict.fromkeys(_OF_RUNS, "concerns runs, and this is a dataset. Leave it out."),
    }

    staging: str | None = field(
        default=None,
        metadata={"help": "folder for the parquet files until they are sent; null: NAME.publish beside the source"},
    )

    def __post_init__(self) -> None:
        """Refuse what neither a publication nor a dataset can have.

        Raises:
            InputError: see `PublishConfig` and `DatasetOptions`.
        """
        PublishConfig.__post_init__(self)
        DatasetOptions.__post_init__(self)


def publish_dataset(source: list[str], config: PublishDatasetConfig) -> None:
    """Publish a dataset, or say what would be published.

    The token is tried before the shards are written, which can take hours. They are deleted once they have arrived; a
    failure and a dry run leave them for the next start.

    Raises:
        InputError: see `dataset_uploads` and `hub.push`.
        RunFailedError: the Hub gives no good answer in time.
    """
    if config.is_folder:
        check_folder(folder_of(config.to))
    hub = None if config.dry_run or config.is_folder else open_hub(config.limits())
    staging = Path(config.staging).expanduser() if config.staging else default_staging(source)
    upload = dataset_uploads(source, config.repository, staging, config)
    if config.dry_run:
        print(describe_uploads([upload]))
        print(f"the files are kept in {staging} for the publication itself")
        return
    if hub is None:
        print(write_folder([upload], folder_of(config.to)))
    else:
        try:
            push_and_say(hub, upload, config)
        except RunFailedError as error:
            raise RunFailedError(
                f"{error} {staging} keeps what is written; the same command goes on from there."
            ) from error
    discard_staging(staging)
