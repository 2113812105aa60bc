"""Where documents come from: local files, Hub datasets at a pinned commit, the embedded sample; and what is held out.

An input is one of:

* a file, a folder (searched for files of the known kinds, without hidden and temporary ones) or a glob;
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from ..checks import InputError, counted, ensure
from ..hub_client import hub_errors
from ..manifest import MANIFEST_NAME, sha256_file
from ..tokenizer.encoding import compose
from .readers import SUFFIXES, Row, describe_kinds, ensure_encoding, read_rows, say_once

Split = Literal["train", "validation"]
SAMPLE = "sample"
_HUB_INPUT = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[^/]+)(?:/(?P<pattern>.+))?$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# Hidden files, and rests of editors, browsers, copiers and systems; the same of folders.
_TEMPORARY_NAMES = r"""
.* ~$* #*# *~ *.tmp *.temp *.part *.partial *.crdownload *.download *.swp *.bak *.lock thumbs.db desktop.ini __macosx
__pycache__ $recycle.bin system?volume?information lost+found _temporary _delta_log _success _metadata _common_metadata
""".split()  # noqa: SIM905
_TEMPORARY = re.compile("|".join(map(fnmatch.translate, _TEMPORARY_NAMES)))
# What other programs write beside data to describe it; rows under such a name have to be given by their path.
_RECORDS = frozenset(
    """
run.json audit.json config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json
added_tokens.json generation_config.json dataset_info.json dataset_infos.json dataset_dict.json state.json
environment.json emissions.json package.json package-lock.json croissant.json
""".split()  # noqa: SIM905
)
_OUR_RECORDS = frozenset({"emissions.csv", "ledger.jsonl", "metrics.jsonl", "samples.jsonl"})  # beside a run.json
_EXPLANATION = re.compile(r"(readme|licen[cs]e|citation)|\.git(attributes|ignore|keep)$")  # not worth a word
_NAMES_SHOWN = 3

TAIL_CHARS = 2000  # held out at least of a single document, about 500 tokens, but no more than a tenth of it
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
                          "when the corpus grows; above 0 at least one document, of a single one its last part"},
    )  # fmt: skip
    text_column: str = field(
        default="text",
        metadata={"help": "column or key that holds the text; where there is no `text`, the only column that can be it "
                          "is taken, and said"},
    )  # fmt: skip
    metadata_column: str = field(
        default="metadata", metadata={"help": "optional column with `source: …; license: …` or a mapping of the two"}
    )
    txt_unit: Literal["file", "line"] = field(
        default="file", metadata={"help": "what one document is in a txt file: the whole file, or each line"}
    )
    encoding: str | None = field(
        default=None,
        metadata={"help": "of files that are no parquet, such as cp1252; null: UTF-8, UTF-16 and windows-1252 are told "
                          "apart, and the latter two are said"},
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse values that no corpus can have.

        Raises:
            InputError: no input, a fraction outside [0, 0.5], or an unknown encoding.
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
        ensure_encoding(self.encoding)


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
        is_named = Path(text).exists()
        paths = [Path(text)] if is_named else _matches(text)
        ensure(
            paths,
            f"{key}={text}: no such file or folder, and no file matches it as a glob. A Hub dataset is written "
            "hf://datasets/user/name@commit.",
        )
        before, left_out, given = len(files), LeftOut(), PurePath(text).parts
        for path in paths:
            # What a user names is read; of what a glob found, hidden and temporary files are left out.
            below = PurePath(*(part for part in path.parts if part not in given))
            if path.is_dir() and (is_named or not is_hidden(below)):
                found = list_data_files(path, suffixes, left_out)
                files += [SourceFile(str(file.relative_to(path.parent)), file) for file in found]
            elif is_named or not left_out.takes(path, below):
                ensure(
                    path.is_file() and path.name.lower().endswith(suffixes),
                    f"{key}={path}: unknown kind of file. Known are {describe_kinds(suffixes)}.",
                )
                files.append(SourceFile(path.name, path))
        ensure(
            len(files) > before,
            f"{key}={text}: the folder holds no {describe_kinds(suffixes)} file to read"
            f"{left_out.describe('; left out are ')}.",
        )
        if said := left_out.describe(f"{key}={text}: left out "):
            say_once(("left out", said), said)
    return files


def _matches(pattern: str) -> list[Path]:
    """Return what a glob stands for; `**` is any depth, and then means files, which their folders would repeat."""
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    return [path for path in found if path.is_file()] if "**" in pattern else found


@dataclass
class LeftOut:
    """Files in a folder, or matched by a glob, that are not read."""

    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def takes(self, path: Path, below: PurePath, suffixes: tuple[str, ...] | None = None) -> bool:
        """Note a file that is not to be read, and return whether it is one.

        Args:
            path: of the file.
            below: its path below the folder that was given, each part of which can be hidden.
            suffixes: of the known kinds; None: an unknown kind is not asked for.
        """
        name = path.name.lower()
        if suffixes is not None and _EXPLANATION.match(name) and not name.endswith(suffixes):
            return True
        if is_hidden(below):
            self.hidden.append(str(below))
        elif not path.is_file():
            self.broken.append(str(below))
        elif suffixes is not None and not name.endswith(suffixes):
            self.kinds[path.suffix.lower() or "without an ending"] += 1
        elif is_record(path):
            self.records.append(str(below))
        elif path.stat().st_size == 0:
            self.empty.append(str(below))
        else:
            return False
        return True

    def describe(self, head: str) -> str:
        """Return how many files of which kinds, behind a head; empty if there are none."""
        parts = [
            f"{len(names)} {what.format(s='s' * (len(names) != 1))} ({', '.join(sorted(names)[:_NAMES_SHOWN])}"
            f"{', …' * (len(names) > _NAMES_SHOWN)})"
            for what, names in (
                ("hidden or temporary file{s}", self.hidden),
                ("empty file{s}", self.empty),
                ("record{s} beside data", self.records),
                ("broken link{s}", self.broken),
            )
            if names
        ]
        if self.kinds:
            count = sum(self.kinds.values())
            shown = ", ".join(f"{number} {suffix}" for suffix, number in self.kinds.most_common(8))
            parts.append(f"{count} file{'s' * (count != 1)} of other kinds ({shown})")
        return head + ", ".join(parts) if parts else ""


def is_hidden(below: PurePath) -> bool:
    """Return whether a file is hidden or temporary, or lies in a folder that is, by its path below the one given."""
    return any(_TEMPORARY.match(part.lower()) for part in below.parts)


def is_record(path: Path) -> bool:
    """Return whether a file describes the data beside it, by its name."""
    name = path.name.lower()
    return name in _RECORDS or (name in _OUR_RECORDS and (path.parent / MANIFEST_NAME).exists())


def list_data_files(folder: Path, suffixes: tuple[str, ...], left_out: LeftOut | None = None) -> list[Path]:
    """Return the files of known kinds in a folder and below it, links to folders included, by name.

    Args:
        folder: which may itself be hidden.
        suffixes: of the known kinds.
        left_out: filled with what is not read.
    """
    left_out = LeftOut() if left_out is None else left_out
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders.sort()  # the same on every machine
        paths = [Path(place) / name for name in names]
        found += [path for path in paths if not left_out.takes(path, path.relative_to(folder), suffixes)]
    return sorted(found)


def hub_datasets(inputs: list[str]) -> list[str]:
    """Return the Hub datasets among the inputs of a stage, without commits and patterns."""
    return sorted({match["repo"] for text in inputs if (match := _HUB_INPUT.match(text))})


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
        wanted = [
            name
            for name in sorted(names)
            if name.lower().endswith(suffixes)
            and fnmatch.fnmatch(name, pattern)
            and not is_hidden(PurePath(name))
            and PurePath(name).name.lower() not in _RECORDS
        ]
        ensure(wanted, f"{key}={text}: no {describe_kinds(suffixes)} file there matches {pattern!r}.")
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
        with contextlib.suppress(ValueError, RecursionError):  # text that only looks like JSON is read as text
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
    return _place_in_split(text) < fraction * 2**64


def _place_in_split(text: str) -> int:
    """Return a number below 2**64 that a document's text decides; the lowest ones are held out."""
    digest = hashlib.sha256(b"teenytinyllama split\0" + text.encode()).digest()
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True)
class SplitException:
    """What a corpus is split by where its hashes alone would leave one of the two splits empty.

    Attributes:
        kind: `hold out one`: no hash is low enough, so the document with the lowest is held out; `train on one`: all
            are low enough, so the one with the highest is trained on; `same document`: there is a single document (or
            copies of one), whose last part is held out.
        place: of that document (`_place_in_split`).
        note: for the user.
    """

    kind: Literal["hold out one", "train on one", "same document"]
    place: int
    note: str


def cut_last_part(text: str, fraction: float) -> tuple[str, str]:
    """Cut a text before about its last `fraction`, where a paragraph, a line, a sentence or a word ends.

    Returns:
        The beginning and the end, without white space where they meet. The end is empty if the text is too short.
    """
    size = max(round(fraction * len(text)), min(TAIL_CHARS, len(text) // 10))
    wanted, first, last = len(text) - size, max(1, len(text) - 2 * size), len(text) - size // 2
    for boundary in (r"\n\s*\n\s*", r"(?<=[.!?…][\s\"”’»])\s*", r"\n\s*", r"\s+"):
        places = [match.end() for match in re.compile(boundary).finditer(text, first, last)]
        if places:
            cut = min(places, key=lambda place: abs(place - wanted))
            beginning, end = text[:cut].rstrip(), text[cut:].lstrip()
            return (beginning, end) if beginning and end else (text, "")
    return text, ""


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

        A single document of which the last part is held out comes as two, its beginning and its end.

        Raises:
            InputError: a file cannot be read as text (see `readers.read_rows`).
        """
        fraction = 0.0 if self.config.validation_inputs else self.config.validation_fraction
        exception = self.split_exception
        for document in self._documents_of_files():
            if exception is None:
                yield "validation" if is_held_out(document.text, fraction) else "train", document
            elif exception.kind == "same document":
                beginning, end = cut_last_part(document.text, fraction)
                yield "train", replace(document, text=beginning)
                if end:
                    yield "validation", replace(document, text=end)
            else:
                is_the_one = _place_in_split(document.text) == exception.place
                yield "validation" if is_the_one == (exception.kind == "hold out one") else "train", document
        for file in self.validation_files:
            for document in self._read("validation_inputs", file):
                yield "validation", document
        if self.has_sample:
            yield from _sample_documents()

    @functools.cached_property
    def split_exception(self) -> SplitException | None:
        """What the corpus is split by if the hashes would leave a split empty; reads until that is out of question.

        Raises:
            InputError: a file cannot be read as text (see `readers.read_rows`).
        """
        fraction = self.config.validation_fraction
        if self.config.validation_inputs or self.has_sample or not fraction:
            return None
        lowest, highest = 2**64, -1
        for document in self._documents_of_files():
            place = _place_in_split(document.text)
            lowest, highest = min(lowest, place), max(highest, place)
            if lowest < fraction * 2**64 <= highest:
                return None
        if highest < 0:
            return None
        key = f"validation_fraction={fraction:g}"
        if lowest == highest:
            note = f"{key}: there is one document alone, so its last part is held out: scores are of the same document"
            return SplitException("same document", lowest, note)
        if lowest >= fraction * 2**64:
            note = f"{key}: holds out none of so few documents, so one is held out all the same"
            return SplitException("hold out one", lowest, note)
        return SplitException(
            "train on one", highest, f"{key}: holds out all of so few documents, so one is trained on"
        )

    def _documents_of_files(self) -> Iterator[Document]:
        for file in self.files:
            yield from self._read("inputs", file)

    def _read(self, key: str, file: SourceFile) -> Iterator[Document]:
        source, config = default_source(file.path), self.config
        rows: Iterator[Row] = read_rows(
            key, file.path, config.text_column, config.metadata_column, config.txt_unit, config.encoding
        )
        unread = 0
        for text, metadata in rows:
            if text.strip():
                found, license = parse_metadata(metadata, "")
                unread += bool(metadata) and not found and not license
                # Composed letters, as they are typed: é as two characters costs three times the tokens.
                yield Document(compose(text), found or source, license)
        if unread:
            say_once(
                ("metadata", str(file.path)),
                f"{config.metadata_column}: names neither source nor license in {counted(unread, 'row')} of "
                f"{file.name}; counted under {source}",
            )

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

    def choices(self) -> dict[str, Any]:
        """Return what decides the documents beyond the keys that plans always had, for the plan of a stage."""
        found: dict[str, Any] = {} if self.config.encoding is None else {"encoding": self.config.encoding}
        return found | ({"split": self.split_exception.kind} if self.split_exception else {})


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
        counts: Counter[str] = Counter()
        for file in files:
            name = file.name
            while name in hashes or not counts[file.name]:
                counts[file.name] += 1
                name = file.name if counts[file.name] == 1 else f"{file.name} ({counts[file.name]})"
            hashes[name] = sha256_file(file.path, bar.update)
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
