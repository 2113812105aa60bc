"""Shards of the corpus stage: what one task reads of one source, the documents in it, and the files between phases.

The cut into shards depends on the files alone, never on how many processes work. A parquet file is cut at its row
groups; a file of another kind is one shard.
"""

import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import InputError, ensure
from ..data.input_files import SUFFIXES, kind_of, resolve_files
from ..data.instructions import read_origin
from ..data.readers import characters, lines_of, read_records, read_rows
from ..data.sources import parse_metadata
from ..data.turns import RowError, read_turns
from ..stage_folder import write_json
from .config import BuildConfig, SourceConfig

if TYPE_CHECKING:
    import pyarrow

BATCH_BYTES = 16 * 2**20  # of texts that are written, or scored, at once

# How turns of instructions are told apart in a text; a system's turn stands alone at the head.
_SPEAKERS = {"system": "", "user": "Pergunta: ", "assistant": "Resposta: "}
PAGE_SUFFIXES = (".html", ".htm", ".warc", ".warc.gz")


@dataclass(frozen=True)
class WorkShard:
    """What one task reads: rows `first` to `end` of a file; of a file that is not cut, all.

    Attributes:
        number: of the task.
        source: the source's name.
        path: the file.
        name: of the file, as a user would know it.
        first: its first row.
        end: the row after its last one; None: to the end of the file.
    """

    number: int
    source: str
    path: str
    name: str
    first: int = 0
    end: int | None = None


@dataclass
class Draft:
    """A document on its way through the steps, which change its text and note what they found.

    Attributes:
        text: as it stands; of a page its bytes or text until HTML is taken off.
        source: the source's name.
        license: of the document, where it has one of its own; else the source's.
        url: where it comes from, if known.
        place: `file:row`, by which it is found again.
        is_page: whether `text` is an HTML page still.
        page: the bytes of an HTML page.
        declared: the encoding of the page that the server named, or None.
        notes: what steps found, such as `variety`.
    """

    text: str
    source: str
    license: str
    url: str
    place: str
    is_page: bool = False
    page: bytes = b""
    declared: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BrokenRow:
    """A row that holds no document because it cannot be read.

    Attributes:
        place: `file:row`.
        reason: what is wrong with it.
        content: the row, as far as it is text.
    """

    place: str
    reason: str
    content: str


def plan_shards(config: BuildConfig) -> list[WorkShard]:
    """Return the shards of all sources, in the order of the config and of the files.

    Raises:
        InputError: an input matches no file, is of an unknown kind, or cannot be read.
    """
    shards: list[WorkShard] = []
    for name, source in config.source_configs.items():
        suffixes = (*SUFFIXES, *PAGE_SUFFIXES)
        for file in resolve_files(f"sources.{name}.inputs", source.inputs, suffixes):
            for first, end in _cuts(file.path, config.shard_rows_megabytes * 2**20):
                shards.append(WorkShard(len(shards), name, str(file.path), file.name, first, end))
    return shards


def _cuts(path: Path, most_bytes: int) -> list[tuple[int, int | None]]:
    """Return the rows at which a file is cut, each part with at most so many bytes where its row groups allow."""
    if kind_of(path) != ".parquet":
        return [(0, None)]
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"inputs={path}: cannot be read as parquet ({str(error).splitlines()[0]}).") from error
    cuts: list[tuple[int, int | None]] = []
    first = row = size = 0
    for group in groups:
        # A row group larger than the limit is cut into equal parts of rows, each of which reads the whole group.
        parts = max(1, -(-group.total_byte_size // most_bytes))
        if parts > 1:
            if row > first:
                cuts.append((first, row))
            bounds = [row + group.num_rows * part // parts for part in range(parts + 1)]
            cuts += list(itertools.pairwise(bounds))
            row += group.num_rows
            first, size = row, 0
            continue
        if size and size + group.total_byte_size > most_bytes:
            cuts.append((first, row))
            first, size = row, 0
        row += group.num_rows
        size += group.total_byte_size
    if row > first or not cuts:
        cuts.append((first, row))
    return cuts


def read_drafts(shard: WorkShard, source: SourceConfig, sample: int | None = None) -> Iterator[Draft | BrokenRow]:
    """Yield the documents of a shard, in order; rows without text are left out, those that cannot be read are named.

    Of jsonl a broken line is one row; what is wrong with another kind of file is wrong with all of it.

    Args:
        shard: what to read.
        source: its config.
        sample: at most so many, spread over the shard's rows where their number is known.

    Raises:
        InputError: a damaged file, a missing column, or text that is none.
    """
    path, step = Path(shard.path), 1
    if sample is not None and shard.end is not None:
        step = max(1, (shard.end - shard.first) // sample)
    left = sample
    for row, draft in _drafts_of(path, shard, source):
        if (row - shard.first) % step:
            continue
        yield draft
        if left is not None:
            left -= 1
            if not left:
                return


def _drafts_of(path: Path, shard: WorkShard, source: SourceConfig) -> Iterator[tuple[int, Draft | BrokenRow]]:
    key = f"sources.{shard.source}.inputs"
    if source.conversations:
        yield from _conversations(path, shard, source)
        return
    if kind_of(path) == ".jsonl":
        yield from _json_documents(path, shard, source)
        return
    if path.name.lower().endswith((".html", ".htm")):
        yield 0, Draft("", shard.source, "", "", shard.name, is_page=True, page=path.read_bytes())
        return
    if path.name.lower().endswith((".warc", ".warc.gz")):
        yield from _warc_pages(path, shard)
        return
    if source.html_column or source.url_column:
        columns = [column for column in (source.html_column or source.text_column, source.url_column) if column]
        records = read_records(key, path, _known(path, columns, source), source.encoding, (shard.first, shard.end))
        for row, record in enumerate(records, start=shard.first):
            content = record.get(columns[0])
            if content is None:
                continue
            url = str(record.get(source.url_column or "") or "")
            place = f"{shard.name}:{row + 1}"
            if source.html_column:
                page = content if isinstance(content, bytes) else str(content).encode()
                yield row, Draft("", shard.source, "", url, place, is_page=True, page=page)
            else:
                yield row, Draft(str(content), shard.source, "", url, place)
        return
    rows = read_rows(key, path, source.text_column, source.metadata_column, source.txt_unit, source.encoding,
                     (shard.first, shard.end))  # fmt: skip
    for row, text, metadata in rows:
        origin, license_name = parse_metadata(metadata, shard.source)
        notes = {} if origin == shard.source else {"origin": origin}
        yield row, Draft(text, shard.source, license_name, "", f"{shard.name}:{row + 1}", notes=notes)


def _json_documents(path: Path, shard: WorkShard, source: SourceConfig) -> Iterator[tuple[int, Draft | BrokenRow]]:
    """Yield the documents of a jsonl file, and the lines that are none."""
    key, wanted = f"sources.{shard.source}.inputs", source.html_column or source.text_column
    for row, line in enumerate(lines_of(characters(key, path, source.encoding))):
        place = f"{shard.name}:{row + 1}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            content = record[wanted]
            if content is None:
                continue
            content.encode("utf-8")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"no key {wanted}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            yield row, BrokenRow(place, why[:200], line[:2000])
            continue
        url = str(record.get(source.url_column or "") or "")
        if source.html_column:
            yield row, Draft("", shard.source, "", url, place, is_page=True, page=content.encode())
            continue
        origin, license_name = parse_metadata(record.get(source.metadata_column), shard.source)
        notes = {} if origin == shard.source else {"origin": origin}
        yield row, Draft(content, shard.source, license_name, url, place, notes=notes)


def _conversations(path: Path, shard: WorkShard, source: SourceConfig) -> Iterator[tuple[int, Draft | BrokenRow]]:
    """Yield the rows of instruction data as texts: each turn a paragraph that begins with who speaks."""
    part = shard.first, shard.end
    records = read_records(f"sources.{shard.source}.inputs", path, None, source.encoding, part)
    for row, record in enumerate(records, start=shard.first):
        place = f"{shard.name}:{row + 1}"
        try:
            messages = read_turns(record).messages
        except RowError as error:
            yield row, BrokenRow(place, str(error), json.dumps(record, default=str, ensure_ascii=False)[:2000])
            continue
        text = "\n\n".join(f"{_SPEAKERS[message['role']]}{message['content']}" for message in messages)
        origin, license_name = read_origin(record, shard.source)
        notes = {} if origin == shard.source else {"origin": origin}
        yield row, Draft(text, shard.source, license_name, "", place, notes=notes)


def _known(path: Path, columns: list[str], source: SourceConfig) -> list[str] | None:
    """Return the columns to read of a parquet file, which must have them; None for other kinds.

    Raises:
        InputError: a column is missing.
    """
    if kind_of(path) != ".parquet":
        return None
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(path).names
    missing = [column for column in columns if column not in names]
    key = (
        "html_column"
        if source.html_column in missing
        else "url_column"
        if source.url_column in missing
        else "text_column"
    )
    ensure(not missing, f"{key}={(missing or [''])[0]}: {path} has no such column. It has {', '.join(names)}.")
    return columns


def _warc_pages(path: Path, shard: WorkShard) -> Iterator[tuple[int, Draft]]:
    """Yield the HTML pages among the responses of a web archive."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with path.open("rb") as file:
        for row, record in enumerate(ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True)):
            if record.http_content_type and "html" in record.http_content_type.lower():
                url = record.headers.get("WARC-Target-URI") or ""
                yield row, Draft("", shard.source, "", url, f"{shard.name}:{row + 1}", is_page=True,
                                 page=record.reader.read(), declared=record.http_charset)  # fmt: skip


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a document's text, by which exact copies are found and documents are put in order."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def write_plan(path: Path, shards: list[WorkShard]) -> None:
    """Write the shards for the processes that work on them."""
    path.write_text(json.dumps([asdict(shard) for shard in shards]), encoding="utf-8")


def read_plan(path: Path) -> list[WorkShard]:
    """Return the shards that `write_plan` wrote."""
    return [WorkShard(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


def document_schema() -> "pyarrow.Schema":
    """Return the columns of the documents between the phases."""
    import pyarrow

    text, number = pyarrow.large_string(), pyarrow.int64()
    return pyarrow.schema(
        [("text", text), ("source", pyarrow.string()), ("license", pyarrow.string()), ("url", pyarrow.string()),
         ("place", pyarrow.string()), ("variety", pyarrow.string()), ("hash", pyarrow.uint64()),
         ("cluster_size", number), ("tokens", number)]
    )  # fmt: skip


class DocumentWriter:
    """Writes documents into one parquet file, which has its name once it is whole."""

    def __init__(self, path: Path, schema: "pyarrow.Schema") -> None:
        """Begin a file; the folder is made."""
        import pyarrow.parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.schema = path, schema
        self._partial = path.with_name(path.name + ".partial")
        self._file = pyarrow.parquet.ParquetWriter(self._partial, schema, compression="zstd")
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


def read_documents(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the documents of a file of a phase, in order."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
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

        metadata = pyarrow.struct([(name, pyarrow.string()) for name in ("source", "license", "url", "variety")])
        self._schema = pyarrow.schema([("text", pyarrow.large_string()), ("metadata", metadata)])
        self._folder, self._most, self._number = folder, most_bytes, 0
        self._writer: DocumentWriter | None = None
        for old in folder.glob("*.parquet*") if folder.is_dir() else ():
            old.unlink()

    def add(self, document: dict[str, Any]) -> None:
        """Take the next document, with `text`, `source`, `license`, `url` and `variety`."""
        if self._writer is None:
            self._writer = DocumentWriter(self._folder / f"{self._number:05d}.parquet", self._schema)
            self._number += 1
        metadata = {name: document[name] for name in ("source", "license", "url", "variety")}
        self._writer.add({"text": document["text"], "metadata": metadata})
        if self._writer.total_bytes >= self._most:
            self.close()

    def close(self) -> None:
        """End the file that is open."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


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
        for step, seconds in json.loads(path.read_text(encoding="utf-8")).items():
            found[step] += seconds
    return {step: round(seconds, 3) for step, seconds in found.items()}
