"""Reading a packed folder; see `packing` for what is in it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure
from ..manifest import MANIFEST_NAME, read_manifest

PACK_FIX = "Make it with `ttl pack`."

_MOST_SOURCES_SHOWN = 40


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
    return read_manifest(key, folder, "pack", PACK_FIX)


def load_packed(folder: str | Path, key: str = "packed") -> PackedCorpus:
    """Open a packed folder.

    Raises:
        InputError: it is missing or unfinished, or a file's size or type disagrees with the manifest.
    """
    folder = Path(folder)
    manifest = packed_manifest(folder, key)
    arrays = []
    for name in ("train.npy", "validation.npy", "validation_documents.npy"):
        try:
            # allow_pickle stays False: a packed folder can come from outside.
            arrays.append(np.load(folder / name, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            if name != "train.npy" and manifest["validation_tokens"] == 0:  # an empty array cannot be mapped
                arrays.append(np.load(folder / name, allow_pickle=False))
                continue
            raise InputError(f"{key}={folder}: {name} is missing or damaged ({error}). {PACK_FIX}") from error
    train, validation, documents = arrays
    ensure(
        train.shape == (manifest["num_rows"], manifest["context"]) and validation.size == manifest["validation_tokens"],
        f"{key}={folder}: the arrays' sizes {train.shape}, {validation.shape} are not {MANIFEST_NAME}'s. {PACK_FIX}",
    )
    return PackedCorpus(folder, manifest, train, validation, documents, list(manifest["validation_sources"]))


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
        print("no document is held out, so training cannot be evaluated: raise validation_fraction or add documents")
