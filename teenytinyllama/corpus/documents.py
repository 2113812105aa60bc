"""What the tasks of the corpus stage read and leave: rows of damaged parquet files, documents, arrays, counts, seconds.

A file has its name once it is whole. Until then its name holds the number of the process that writes it, so that two
writers of one task cannot mix.

The funnel says how many documents and bytes each step let through, what it dropped and why, with samples. Every task
writes a funnel of its own; all of them added up are that of the corpus, whatever the number of processes.
"""

import contextlib
import heapq
import itertools
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checks import DamagedRowsError, RunFailedError
from ..data.input_files import first_line
from ..data.readers import Part, batches, open_parquet
from ..stage_folder import parse_record, write_json

if TYPE_CHECKING:
    import pyarrow

Item = TypeVar("Item")


@dataclass(frozen=True)
class UnreadableRow:
    """A row that cannot be read.

    Attributes:
        reason: what is wrong with it.
        content: the row, as far as it is text.
    """

    reason: str
    content: str


Rows = Iterator[tuple[int, dict[str, Any] | UnreadableRow]]


def parquet_rows(key: str, path: Path, columns: list[str] | None, part: Part) -> Rows:
    """Yield the rows of a part of a file with their numbers; only the row groups that hold the part are read.

    A row cannot be read that has bytes which are not UTF-8 or a date outside Python's, and of a damaged row group none
    from the damage on.

    Args:
        key: the config key that names the file, for messages.
        path: of the file.
        columns: to read; None: all.
        part: first row, and the one after the last.

    Raises:
        InputError: the file is no parquet.
    """
    with open_parquet(key, path) as file:
        sizes = (file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
        ends = list(itertools.accumulate(sizes))
        at, end = part[0], (ends[-1] if ends else 0) if part[1] is None else part[1]
        until = end
        while at < end:
            try:
                for row, batch in batches(key, path, file, columns, (at, until)):
                    yield from _rows_of(batch, row)
                    at = row + batch.num_rows
                at = until
            except DamagedRowsError as error:
                group_end = min(end, next(bound for bound in ends if bound > at))
                if until > group_end:  # once more up to there alone: a batch may hold rows of two groups
                    until = group_end
                    continue
                reason = f"its row group is {str(error).partition(': ')[2].rstrip('.')}"
                yield from ((row, UnreadableRow(reason, "")) for row in range(at, group_end))
                at = group_end
            until = end


def _rows_of(batch: Any, first: int) -> Rows:
    try:
        yield from enumerate(batch.to_pylist(), first)
    except (UnicodeDecodeError, OverflowError, ValueError):
        for row in range(batch.num_rows):
            single = batch.slice(row, 1)
            try:
                yield first + row, single.to_pylist()[0]
            except (UnicodeDecodeError, OverflowError, ValueError) as error:
                yield first + row, UnreadableRow(first_line(error), str(single))


BATCH_BYTES = 16 * 2**20  # of texts that are written, or scored, at once


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write several arrays into one file, by their names."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array so that a reader sees the old file or the whole new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def document_schema() -> "pyarrow.Schema":
    """Return the columns of the documents between the phases."""
    import pyarrow

    text, number = pyarrow.large_string(), pyarrow.int64()
    return pyarrow.schema(
        [("text", text), ("source", pyarrow.string()), ("license", pyarrow.string()), ("url", pyarrow.string()),
         ("place", pyarrow.string()), ("variety", pyarrow.string()), ("hash", pyarrow.uint64()),
         ("cluster_size", number), ("tokens", number), ("year", pyarrow.int16())]
    )  # fmt: skip


class DocumentWriter:
    """Writes documents into one parquet file, which has its name once it is whole."""

    def __init__(self, path: Path, schema: "pyarrow.Schema") -> None:
        """Begin a file; the folder is made."""
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        # An absolute path: pyarrow takes `a:b/c` for an address.
        self._file = pyarrow.parquet.ParquetWriter(self._partial.absolute(), schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self.total_bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        """Take the next document."""
        self._rows.append(row)
        size = len(row["text"].encode())
        self._bytes += size
        self.total_bytes += size
        if self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            self._file.write_batch(pyarrow.RecordBatch.from_pylist(self._rows, schema=self.schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Write what is left, and give the file its name."""
        self._flush()
        self._file.close()
        self._partial.replace(self.path)


SHARES_NAME = "shares.partial"  # in the folder of a phase: for each task how far it is; there while a bar shows it


class TaskShare:
    """How far a task of a phase is, from 0 to 1, noted in a file of the phase where a bar shows it."""

    def __init__(self, folder: str | Path, task: int, total: float) -> None:
        """Begin a task that ends when `add` has been told of the total."""
        path = Path(folder) / SHARES_NAME
        # Mapped: other processes of this machine see it at once.
        self._shares: Any = np.memmap(path, dtype="<f8", mode="r+") if path.exists() else None
        self._task, self._total, self._done = task, max(total, 1), 0.0

    def add(self, amount: float = 1) -> None:
        """Note that so much more is done."""
        if self._shares is not None:
            self._done += amount
            self._shares[self._task] = min(1.0, self._done / self._total)

    def counting(self, items: Iterable[Item], amount: float = 1) -> Iterator[Item]:
        """Yield the items, and note that amount for each."""
        for item in items:
            yield item
            self.add(amount)


def count_documents(path: Path) -> int:
    """Return how many documents a file of a phase holds."""
    import pyarrow.parquet

    with reading(path):
        return int(pyarrow.parquet.read_metadata(path.absolute()).num_rows)


def read_documents(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file of a phase, in order."""
    import pyarrow.parquet

    with reading(path), pyarrow.parquet.ParquetFile(path.absolute()) as file:
        for group in range(file.num_row_groups):  # one holds at most `BATCH_BYTES` and a document
            yield from file.read_row_group(group, columns=columns).to_pylist()


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a file of a phase, in order."""
    return (row["text"] for row in read_documents(path, ["text"]))


class SplitWriter:
    """Writes one split of the corpus as numbered parquet shards; none without documents."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Begin with no file; those of an earlier start are removed."""
        import pyarrow

        texts = [(name, pyarrow.string()) for name in ("source", "license", "url", "variety")]
        metadata = pyarrow.struct([*texts, ("cluster_size", pyarrow.int32())])
        self._schema = pyarrow.schema([("text", pyarrow.large_string()), ("metadata", metadata)])
        self._folder, self._most, self._number = folder, most_bytes, 0
        self._writer: DocumentWriter | None = None
        for old in folder.glob("*.parquet*") if folder.is_dir() else ():
            old.unlink()

    def add(self, document: dict[str, Any]) -> None:
        """Take the next document, with `text`, `source`, `license`, `url`, `variety` and `cluster_size`.

        The last is the number of documents that were duplicates of each other, of which this one stayed.
        """
        if self._writer is None:
            self._writer = DocumentWriter(self._folder / f"{self._number:05d}.parquet", self._schema)
            self._number += 1
        metadata = {name: document[name] for name in ("source", "license", "url", "variety", "cluster_size")}
        self._writer.add({"text": document["text"], "metadata": metadata})
        if self._writer.total_bytes >= self._most:
            self.close()

    def close(self) -> None:
        """End the file that is open."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file of a phase that the block reads where it is damaged.

    Raises:
        RunFailedError: the message says how the file is made again.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason, folder = " ".join(str(error).split())[:200], path if path.is_dir() else path.parent
        raise RunFailedError(
            f"{path} is damaged ({reason}). Delete the folder {folder}; the same command makes it again."
        ) from error


def read_figures(path: Path) -> dict[str, Any]:
    """Return the JSON object that a task of a phase wrote; see `reading` for damage."""
    with reading(path):
        return parse_record(path.read_bytes())


class StepSeconds:
    """Wall seconds of the steps of one task, one lap after the other: what a run's time goes into."""

    def __init__(self) -> None:
        """Begin the first lap."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        """End a lap; it was the step's."""
        now = time.perf_counter()
        self._seconds[step] += now - self._last
        self._last = now

    def write(self, folder: str | Path, task: int) -> None:
        """Write them into a file of their own: what a phase makes has no time in it."""
        write_json(Path(folder) / f"seconds-{task:05d}.json", dict(self._seconds))


def read_seconds(folder: Path) -> dict[str, float]:
    """Return the seconds of each step, those of all tasks of a phase together."""
    found: dict[str, float] = defaultdict(float)
    for path in folder.glob("seconds-*.json"):
        with contextlib.suppress(ValueError, TypeError):  # a damaged file costs its seconds, no more
            for step, seconds in parse_record(path.read_bytes()).items():
                found[step] += float(seconds)
    return {step: round(seconds, 3) for step, seconds in found.items()}


_SAMPLES = 20  # kept of each reason, and of what is kept
_SAMPLE_CHARACTERS = 1500

NO_DOCUMENT = "the source itself, which has no document"


@dataclass
class StepCount:
    """What one step did with the documents of one source.

    Attributes:
        documents_in: that came to it.
        documents_out: that it let through.
        bytes_in: of their texts in UTF-8.
        bytes_out: of what it let through.
        reasons: dropped documents by reason.
        changes: what it changed in texts, by kind: masked telephones, repaired characters.
    """

    documents_in: int = 0
    documents_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {**vars(self), "reasons": dict(self.reasons), "changes": dict(self.changes)}


class Funnel:
    """Counts of all steps by source, and samples of what was dropped and kept, those with the lowest hashes."""

    def __init__(self, most_samples: int | None = None) -> None:
        """Start with nothing; `most_samples` of each reason are kept, by default a few."""
        self._most = most_samples or _SAMPLES
        self.counts: dict[str, dict[str, StepCount]] = defaultdict(lambda: defaultdict(StepCount))
        self._samples: dict[str, list[tuple[int, str]]] = defaultdict(list)  # heaps of (-hash, JSON)

    def passed(
        self, source: str, step: str, bytes_in: int, bytes_out: int, changes: dict[str, int] | None = None
    ) -> None:
        """Count a document that a step let through."""
        count = self.counts[source][step]
        count.documents_in += 1
        count.documents_out += 1
        count.bytes_in += bytes_in
        count.bytes_out += bytes_out
        count.changes.update(changes or {})

    def dropped(self, source: str, step: str, bytes_in: int, reason: str, sample: dict[str, Any], order: int) -> None:
        """Count a document that a step dropped.

        Args:
            source: of the document.
            step: that dropped it.
            bytes_in: of its text.
            reason: of the step.
            sample: `text`, `place`, and what was measured.
            order: hash of the document, by which samples are chosen.
        """
        count = self.counts[source][step]
        count.documents_in += 1
        count.bytes_in += bytes_in
        count.reasons[reason] += 1
        self._sample(f"{source}/{step}/{reason}", sample, order)

    def kept(self, source: str, sample: dict[str, Any], order: int) -> None:
        """Offer a document that passed all steps as a sample."""
        self._sample(f"{source}//", sample, order)

    def _sample(self, place: str, sample: dict[str, Any], order: int) -> None:
        heap = self._samples[place]
        if len(heap) >= self._most and -heap[0][0] <= order:
            return
        text = json.dumps({**sample, "text": sample["text"][:_SAMPLE_CHARACTERS]}, ensure_ascii=False, sort_keys=True)
        (heapq.heappush if len(heap) < self._most else heapq.heappushpop)(heap, (-order, text))

    def samples(self, source: str, step: str = "", reason: str = "") -> list[dict[str, Any]]:
        """Return the samples of a reason, or of what is kept, in the order of their hashes."""
        return [
            json.loads(text) for _, text in sorted(self._samples.get(f"{source}/{step}/{reason}", []), reverse=True)
        ]

    def add(self, other: "Funnel") -> None:
        """Add the counts and samples of another funnel."""
        for source, steps in other.counts.items():
            for step, count in steps.items():
                mine = self.counts[source][step]
                for name in ("documents_in", "documents_out", "bytes_in", "bytes_out"):
                    setattr(mine, name, getattr(mine, name) + getattr(count, name))
                mine.reasons.update(count.reasons)
                mine.changes.update(count.changes)
        for place, heap in other._samples.items():
            for order, text in heap:
                self._sample(place, json.loads(text), -order)

    def write(self, path: Path) -> None:
        """Write the funnel as JSON."""
        counts = {source: {step: count.to_json() for step, count in steps.items()} for source, steps in
                  self.counts.items()}  # fmt: skip
        samples = {place: [[-order, text] for order, text in sorted(heap, reverse=True)] for place, heap in
                   self._samples.items()}  # fmt: skip
        write_json(path, {"counts": counts, "samples": samples}, f".{os.getpid()}.partial")

    @classmethod
    def read(cls, path: Path) -> "Funnel":
        """Return the funnel that `write` wrote.

        Raises:
            RunFailedError: the file is damaged.
        """
        funnel = cls(most_samples=2**31)
        with reading(path):
            found = parse_record(path.read_bytes())
            for source, steps in found["counts"].items():
                for step, values in steps.items():
                    values |= {"reasons": Counter(values["reasons"]), "changes": Counter(values["changes"])}
                    funnel.counts[source][step] = StepCount(**values)
            for place, samples in found["samples"].items():
                for order, text in samples:
                    funnel._sample(place, json.loads(text), order)
        return funnel

    def left_of(self, source: str) -> int:
        """Return how many documents of a source are left after the last step that had any."""
        counts = [count for count in self.counts.get(source, {}).values() if count.documents_in]
        return counts[-1].documents_out if counts else 0

    def emptied_by(self, source: str) -> str:
        """Return the step that dropped the last document of a source, with its most frequent reason."""
        for step, count in self.counts.get(source, {}).items():
            if count.documents_in and not count.documents_out:
                reason, number = count.reasons.most_common(1)[0]
                return f"{step} ({reason}: {number:,} of {count.documents_in:,} documents)"
        return NO_DOCUMENT
