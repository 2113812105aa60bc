"""From a source to an `Upload`: count, refuse, write the shards that are missing, describe."""

from pathlib import Path
from typing import Any

from ...checks import ensure
from ...manifest import versions
from ..refusals import check_repository
from ..uploads import Upload, UploadFile, record_file
from .card import Described, describe_making, render_dataset_card, render_licenses, source_name
from .content import Content
from .counting import count
from .kinds import read_content
from .licenses import LICENSE_NAME, license_metadata, parse_licenses
from .options import DatasetOptions
from .shards import Staging, write_shards

CARD_NAME, RECORD_NAME = "README.md", "dataset.json"
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
    return Upload(repository, "dataset", "main", (*files, *data), message, record=RECORD_NAME)


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
    return record_file(RECORD_NAME, {"kind": content.kind, **content.identity}, paths, more)


def default_staging(source: list[str]) -> Path:
    """Return where the shards of a source are kept until they are sent, unless the user says otherwise.

    Beside the source rather than in it, where the next reading would find them.
    """
    first = Path(source[0])
    folder = first.parent if first.exists() else Path()
    return folder / f"{source_name(source)}.publish"
