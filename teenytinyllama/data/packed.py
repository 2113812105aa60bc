"""Packed rows: a folder of `ttl pack` opened, compared with its hashes, summarised (`pack` says what is in it)."""

import hashlib
import os
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure
from ..stage_folder import MANIFEST_NAME, read_manifest
from .pack import DOCUMENT_DTYPE

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
    from tqdm import tqdm

    limit = vocab_size or int(packed.manifest["vocab_size"])
    states = {name: _state(packed, name, limit) for name in names}
    checked = set(os.environ.get(_CHECKED_VARIABLE, "").split())
    todo = [name for name in names if states[name] not in checked]
    total = sum((packed.folder / name).stat().st_size for name in todo)
    with tqdm(total=total, desc="checking rows", unit="B", unit_scale=True, leave=False, disable=None) as bar:
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
        f"{manifest['num_rows']:,} rows of {manifest['context']} tokens ({manifest['dtype']}) in {folder}; "
        f"{manifest['validation_tokens']:,} held-out tokens; {manifest['dropped_tokens']} tokens dropped at the end"
    )
    if not manifest["validation_tokens"]:
        print("no document is held out, so training cannot be evaluated: raise validation_fraction or add text")
    if manifest.get("same_document"):
        print("held out is the last part of the only document: scores are of the same document that is trained on")
