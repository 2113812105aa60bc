"""Packed rows: a folder of `ttl pack` opened, compared with its hashes, summarised (`pack` says what is in it)."""

import hashlib
import os
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure
from ..progress import progress
from ..stage_folder import MANIFEST_NAME, read_manifest
from .pack import DOCUMENT_DTYPE
from .sources import Corpus, CorpusConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACK_FIX = "Make it with `ttl pack`."

TRAIN_NAME, VALIDATION_NAME, DOCUMENTS_NAME = "train.npy", "validation.npy", "validation_documents.npy"
PACKED_NAMES = (TRAIN_NAME, VALIDATION_NAME, DOCUMENTS_NAME)
_MOST_SOURCES_SHOWN = 40
# Keys that the manifest of a packed folder must hold.
NEEDED = (
    "num_rows", "context", "dtype", "vocab_size", "train_tokens", "validation_tokens", "dropped_tokens",
    "tokenizer_sha256", "hashes", "sources", "validation_sources", "plan", "config",
)  # fmt: skip
# An environment variable: the files that this process, or the one that started it, has compared with their hashes.
_CHECKED_VARIABLE = "TTL_CHECKED_ROWS"
PART_BYTES = 1 << 22  # read at a time


@dataclass(frozen=True)
class PackedCorpus:
    """A packed folder opened for reading; arrays are memory-mapped."""

    folder: Path
    manifest: dict[str, Any]
    train: NDArray[Any]  # (rows, context)
    validation: NDArray[Any]  # (tokens,)
    documents: NDArray[Any]  # DOCUMENT_DTYPE
    source_names: list[str]  # of `documents["source"]`


def packed_manifest(folder: str | Path, key: str = "packed") -> dict[str, Any]:
    """Return the manifest of a packed folder.

    Raises:
        InputError: it is missing, unfinished, or something else.
    """
    manifest = read_manifest(key, folder, "pack", PACK_FIX)
    missing = [name for name in NEEDED if name not in manifest]
    ensure(
        not missing,
        f"{key}={folder}: {MANIFEST_NAME} lacks {', '.join(missing)}: damaged, or of an older version. {PACK_FIX}",
    )
    return manifest


def load_packed(folder: str | Path, key: str = "packed") -> PackedCorpus:
    """Open a packed folder; `check_packed` compares its files with what `ttl pack` wrote.

    Raises:
        InputError: it is missing or unfinished, or a file's size or type disagrees with the manifest.
    """
    folder = Path(folder)
    manifest = packed_manifest(folder, key)
    arrays = []
    for name in PACKED_NAMES:
        try:
            # allow_pickle stays False: a packed folder can come from outside.
            is_empty = name != TRAIN_NAME and manifest["validation_tokens"] == 0  # an empty array cannot be mapped
            arrays.append(np.load(folder / name, mmap_mode=None if is_empty else "r", allow_pickle=False))
        except (
            OSError,
            ValueError,
            EOFError,
            SyntaxError,
            TypeError,
            tokenize.TokenError,
        ) as error:  # a header is read as Python's literals
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{key}={folder}: {name} is missing or damaged ({reason}). {PACK_FIX}") from error
    train, validation, documents = arrays
    ensure(
        train.shape == (manifest["num_rows"], manifest["context"]) and validation.size == manifest["validation_tokens"],
        f"{key}={folder}: the arrays' sizes {train.shape}, {validation.shape} are not {MANIFEST_NAME}'s. {PACK_FIX}",
    )
    for name, array, dtype in (
        (TRAIN_NAME, train, manifest["dtype"]),
        (VALIDATION_NAME, validation, manifest["dtype"]),
        (DOCUMENTS_NAME, documents, DOCUMENT_DTYPE),
    ):
        ensure(
            dtype in ("uint16", "uint32", DOCUMENT_DTYPE) and array.dtype == np.dtype(dtype),
            f"{key}={folder}: {name} holds {array.dtype}, and {MANIFEST_NAME} says {dtype}. {PACK_FIX}",
        )
    return PackedCorpus(folder, manifest, train, validation, documents, list(manifest["validation_sources"]))


def check_packed(
    packed: PackedCorpus, key: str = "packed", vocab_size: int | None = None, names: Sequence[str] = PACKED_NAMES
) -> None:
    """Compare the files of a packed folder with the hashes in its manifest, and their ids with the vocabulary.

    Reads each file once, in parts; a gigabyte takes about two seconds. A process that was started by one which has
    done this for the same files does not do it again.

    Args:
        packed: the folder.
        key: the config key that names it.
        vocab_size: of the model that reads the rows; None: the tokenizer's.
        names: the files that are going to be read.

    Raises:
        InputError: a file is not the one that `ttl pack` wrote, or an id lies beyond the vocabulary.
    """
    limit = vocab_size or int(packed.manifest["vocab_size"])
    states = {name: _state(packed, name, limit) for name in names}
    checked = set(os.environ.get(_CHECKED_VARIABLE, "").split())
    todo = [name for name in names if states[name] not in checked]
    total = sum((packed.folder / name).stat().st_size for name in todo)
    with progress(None, "checking rows", "B", total=total) as bar:
        for name in todo:
            place = f"{key}={packed.folder}: {name}"
            digest, largest = _digest_and_largest(packed, name, bar)
            ensure(name in packed.manifest["hashes"], f"{place} has no hash in {MANIFEST_NAME}. {PACK_FIX}")
            ensure(
                digest == packed.manifest["hashes"][name],
                f"{place} is not the file that `ttl pack` wrote: its sha256 is not the one in {MANIFEST_NAME}. It was "
                f"damaged or changed. Copy it again, or make it again with `ttl pack`.",
            )
            ensure(
                largest < limit,
                f"{place} holds the id {largest}, and the vocabulary has {limit}. Pack with the model's tokenizer.",
            )
    os.environ[_CHECKED_VARIABLE] = " ".join(sorted(checked | set(states.values())))


def _state(packed: PackedCorpus, name: str, limit: int) -> str:
    """Return a hash of what would differ if a file had changed since it was compared with its hash."""
    status = (packed.folder / name).stat()
    content = [
        str(packed.folder.resolve()),
        name,
        packed.manifest["hashes"].get(name),
        limit,
        status.st_size,
        status.st_mtime_ns,
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]


def _digest_and_largest(packed: PackedCorpus, name: str, bar: Any) -> tuple[str, int]:
    """Return the sha256 of a file and the largest token id in it, or -1 for the file of documents."""
    array = {TRAIN_NAME: packed.train, VALIDATION_NAME: packed.validation}.get(name)
    digest, largest = hashlib.sha256(), -1
    with (packed.folder / name).open("rb") as file:
        if array is not None:
            digest.update(file.read(os.fstat(file.fileno()).st_size - array.nbytes))  # the header; ids follow
        while part := file.read(PART_BYTES):
            digest.update(part)
            bar.update(len(part))
            if array is not None and len(part) % array.dtype.itemsize == 0:
                largest = max(largest, int(np.frombuffer(part, dtype=array.dtype).max()))
    return digest.hexdigest(), largest


_SHOWN_CHARACTERS = 160
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how SentencePiece and its kin write a byte


@dataclass(frozen=True)
class RowLook:
    """What rows hold, as far as they were looked at.

    Attributes:
        shown: number and beginning of a few rows, decoded, special tokens included.
        rows: rows that were looked at, the first ones: rows are shuffled.
        all_rows: rows that there are.
        tokens: tokens that were looked at.
        repeated: of the rows that were looked at, those that equal an earlier one.
        unknown_share: share of the tokens that stand for anything which the tokenizer does not know.
        byte_share: share of the tokens that stand for a byte.
        documents: ends of documents.
    """

    shown: list[tuple[int, str]]
    rows: int
    all_rows: int
    tokens: int
    repeated: int
    unknown_share: float
    byte_share: float
    documents: int


def look_at_rows(
    packed: PackedCorpus, tokenizer: "PreTrainedTokenizerBase", most_tokens: int | None = None, shown: int = 3
) -> RowLook:
    """Return what the training rows of a packed folder hold.

    Rows are compared by a random linear function of their ids modulo 2^64, so that two different rows count as equal
    once in about 10^18 pairs.

    Args:
        packed: the folder.
        tokenizer: that the rows were packed with.
        most_tokens: to look at; None: all.
        shown: rows that are decoded.
    """
    rows = packed.train
    count = len(rows) if most_tokens is None else min(len(rows), max(1, most_tokens // rows.shape[1]))
    weights = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], dtype=np.uint64) | np.uint64(1)
    used = np.zeros(max(len(tokenizer), int(packed.manifest["vocab_size"])), dtype=np.int64)
    prints = np.empty(count, dtype=np.uint64)
    step = max(1, PART_BYTES // (8 * rows.shape[1]))
    for start in range(0, count, step):
        part = np.asarray(rows[start : min(count, start + step)])
        prints[start : start + len(part)] = part.astype(np.uint64) @ weights
        used += np.bincount(part.ravel(), minlength=len(used))[: len(used)]  # ids beyond are refused elsewhere
    places = dict.fromkeys(np.linspace(0, len(rows) - 1, min(shown, len(rows)), dtype=int).tolist())
    named = {"unknown": tokenizer.unk_token_id, "end": tokenizer.eos_token_id}
    counts = {name: 0 if place is None else int(used[place]) for name, place in named.items()}
    as_bytes = [place for token, place in tokenizer.get_vocab().items() if _BYTE_TOKEN.fullmatch(token)]
    tokens = count * rows.shape[1]
    return RowLook(
        shown=[(place, as_line(str(tokenizer.decode(rows[place].tolist())))) for place in places],
        rows=count,
        all_rows=len(rows),
        tokens=tokens,
        repeated=count - len(np.unique(prints)),
        unknown_share=counts["unknown"] / tokens,
        byte_share=float(used[as_bytes].sum()) / tokens,
        documents=counts["end"],
    )


def as_line(text: str) -> str:
    """Return the beginning of a text as a line that a terminal can show, whatever a stranger wrote into it."""
    part = text[:_SHOWN_CHARACTERS].replace("\n", "⏎")
    shown = "".join(character if character.isprintable() else "·" for character in part)
    return shown + "…" * (len(text) > _SHOWN_CHARACTERS)


_MOST_BYTES_READ = 200_000_000  # of texts, which are read again to find sources: a few seconds
_MOST_BYTES_COUNTED = 8 * 2**30  # of rows, in which documents are counted: a few seconds
_FIRST_TOKENS, _FIRST_CHARS = 24, 80  # of a document, by which it is found again


def describe_rows(packed: PackedCorpus, tokenizer: Any, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return which documents lie in some packed rows.

    Rows were shuffled once, by the seed in the manifest, so the rows around one in the corpus are known.

    Args:
        packed: the folder.
        tokenizer: the one that the rows were made with.
        rows: numbers of rows of `train.npy`.

    Returns:
        For each document in each row, `row`; `document`, its number from 1 among the training documents in the order of
        packing, or None where there are too many rows to count in; `source`, or None where that is not known; `text`,
        its first words.
    """
    order = np.random.default_rng(packed.manifest["config"]["seed"]).permutation(len(packed.train))  # see `pack`
    row_at, end = np.argsort(order), tokenizer.eos_token_id
    before = _ends_before(packed, row_at, end)
    found = []
    for row in rows:
        place, ids = int(order[row]), packed.train[row]
        starts = [0, *(int(at) + 1 for at in np.flatnonzero(ids == end) if at + 1 < len(ids))]
        for number, start in enumerate(starts):
            first = _first_tokens(packed, row_at, place, start, number == 0, end)
            words = " ".join(str(tokenizer.decode(first, skip_special_tokens=True)).split())[:_FIRST_CHARS]
            document = None if before is None else int(before[place]) + number + 1
            found.append({"row": int(row), "document": document, "source": None, "text": words})
    _find_sources(packed, found)
    return found


def _ends_before(packed: PackedCorpus, row_at: NDArray[Any], end: int) -> NDArray[Any] | None:
    """Return for each row in the order of the corpus how many documents end in the rows before it."""
    if packed.train.nbytes > _MOST_BYTES_COUNTED:
        return None
    step = max(1, PART_BYTES // packed.train[:1].nbytes)
    parts = [(packed.train[at : at + step] == end).sum(axis=1) for at in range(0, len(packed.train), step)]
    return np.concatenate([[0], np.cumsum(np.concatenate(parts)[row_at])])


def _first_tokens(
    packed: PackedCorpus, row_at: NDArray[Any], place: int, start: int, goes_back: bool, end: int
) -> list[int]:
    """Return the first tokens of the document at `start` of the row at a place in the corpus.

    Args:
        packed: the folder.
        row_at: number of the row at each place.
        place: of the row.
        start: in the row.
        goes_back: whether the document may begin in a row before.
        end: the id of the token at the end of a document.
    """
    while goes_back and place > 0 and start == 0:
        ends = np.flatnonzero(packed.train[row_at[place - 1]] == end)
        if len(ends) and ends[-1] == packed.train.shape[1] - 1:
            break  # it begins with the row
        place, start = place - 1, int(ends[-1]) + 1 if len(ends) else 0
    ids = packed.train[row_at[place]][start:].tolist()
    if place + 1 < len(row_at):
        ids += packed.train[row_at[place + 1]].tolist()
    ids = ids[:_FIRST_TOKENS]
    return ids[: ids.index(end)] if end in ids else ids


def _find_sources(packed: PackedCorpus, found: list[dict[str, Any]]) -> None:
    """Write into the records of documents which source each is of.

    Of several sources the texts are read again, if they lie where they lay and are few enough for seconds.
    """
    sources = packed.manifest["sources"]
    if len(sources) == 1:
        for record in found:
            record["source"] = next(iter(sources))
    numbers = {record["document"] for record in found} - {None}
    if len(sources) == 1 or not numbers or sum(source["bytes"] for source in sources.values()) > _MOST_BYTES_READ:
        return
    names = {item.name for item in fields(CorpusConfig)}
    config = {name: value for name, value in packed.manifest["config"].items() if name in names}
    try:
        corpus = Corpus(CorpusConfig(**config))
        if corpus.fingerprint() != packed.manifest["plan"]["inputs"]:
            return
        number, last = 0, max(numbers)
        for split, document in corpus.documents():
            number += split == "train"
            if split == "train" and number in numbers:
                for record in found:
                    record["source"] = document.source if record["document"] == number else record["source"]
            if number >= last:
                return
    except (InputError, OSError):
        return  # the texts are gone, which rows do without


def print_summary(folder: Path) -> None:
    """Print what a packed folder holds: a line for each of the largest sources, and the totals."""
    manifest = packed_manifest(folder)
    shown = sorted(manifest["sources"].items(), key=lambda item: -item[1]["bytes"])[:_MOST_SOURCES_SHOWN]
    width = max(len("source"), *(len(name) for name, _ in shown))
    print(f"{'source':{width}} {'documents':>10} {'MB':>8} {'tokens':>12} {'held out':>9}  licences")
    for name, record in shown:
        held_out = manifest["validation_sources"].get(name, {"documents": 0})["documents"]
        print(
            f"{name:{width}} {record['documents']:10,} {record['bytes'] / 1e6:8.1f} {record['tokens']:12,} "
            f"{held_out:9,}  {', '.join(record['licenses'])[:60]}"
        )
    if more := len(manifest["sources"]) - len(shown):
        print(f"… and {more:,} smaller sources")
    print(
        f"{manifest['num_rows']:,} rows of {manifest['context']} tokens ({manifest['dtype']}) in {folder}: "
        f"{manifest['num_rows'] * manifest['context']:,} tokens to train on; "
        f"{manifest['validation_tokens']:,} held-out tokens; {manifest['dropped_tokens']} tokens dropped at the end"
    )
    if not manifest["validation_tokens"]:
        print("no document is held out, so training cannot be evaluated: raise validation_fraction or add text")
    if manifest.get("same_document"):
        print("held out is the last part of the only document: scores are of the same document that is trained on")
