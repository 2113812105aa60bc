"""One reading of everything before anything is written: rows, bytes, words, licences, and where shards begin."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ...checks import ensure
from ...data.examples import SPLITS
from .content import Content, Row
from .licenses import Licenses


@dataclass
class Counts:
    """What a dataset holds.

    Attributes:
        shards: rows of each parquet file, by split.
        sources: by name: `rows` and of them `validation_rows`, `bytes` of UTF-8 text, `words` between white space (or
            `tokens`, of packed rows), and `licenses`.
    """

    shards: dict[str, list[int]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self, split: str) -> int:
        """Return the rows of a split."""
        return sum(self.shards[split])

    def licenses(self) -> list[str]:
        """Return the licences of all sources, each once."""
        return sorted({name for source in self.sources.values() for name in source["licenses"]})

    def text_bytes(self) -> int:
        """Return the bytes of text of all sources."""
        return sum(int(source["bytes"]) for source in self.sources.values())

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a JSON object."""
        return asdict(self)


def count(content: Content, licenses: Licenses, shard_bytes: int) -> Counts:
    """Return the counts of a dataset.

    Args:
        content: what is to be published.
        licenses: filled with what lacks a licence, and then checked.
        shard_bytes: a shard ends with the row that reaches them.

    Raises:
        InputError: no row, a source without a licence, or a file that cannot be read.
    """
    counts = (
        _count_packed(content, licenses, shard_bytes) if content.row_bytes else _count(content, licenses, shard_bytes)
    )
    ensure(counts.sources and any(counts.shards.values()), "source: holds no row with text. Give files that have some.")
    ensure(
        counts.shards["train"],
        "source: all rows are held out, so that there is no train split. Lower validation_fraction or add data.",
    )
    licenses.check(counts.sources)
    return counts


def _count(content: Content, licenses: Licenses, shard_bytes: int) -> Counts:
    from tqdm import tqdm

    counts = Counts()
    fill = dict.fromkeys(SPLITS, 0)  # bytes in the last shard of each split
    for row in tqdm(content.rows(), desc="counting", unit=" rows", mininterval=1.0, disable=None):
        num_bytes = sum(len(text.encode()) for text in row.texts)
        _count_row(counts, row, num_bytes, licenses.of(row.source, row.license))
        shards = counts.shards[row.split]
        if not shards or fill[row.split] >= shard_bytes:
            shards.append(0)
            fill[row.split] = 0
        shards[-1] += 1
        fill[row.split] += num_bytes
    return counts


def _count_row(counts: Counts, row: Row, num_bytes: int, license: str) -> None:
    empty: dict[str, Any] = {"rows": 0, "validation_rows": 0, "bytes": 0, "words": 0, "licenses": []}
    source = counts.sources.setdefault(row.source, empty)
    source["rows"] += 1
    source["validation_rows"] += row.split == "validation"
    source["bytes"] += num_bytes
    source["words"] += sum(len(text.split()) for text in row.texts)
    if license and license not in source["licenses"]:
        source["licenses"].append(license)


def _count_packed(content: Content, licenses: Licenses, shard_bytes: int) -> Counts:
    """Count by the manifest: the rows have no sources, their documents had."""
    counts = Counts(sources=content.facts["counted"])
    for name, source in counts.sources.items():
        if not source["licenses"] and (license := licenses.of(name, "", source["rows"])):
            source["licenses"].append(license)
    assert content.row_bytes is not None
    rows_per_shard = max(1, -(-shard_bytes // content.row_bytes))
    for split, rows in content.facts["rows"].items():
        full, rest = divmod(rows, rows_per_shard)
        counts.shards[split] = [rows_per_shard] * full + [rest] * bool(rest)
    return counts
