"""Files between the phases of the corpus stage, and the corpus itself: documents in parquet, arrays, seconds.

A file has its name once it is whole. Until then its name holds the number of the process that writes it, so that two
writers of one task cannot mix.
"""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..checks import RunFailedError
from ..stage_folder import parse_record, write_json

if TYPE_CHECKING:
    import pyarrow

Item = TypeVar("Item")
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
