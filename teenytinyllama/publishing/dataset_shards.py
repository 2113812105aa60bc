"""The parquet files of a dataset, written one after another into a staging folder that outlives a kill.

The folder holds `plan.json` (of what, and the counts), `shards.jsonl` (a line for each finished shard, with its hash)
and `data/`. A shard that is listed and still has its hash is not written again.

One reading of everything before anything is written: rows, bytes, words, licences, and where shards begin.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import ensure, ensure_disk_space
from ..data.instructions import SPLITS
from ..stage_folder import sha256_file, sha256_json, write_json
from .dataset_content import Content, Row

if TYPE_CHECKING:
    import pyarrow.parquet


import re
from collections.abc import Iterable

from ..checks import hub_license, near_name
from ..stage_folder import ensure_only
from .wording import one_line

LICENSE_NAME = "LICENSE.md"
UNKNOWN = "unknown"
_RESTRICTIONS = {
    "no_derivatives": re.compile(r"\bnd\b|no-?\s?deriv", re.IGNORECASE),
    "non_commercial": re.compile(r"\bnc\b|non-?\s?commercial", re.IGNORECASE),
    "share_alike": re.compile(r"\bsa\b|share-?\s?alike|\b[al]?gpl\b|\bgfdl\b|\bodbl\b", re.IGNORECASE),
}


@dataclass
class Licenses:
    """The licence of every document: its own, or what the user said for its source, or for all.

    Attributes:
        default: for documents that state none; empty when the user gave none.
        of_source: the same, by source.
        missing: documents without any licence, by source; counted while they are read.
        used: the sources of `of_source` that had documents without a licence of their own.
    """

    default: str = ""
    of_source: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def of(self, source: str, stated: str, rows: int = 1) -> str:
        """Return the licence of a row (or of several), or an empty string, which is counted."""
        if stated:
            return stated
        if source in self.of_source:
            self.used.add(source)
            return self.of_source[source]
        if not self.default:
            self.missing[source] = self.missing.get(source, 0) + rows
        return self.default

    def check(self, sources: Iterable[str]) -> None:
        """Refuse documents without a licence, and licences that no document needed.

        Raises:
            InputError: there are some.
        """
        worst = sorted(self.missing.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{one_line(name)} ({number:,})" for name, number in worst[:5])
        ensure(
            not worst,
            f"license: {sum(self.missing.values()):,} rows of {len(worst)} sources state no licence: {shown}. What has "
            "no licence may not be published by accident: give --license LICENCE for all of them, or "
            "--license SOURCE=LICENCE for each; --license unknown says openly that it is not known.",
        )
        for name in sorted(set(self.of_source) - self.used):
            ensure(
                name in set(sources),
                f"license={name}={self.of_source[name]}: no source is called {name}.{near_name(name, sources)}",
            )
            ensure(
                False,
                f"license={name}={self.of_source[name]}: every row of {name} states its licence already. Leave it out.",
            )


def parse_licenses(values: list[str]) -> Licenses:
    """Return the licences that a user gave as `LICENCE` (at most once) and `SOURCE=LICENCE`.

    Raises:
        InputError: an empty name, or two licences for the same rows.
    """
    licenses = Licenses()
    for value in values:
        source, equals, name = value.rpartition("=")
        source, name = source.strip(), name.strip()
        ensure(name and (source or not equals), f"license={value}: must be LICENCE or SOURCE=LICENCE.")
        known = licenses.of_source.get(source) if source else licenses.default
        ensure(not known, f"license={value}: a second licence for the same rows, after {known}. Keep one.")
        if source:
            licenses.of_source[source] = name
        else:
            licenses.default = name
    return licenses


def license_metadata(names: Iterable[str]) -> dict[str, Any]:
    """Return the keys about licences for a card's front matter: one licence, or `other` with a list of them."""
    found = sorted({one_line(name).strip() for name in names})
    identifiers = {hub_license(name) or name for name in found}
    if len(identifiers) == 1 and (identifier := hub_license(found[0])):
        return {"license": identifier}
    only = re.sub(r"[^a-z0-9.]+", "-", found[0].lower()).strip("-.") if len(identifiers) == 1 else ""
    return {
        "license": "other",
        "license_name": only or "per-source",
        "license_link": LICENSE_NAME,
        "license_details": ", ".join(found),
    }


def restrictions(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the licences that forbid changed copies or commercial use or bind what is made of them; and `unknown`."""
    found = sorted(set(names))
    kinds = {kind: [name for name in found if pattern.search(name)] for kind, pattern in _RESTRICTIONS.items()}
    return {**kinds, UNKNOWN: [name for name in found if name.lower() == UNKNOWN]}


@dataclass
class DatasetCounts:
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


def count(content: Content, licenses: Licenses, shard_bytes: int) -> DatasetCounts:
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


def _count(content: Content, licenses: Licenses, shard_bytes: int) -> DatasetCounts:
    from tqdm import tqdm

    counts = DatasetCounts()
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


def _count_row(counts: DatasetCounts, row: Row, num_bytes: int, license: str) -> None:
    empty: dict[str, Any] = {"rows": 0, "validation_rows": 0, "bytes": 0, "words": 0, "licenses": []}
    source = counts.sources.setdefault(row.source, empty)
    source["rows"] += 1
    source["validation_rows"] += row.split == "validation"
    source["bytes"] += num_bytes
    source["words"] += sum(len(text.split()) for text in row.texts)
    if license and license not in source["licenses"]:
        source["licenses"].append(license)


def _count_packed(content: Content, licenses: Licenses, shard_bytes: int) -> DatasetCounts:
    """Count by the manifest: the rows have no sources, their documents had."""
    counts = DatasetCounts(sources=content.facts["counted"])
    for name, source in counts.sources.items():
        if not source["licenses"] and (license := licenses.of(name, "", source["rows"])):
            source["licenses"].append(license)
    assert content.row_bytes is not None
    rows_per_shard = max(1, -(-shard_bytes // content.row_bytes))
    for split, rows in content.facts["rows"].items():
        full, rest = divmod(rows, rows_per_shard)
        counts.shards[split] = [rows_per_shard] * full + [rest] * bool(rest)
    return counts


DATA_FOLDER = "data"
_PLAN, _DONE = "plan.json", "shards.jsonl"
# Small enough to read a few rows of a large file over the network, large enough to compress well.
_ROW_GROUP_BYTES, _ROW_GROUP_ROWS = 8_000_000, 10_000
# Room asked for, of the bytes before compression: 122 MB of Portuguese texts took 0.33 of theirs (docs/lab-log.md).
_DISK_SHARE = 0.6


@dataclass(frozen=True)
class Shard:
    """A parquet file: its path in the repository, rows, bytes in memory (as `datasets` counts) and on disk, hash."""

    path: str
    split: str
    rows: int
    num_bytes: int
    size_bytes: int
    sha256: str


class Staging:
    """The staging folder of one dataset."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        """Open the folder; shards of another plan in it are deleted.

        Raises:
            InputError: it is a file, or holds something that is not of a staging folder.
        """
        self.folder, self._plan = folder, sha256_json(plan)
        ensure(not folder.exists() or folder.is_dir(), f"staging={folder}: is a file. Give a folder.")
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        ensure(
            existing.is_dir() and os.access(existing, os.W_OK),
            f"staging={folder}: cannot be made in {existing}. Give another folder with --staging.",
        )
        own = {_PLAN, _DONE, DATA_FOLDER, _PLAN + ".partial"}
        self._state = self._read_plan()
        if not self._state:  # what lies there was not made here, whatever its name
            own = {_PLAN + ".partial"}
        ensure_only("staging", folder, own, "Give an empty or new folder.")
        if self._state.get("plan_sha256") != self._plan:
            shutil.rmtree(folder / DATA_FOLDER, ignore_errors=True)
            (folder / _DONE).unlink(missing_ok=True)
            self._state = {}

    def _read_plan(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _PLAN).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        is_ours = isinstance(found, dict) and {"plan_sha256", "counts"} <= set(found)
        return dict(found) if is_ours else {}

    def counts(self) -> DatasetCounts | None:
        """Return what was counted at an earlier start, or None."""
        return DatasetCounts(**self._state["counts"]) if self._state else None

    def keep_counts(self, counts: DatasetCounts) -> None:
        """Write down what was counted, so that the next start need not count; the first thing that is written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / _PLAN, {"plan_sha256": self._plan, "counts": counts.to_json()})

    def finished(self) -> dict[str, Shard]:
        """Return the shards that are there and unchanged, by path."""
        path = self.folder / _DONE
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill can leave a last line without its end
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        listed = {shard.path: shard for shard in (Shard(**json.loads(line)) for line in whole.splitlines())}
        return {name: shard for name, shard in listed.items() if self._is_whole(shard)}

    def _is_whole(self, shard: Shard) -> bool:
        path = self.folder / shard.path
        return path.is_file() and path.stat().st_size == shard.size_bytes and sha256_file(path) == shard.sha256

    def add(self, shard: Shard) -> None:
        """List a finished shard."""
        with (self.folder / _DONE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(shard)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def discard_staging(folder: Path) -> None:
    """Delete a staging folder once its shards have arrived where they were sent."""
    shutil.rmtree(folder / DATA_FOLDER)
    (folder / _DONE).unlink(missing_ok=True)
    (folder / _PLAN).unlink()
    folder.rmdir()


def shard_path(split: str, index: int, total: int) -> str:
    """Return the path of a shard in the repository, in the form that the Hub's own exports have."""
    return f"{DATA_FOLDER}/{split}-{index:05d}-of-{total:05d}.parquet"


def write_shards(staging: Staging, content: Content, licenses: Licenses, counts: DatasetCounts) -> list[Shard]:
    """Write the shards that are not there yet and return all of them, train first.

    Raises:
        InputError: the rows are no longer those that were counted, or the disk is full.
    """
    wanted = {
        split: [(shard_path(split, index, len(sizes)), rows) for index, rows in enumerate(sizes)]
        for split, sizes in counts.shards.items()
    }
    paths = [path for shards in wanted.values() for path, _ in shards]
    done = staging.finished()
    if missing := [path for path in paths if path not in done]:
        share = len(missing) / len(paths)
        rows = sum(map(sum, counts.shards.values()))
        most_bytes = counts.text_bytes() if content.row_bytes is None else content.row_bytes * rows
        needed = int(most_bytes * _DISK_SHARE * share)
        ensure_disk_space("staging", staging.folder, needed, "Give a staging folder on another disk.")
        (staging.folder / DATA_FOLDER).mkdir(exist_ok=True)
        _write_missing(staging, content, licenses, wanted, done)
    return [done[path] for path in paths]


def _write_missing(
    staging: Staging,
    content: Content,
    licenses: Licenses,
    wanted: dict[str, list[tuple[str, int]]],
    done: dict[str, Shard],
) -> None:
    """Read the rows once more and write each missing shard when its rows come by; `done` is added to."""
    from tqdm import tqdm

    waiting = {split: iter(shards) for split, shards in wanted.items()}
    writers: dict[str, _ShardWriter | None] = {}
    total = sum(rows for shards in wanted.values() for _, rows in shards)
    for row in tqdm(content.rows(), desc="writing", unit=" rows", total=total, mininterval=1.0, disable=None):
        if writers.get(row.split) is None:
            path, rows = next(waiting[row.split], ("", 0))
            ensure(path, _changed("more rows"))
            writers[row.split] = _ShardWriter(staging.folder, path, rows, row.split, content, licenses, path in done)
        writer = writers[row.split]
        assert writer is not None
        writer.add(row)
        if writer.left == 0:
            if (shard := writer.close()) is not None:
                staging.add(shard)
                done[shard.path] = shard
            writers[row.split] = None
    rest = [path for shards in waiting.values() for path, _ in shards]
    ensure(not rest and not any(writers.values()), _changed("fewer rows"))


def _changed(how: str) -> str:
    return f"source: has {how} than when it was counted, so it changed meanwhile. Run the same command again."


class _ShardWriter:
    """Writes the rows of one shard, in row groups; or only lets them pass when the shard is there already."""

    def __init__(
        self, folder: Path, path: str, rows: int, split: str, content: Content, licenses: Licenses, is_done: bool
    ) -> None:
        self.left, self._is_done = rows, is_done
        self._folder, self._path, self._split, self._num_rows = folder, path, split, rows
        self._content, self._licenses = content, licenses
        self._rows: list[Row] = []
        self._group_bytes = self._num_bytes = 0
        self._partial = folder / (path + ".partial")
        self._file: pyarrow.parquet.ParquetWriter | None = None

    def add(self, row: Row) -> None:
        """Take the next row."""
        self.left -= 1
        if self._is_done:
            return
        self._rows.append(row)
        self._group_bytes += self._content.row_bytes or sum(map(len, row.texts))
        if self._group_bytes >= _ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow

        if self._file is None:
            self._file = _open(self._partial, self._content.schema)
        names = [self._licenses.of(row.source, row.license) for row in self._rows]
        columns = self._content.columns(self._rows, names)
        batch = pyarrow.RecordBatch.from_arrays(columns, schema=self._content.schema)
        self._num_bytes += batch.nbytes
        self._file.write_batch(batch)
        self._rows, self._group_bytes = [], 0

    def close(self) -> Shard | None:
        """Finish the file and return its shard; None for one that was there already."""
        if self._is_done:
            return None
        if self._rows:
            self._write_group()
        assert self._file is not None
        self._file.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        target = self._folder / self._path
        self._partial.replace(target)
        return Shard(self._path, self._split, self._num_rows, self._num_bytes, target.stat().st_size, digest)


def _open(path: Path, schema: "pyarrow.Schema") -> "pyarrow.parquet.ParquetWriter":
    import pyarrow.parquet

    # Only where values repeat: of texts a dictionary costs memory and saves nothing.
    names = ("metadata.source", "metadata.license", "source", "license")
    repeated = [name for name in names if name.partition(".")[0] in schema.names]
    return pyarrow.parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=repeated or False, write_page_index=True
    )
