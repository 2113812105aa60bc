"""Packed rows as a dataset: `input_ids` of one length, train and validation.

The held-out documents of a packed folder are never cut; here they are cut into rows of the same length, since both
splits of a dataset have the same columns. The end that does not fill a row is left out and counted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.packed import PACKED_NAMES, PackedCorpus, check_packed, load_packed
from ..safety import inside
from .content import Content, Row

if TYPE_CHECKING:
    import pyarrow


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
        lambda: _rows(packed, context),
        lambda rows, _: _columns(rows, context),
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


def _rows(packed: PackedCorpus, context: int) -> Iterator[Row]:
    for row in packed.train:
        yield Row("train", "", "", row, ())
    for start in range(0, packed.validation.size - context + 1, context):
        yield Row("validation", "", "", packed.validation[start : start + context], ())


def _columns(rows: list[Row], context: int) -> "list[pyarrow.Array]":
    import pyarrow

    flat = np.concatenate([row.value for row in rows]).astype(np.int32)
    return [pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), context)]
