"""Shards of a dataset: its rows, read once to be counted and once to be written, as parquet files with a licence a row.

The first reading finds rows, bytes, words, licences and where shards begin, and refuses what may not be published
before anything is written. The files go one after another into a staging folder that outlives a kill. It holds
`plan.json` (of what, and the counts), `shards.jsonl` (a line for each finished shard, with its hash) and `data/`. A
shard that is listed and still has its hash is not written again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..checks import ensure, ensure_disk_space, near_name
from ..data.instructions import SPLITS
from ..data.sources import Split
from ..progress import progress
from ..stage_folder import sha256_file, sha256_json, write_json
from .wording import one_line

if TYPE_CHECKING:
    import pyarrow.parquet

Kind = Literal["corpus", "packed", "instructions", "preferences"]


@dataclass(frozen=True)
class DatasetRow:
    """One row before it is written.

    Attributes:
        split: train or validation.
        source: that it counts under.
        license: as the data states it; empty when it does not.
        columns: values of all columns but those that say where the row is from.
        texts: what bytes and words are counted of.
    """

    split: Split
    source: str
    license: str
    columns: dict[str, Any]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetContent:
    """A dataset to be published, before it is counted and written.

    Attributes:
        kind: of the data.
        schema: of the parquet files; source and licence of a row stand in `metadata`, or in `source` and `license`.
        rows: yields all rows in a fixed order, again at each call.
        inputs: sha256 by name of what is read.
        identity: what says, at the next publication, that it is the same dataset in a newer state.
        facts: what the card tells of this kind, from manifests and settings.
        row_bytes: of each row where all are alike and need not be counted (packed rows), else None.
    """

    kind: Kind
    schema: "pyarrow.Schema"
    rows: Callable[[], Iterator[DatasetRow]]
    inputs: dict[str, str]
    identity: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    row_bytes: int | None = None

    def record(self, row: DatasetRow, license: str) -> dict[str, Any]:
        """Return a row with the values of all its columns."""
        origin = {"source": row.source, "license": license}
        return {**row.columns, **({"metadata": origin} if "metadata" in self.schema.names else origin)}


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


def count(content: DatasetContent, licenses: Licenses, shard_bytes: int) -> DatasetCounts:
    """Return the counts of a dataset.

    Args:
        content: what is to be published.
        licenses: filled with what lacks a licence, and then checked.
        shard_bytes: a shard ends with the row that reaches them.

    Raises:
        InputError: no row, a source without a licence, or a file that cannot be read.
    """
    count_rows = _count_packed if content.row_bytes else _count
    counts = count_rows(content, licenses, shard_bytes)
    ensure(counts.sources and any(counts.shards.values()), "source: holds no row with text. Give files that have some.")
    ensure(
        counts.shards["train"],
        "source: all rows are held out, so that there is no train split. Lower validation_fraction or add data.",
    )
    licenses.check(counts.sources)
    return counts


def _count(content: DatasetContent, licenses: Licenses, shard_bytes: int) -> DatasetCounts:
    counts = DatasetCounts()
    fill = dict.fromkeys(SPLITS, 0)  # bytes in the last shard of each split
    for row in progress(content.rows(), "counting", "rows"):
        num_bytes = sum(len(text.encode()) for text in row.texts)
        empty: dict[str, Any] = {"rows": 0, "validation_rows": 0, "bytes": 0, "words": 0, "licenses": []}
        source = counts.sources.setdefault(row.source, empty)
        source["rows"] += 1
        source["validation_rows"] += row.split == "validation"
        source["bytes"] += num_bytes
        source["words"] += sum(len(text.split()) for text in row.texts)
        license = licenses.of(row.source, row.license)
        if license and license not in source["licenses"]:
            source["licenses"].append(license)
        shards = counts.shards[row.split]
        if not shards or fill[row.split] >= shard_bytes:
            shards.append(0)
            fill[row.split] = 0
        shards[-1] += 1
        fill[row.split] += num_bytes
    return counts


def _count_packed(content: DatasetContent, licenses: Licenses, shard_bytes: int) -> DatasetCounts:
    """Count by the manifest of packing: the rows have no sources, their documents had."""
    counts, manifest = DatasetCounts(), content.facts["packing"]
    for split, sources in (("train", manifest["sources"]), ("validation", manifest["validation_sources"])):
        for name, record in sources.items():
            empty: dict[str, Any] = {"rows": 0, "validation_rows": 0, "bytes": 0, "tokens": 0, "licenses": []}
            source = counts.sources.setdefault(name, empty)
            source["rows"] += record["documents"]
            source["validation_rows"] += record["documents"] if split == "validation" else 0
            source["bytes"] += record["bytes"]
            source["tokens"] += record["tokens"]
            source["licenses"] += [name for name in record["licenses"] if name not in source["licenses"]]
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
        others = sorted({path.name for path in folder.iterdir()} - own) if folder.is_dir() else []
        ensure(not others, f"staging={folder}: is not empty ({', '.join(others[:3])}). Give an empty or new folder.")
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
        write_json(self.folder / _PLAN, {"plan_sha256": self._plan, "counts": asdict(counts)})

    def finished(self) -> dict[str, Shard]:
        """Return the shards that are there and unchanged, by path."""
        path = self.folder / _DONE
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill can leave a last line without its end
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        try:
            listed = {shard.path: shard for shard in (Shard(**json.loads(line)) for line in whole.splitlines())}
        except (ValueError, TypeError):  # a damaged list: all shards are made again
            path.unlink()
            return {}
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


def write_shards(staging: Staging, content: DatasetContent, licenses: Licenses, counts: DatasetCounts) -> list[Shard]:
    """Write the shards that are not there yet and return all of them, train first.

    Raises:
        InputError: the rows are no longer those that were counted, or the disk is full.
    """
    # Named as the Hub's own exports are.
    wanted = {
        split: [
            (f"{DATA_FOLDER}/{split}-{index:05d}-of-{len(sizes):05d}.parquet", rows) for index, rows in enumerate(sizes)
        ]
        for split, sizes in counts.shards.items()
    }
    paths = [path for shards in wanted.values() for path, _ in shards]
    done = staging.finished()
    if missing := [path for path in paths if path not in done]:
        text_bytes = sum(int(source["bytes"]) for source in counts.sources.values())
        most_bytes = text_bytes if content.row_bytes is None else content.row_bytes * sum(map(counts.rows, SPLITS))
        needed = int(most_bytes * _DISK_SHARE * len(missing) / len(paths))
        ensure_disk_space("staging", staging.folder, needed, "Give a staging folder on another disk.")
        (staging.folder / DATA_FOLDER).mkdir(exist_ok=True)
        _write_missing(staging, content, licenses, wanted, done)
    return [done[path] for path in paths]


def _write_missing(
    staging: Staging,
    content: DatasetContent,
    licenses: Licenses,
    wanted: dict[str, list[tuple[str, int]]],
    done: dict[str, Shard],
) -> None:
    """Read the rows once more and write each missing shard when its rows come by; `done` is added to."""
    waiting = {split: iter(shards) for split, shards in wanted.items()}
    files: dict[str, _ShardFile] = {}
    total = sum(rows for shards in wanted.values() for _, rows in shards)
    for row in progress(content.rows(), "writing", "rows", total=total):
        if row.split not in files:
            path, rows = next(waiting[row.split], ("", 0))
            ensure(path, _changed("more rows"))
            files[row.split] = _ShardFile(staging.folder, path, rows, row.split, content)
        file = files[row.split]
        file.left -= 1
        if file.path not in done:
            file.add(content.record(row, licenses.of(row.source, row.license)), sum(map(len, row.texts)))
        if file.left == 0:
            if file.path not in done:
                done[file.path] = file.close()
                staging.add(done[file.path])
            del files[row.split]
    rest = [path for shards in waiting.values() for path, _ in shards]
    ensure(not rest and not files, _changed("fewer rows"))


def _changed(how: str) -> str:
    return f"source: has {how} than when it was counted, so it changed meanwhile. Run the same command again."


class _ShardFile:
    """A parquet file that is being written, a row group at a time; `left` rows of it are still to come by."""

    def __init__(self, folder: Path, path: str, rows: int, split: str, content: DatasetContent) -> None:
        self.path, self.left = path, rows
        self._target, self._partial = folder / path, folder / (path + ".partial")
        self._split, self._num_rows, self._content = split, rows, content
        self._records: list[dict[str, Any]] = []
        self._group_bytes = self._num_bytes = 0
        self._file: pyarrow.parquet.ParquetWriter | None = None

    def add(self, record: dict[str, Any], num_bytes: int) -> None:
        """Take the next row."""
        self._records.append(record)
        self._group_bytes += self._content.row_bytes or num_bytes
        if self._group_bytes >= _ROW_GROUP_BYTES or len(self._records) >= _ROW_GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow.parquet

        schema = self._content.schema
        if self._file is None:
            # A dictionary only where values repeat: of texts it costs memory and saves nothing.
            names = ("metadata.source", "metadata.license", "source", "license")
            repeated = [name for name in names if name.partition(".")[0] in schema.names]
            self._file = pyarrow.parquet.ParquetWriter(
                self._partial.absolute(),
                schema,
                compression="zstd",
                use_dictionary=repeated or False,
                write_page_index=True,
            )
        batch = pyarrow.RecordBatch.from_pylist(self._records, schema=schema)
        self._num_bytes += batch.nbytes
        self._file.write_batch(batch)
        self._records, self._group_bytes = [], 0

    def close(self) -> Shard:
        """Finish the file and return its shard."""
        if self._records:
            self._write_group()
        assert self._file is not None
        self._file.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._partial.replace(self._target)
        size_bytes = self._target.stat().st_size
        return Shard(self.path, self._split, self._num_rows, self._num_bytes, size_bytes, digest)
