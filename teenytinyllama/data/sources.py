"""Where documents come from: local parquet, jsonl and txt files, Hub datasets at a pinned commit, the embedded sample.

An input is one of:

* a file, a folder (searched for files of the known kinds) or a glob;
* `hf://datasets/user/name@COMMIT[/pattern]`: files of a Hub dataset at a 40-digit commit;
* `sample`: the embedded corpus, which has its own held-out stories.
"""

import contextlib
import fnmatch
import functools
import glob
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checks import InputError, ensure
from ..hub_client import hub_errors
from ..manifest import sha256_file
from .readers import SUFFIXES, Row, read_rows

Split = Literal["train", "validation"]
SAMPLE = "sample"
_HUB_INPUT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)(?:/(?P<pattern>.+))?$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_METADATA_FIELD = re.compile(r"\b(source|license|licence)\s*:\s*([^;]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """One text, with the source it counts under and the licence it carries (empty when unknown)."""

    text: str
    source: str
    license: str = ""


@dataclass
class CorpusConfig:
    """Which documents a stage reads, and which of them are held out."""

    inputs: list[str] = field(
        metadata={"help": "files, folders, globs, hf://datasets/user/name@commit, or `sample` (the embedded corpus)"}
    )
    validation_inputs: list[str] | None = field(
        default=None, metadata={"help": "held-out documents of their own; then nothing of `inputs` is held out"}
    )
    validation_fraction: float = field(
        default=0.01,
        metadata={"help": "share of the documents held out, chosen by a hash of the text, so that it stays the same "
                          "when the corpus grows"},
    )  # fmt: skip
    text_column: str = field(default="text", metadata={"help": "column (parquet) or key (jsonl) that holds the text"})
    metadata_column: str = field(
        default="metadata", metadata={"help": "optional column with `source: …; license: …` or a mapping of the two"}
    )
    txt_unit: Literal["file", "line"] = field(
        default="file", metadata={"help": "what one document is in a txt file: the whole file, or each line"}
    )

    def __post_init__(self) -> None:
        """Refuse values that no corpus can have.

        Raises:
            InputError: no input, or a fraction outside [0, 0.5].
        """
        ensure(self.inputs, "inputs=[]: empty. Give at least one file, folder or dataset.")
        ensure(
            0.0 <= self.validation_fraction <= 0.5,
            f"validation_fraction={self.validation_fraction}: must lie between 0 and 0.5. 0.01 is usual.",
        )
        ensure(
            self.text_column != self.metadata_column,
            f"metadata_column={self.metadata_column}: is the text_column. Give another column, or leave it out.",
        )


@dataclass(frozen=True)
class SourceFile:
    """A file to read, under the name that a user would know it by."""

    name: str
    path: Path


def resolve_files(key: str, inputs: list[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[SourceFile]:
    """Return the files that the inputs stand for, in a fixed order; `sample` has none.

    Args:
        key: the config key that names them, for the message.
        inputs: files, folders, globs, Hub datasets; see the module.
        suffixes: how files of the wanted kinds end.

    Raises:
        InputError: an input matches nothing, is of an unknown kind, or is a Hub dataset without a pinned commit.
    """
    files: list[SourceFile] = []
    for text in inputs:
        if text == SAMPLE:
            continue
        if text.startswith("hf://"):
            files += _hub_files(key, text, suffixes)
            continue
        paths = [Path(text)] if Path(text).exists() else _matches(text)
        ensure(
            paths,
            f"{key}={text}: no such file or folder, and no file matches it as a glob. A Hub dataset is written "
            "hf://datasets/user/name@commit.",
        )
        for path in paths:
            found = _files_below(path, suffixes) if path.is_dir() else [path]
            ensure(found, f"{key}={text}: the folder holds no {', '.join(suffixes)} file.")
            ensure(
                all(_is_known(file, suffixes) for file in found),
                f"{key}={path}: unknown kind of file. Known are {', '.join(suffixes)}.",
            )
            files += [SourceFile(str(file.relative_to(path.parent)) if path.is_dir() else file.name, file)
                      for file in found]  # fmt: skip
    return files


def _matches(pattern: str) -> list[Path]:
    """Return what a glob stands for; `**` is any depth, and then means files, which their folders would repeat."""
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return [path for path in found if path.is_file()] if "**" in pattern else found


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files of known kinds in a folder and below it, links to folders included, by name."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()  # the same on every machine
        found += [Path(place) / name for name in names]
    return sorted(path for path in found if _is_known(path, suffixes))


def hub_datasets(inputs: list[str]) -> list[str]:
    """Return the Hub datasets among the inputs of a stage, without commits and patterns."""
    return sorted({match["repo"] for text in inputs if (match := _HUB_INPUT.match(text))})


def _is_known(path: Path, suffixes: tuple[str, ...]) -> bool:
    # run.json and audits of our own folders are .json, which is not a corpus format here.
    return path.is_file() and path.name.lower().endswith(suffixes)


def _hub_files(key: str, text: str, suffixes: tuple[str, ...]) -> list[SourceFile]:
    """Download the text files of a Hub dataset at its pinned commit, one by one.

    A whole-snapshot download answers a server error with whatever lies in the cache; per-file downloads fail.
    """
    match = _HUB_INPUT.match(text)
    ensure(match, f"{key}={text}: not of the form hf://datasets/user/name@commit or …@commit/pattern.")
    assert match is not None
    repo, revision, pattern = match["repo"], match["revision"], match["pattern"] or "*"
    ensure(
        re.fullmatch(r"[0-9a-f]{40}", revision),
        f"{key}={text}: {revision!r} can move. Pin the 40-digit commit that the dataset's page shows under "
        "'Files and versions'.",
    )
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
        wanted = [name for name in sorted(names) if name.lower().endswith(suffixes) and fnmatch.fnmatch(name, pattern)]
        ensure(wanted, f"{key}={text}: no {', '.join(suffixes)} file there matches {pattern!r}.")
        return [
            SourceFile(f"{repo}/{name}", Path(hf_hub_download(repo, name, repo_type="dataset", revision=revision)))
            for name in wanted
        ]
    except hub_errors() as error:
        raise InputError(
            f"{key}={text}: could not be read from the Hub: {type(error).__name__}: {str(error).splitlines()[0]} "
            "Check the name, the commit, `hf auth login` for a private dataset, and the network."
        ) from error


def default_source(path: Path) -> str:
    """Return the source of a file's documents that name none: its name without endings and the number of a shard."""
    return _SHARD.sub("", path.name.split(".")[0])


def parse_metadata(metadata: Any, default_source: str) -> tuple[str, str]:
    """Return (source, licence) from a metadata cell: a mapping, its JSON, or text such as `source: x; license: y`."""
    if isinstance(metadata, str) and metadata.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):  # what only looks like JSON is read as text
            metadata = json.loads(metadata)
    if isinstance(metadata, dict):
        found = {str(name).lower(): str(value) for name, value in metadata.items() if value is not None}
    else:
        found = {name.lower(): value.strip() for name, value in _METADATA_FIELD.findall(str(metadata or ""))}
    return found.get("source") or default_source, found.get("license") or found.get("licence") or ""


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether a document belongs to the validation split, by a hash of its text.

    The decision needs no other document: it stays the same when the corpus grows, and equal documents never fall
    on both sides.
    """
    digest = hashlib.sha256(b"teenytinyllama split\0" + text.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class Corpus:
    """The documents of a config: resolved and checked files, read as often as needed in a fixed order."""

    def __init__(self, config: CorpusConfig) -> None:
        """Resolve the inputs to files.

        Raises:
            InputError: see `resolve_files`.
        """
        self.config = config
        self.files = resolve_files("inputs", config.inputs)
        self.validation_files = resolve_files("validation_inputs", config.validation_inputs or [])
        self.has_sample = SAMPLE in config.inputs
        trained = {file.path.resolve() for file in self.files}
        for file in self.validation_files:
            ensure(file.path.resolve() not in trained, _held_out_twice(file.name))

    def documents(self) -> Iterator[tuple[Split, Document]]:
        """Yield every non-empty document with its split, in the order of the files.

        Raises:
            InputError: a file cannot be read as text (see `readers.read_rows`).
        """
        fraction = 0.0 if self.config.validation_inputs else self.config.validation_fraction
        for file in self.files:
            for document in self._read("inputs", file):
                yield "validation" if is_held_out(document.text, fraction) else "train", document
        for file in self.validation_files:
            for document in self._read("validation_inputs", file):
                yield "validation", document
        if self.has_sample:
            yield from _sample_documents()

    def _read(self, key: str, file: SourceFile) -> Iterator[Document]:
        source = default_source(file.path)
        rows: Iterator[Row] = read_rows(
            key, file.path, self.config.text_column, self.config.metadata_column, self.config.txt_unit
        )
        for text, metadata in rows:
            if text.strip():
                # Composed letters, as they are typed: é as two characters costs three times the tokens.
                yield Document(unicodedata.normalize("NFC", text), *parse_metadata(metadata, source))

    def fingerprint(self) -> dict[str, str]:
        """Return the sha256 of every file, by name and as they are read, and of the embedded sample's generator.

        Raises:
            InputError: a file to train on is, under another name, also one of the held-out files.
        """
        hashes = hash_files([*self.files, *self.validation_files])
        own = list(hashes.items())
        trained = {digest for _, digest in own[: len(self.files)]}
        for name, digest in own[len(self.files) :]:
            ensure(digest not in trained, _held_out_twice(name))
        return hashes | sample_hash(self.config.inputs)


def _held_out_twice(name: str) -> str:
    return (
        f"validation_inputs={name}: its documents are in inputs, too, so they would be trained on. Take them out there."
    )


def hash_files(files: list[SourceFile]) -> dict[str, str]:
    """Return the sha256 of each file by its name; files of one name are told apart by a number."""
    from tqdm import tqdm

    size = sum(file.path.stat().st_size for file in files)
    # disable=None: a bar on a terminal, nothing in a log file.
    with tqdm(total=size, desc="hashing inputs", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        hashes: dict[str, str] = {}
        for file in files:
            same = sum(name == file.name or name.startswith(f"{file.name} (") for name in hashes)
            hashes[f"{file.name} ({same + 1})" if same else file.name] = sha256_file(file.path, bar.update)
        return hashes


@functools.cache  # the stages of the demo read it several times in one process; it is about 5 MB
def _sample_documents() -> list[tuple[Split, Document]]:
    from .sample import sample_documents

    splits: tuple[Split, Split] = ("train", "validation")
    return [
        (split, Document(row["text"], *parse_metadata(row["metadata"], SAMPLE)))
        for split in splits
        for row in sample_documents(split)
    ]


def sample_hash(inputs: list[str]) -> dict[str, str]:
    """Return, where the inputs name the embedded sample, the sha256 of its generator's code by its name.

    The code decides the texts and is read faster than they are made.
    """
    if SAMPLE not in inputs:
        return {}
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "sample").glob("*.py")):
        digest.update(path.read_bytes())
    return {SAMPLE: digest.hexdigest()}


def source_statistics() -> dict[str, Any]:
    """Return an empty record of one source's documents, bytes, tokens and licences, for a stage to fill."""
    return {"documents": 0, "bytes": 0, "tokens": 0, "licenses": []}
