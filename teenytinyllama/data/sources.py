"""Sources: the documents of a config's input files or of the embedded sample, and which of them are held out."""

import codecs
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..checks import InputError, counted, ensure
from ..progress import reading_bar
from ..tokenizer.encode import compose
from .input_files import SAMPLE, SourceFile, hash_files, resolve_files, say_once
from .readers import Row, read_rows

Split = Literal["train", "validation"]
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# The least that is held out of a corpus of a single document: about 500 tokens, but no more than a tenth of it.
TAIL_CHARS = 2000
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


def ensure_encoding(encoding: str | None) -> None:
    """Check that the key `encoding` names an encoding of Portuguese text.

    Raises:
        InputError: Python knows no character encoding of that name.
    """
    if encoding is None:
        return
    fix = "Give one such as utf-8, cp1252 (windows-1252), latin-1, utf-16, cp850 or mac-roman, or leave it out."
    try:
        found = codecs.lookup(encoding)
        is_of_text = found._is_text_encoding and "aã".encode(encoding).decode(encoding) == "aã"  # type: ignore[attr-defined]
    except (LookupError, ValueError) as error:  # also one that has no ã, and a NUL in the name
        raise InputError(f"encoding={encoding}: is no encoding of Portuguese text. {fix}") from error
    ensure(
        is_of_text and "escape" not in found.name and found.name not in ("idna", "punycode"),
        f"encoding={encoding}: is no encoding of Portuguese text. {fix}",
    )


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
    """Return the hash of a document's text as a number below 2**64; the documents with the lowest are held out."""
    digest = hashlib.sha256(b"teenytinyllama split\0" + text.encode()).digest()
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True)
class SplitException:
    """How a corpus is split whose hashes alone would leave one of the two splits empty.

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

    def documents(self, description: str = "") -> Iterator[tuple[Split, Document]]:
        """Yield every non-empty document with its split, in the order of the files.

        A single document of which the last part is held out comes as two, its beginning and its end. With a description
        a bar shows how much of the files is read.

        Raises:
            InputError: a file cannot be read as text (see `readers.read_rows`).
        """
        fraction = 0.0 if self.config.validation_inputs else self.config.validation_fraction
        exception = self.split_exception
        if description:
            with reading_bar([file.path for file in (*self.files, *self.validation_files)], description):
                yield from self.documents()
            return
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
        """How the corpus is split if the hashes would leave a split empty; reads until both splits have a document.

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
        hashes = hash_files([*self.files, *self.validation_files], recognise=self.config.encoding is None)
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
    """Return `{"sample": sha256}` where the inputs name the embedded sample: of its generator's code and texts.

    These files decide the documents, and hashing them takes less time than making the documents.
    """
    if SAMPLE not in inputs:
        return {}
    digest = hashlib.sha256()
    folder = Path(__file__).parent / "sample"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*.yaml")]):
        digest.update(path.read_bytes())
    return {SAMPLE: digest.hexdigest()}


def count_document(sources: dict[str, dict[str, Any]], source: str, license: str, **amounts: int) -> None:
    """Add a document to the statistics of its source: `documents`, the amounts by their names, and `licenses`.

    Args:
        sources: the statistics by source; filled.
        source: of the document.
        license: of the document; empty when unknown.
        amounts: such as bytes and tokens, the same ones each time.
    """
    record = sources.setdefault(source, {"documents": 0, **dict.fromkeys(amounts, 0), "licenses": []})
    record["documents"] += 1
    for name, amount in amounts.items():
        record[name] += amount
    if license and license not in record["licenses"]:
        record["licenses"].append(license)
