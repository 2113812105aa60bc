"""Shards of the corpus stage: what one task reads of one source, the documents in it, and the files between phases.

The cut into shards depends on the files alone, never on how many processes work. A parquet file is cut at its row
groups; a file of another kind is one shard.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import InputError, ensure, near_name
from ..data.input_files import SUFFIXES, first_line, kind_of, resolve_files
from ..data.instructions import read_origin
from ..data.readers import (
    characters,
    choose_text_column,
    is_text,
    lines_of,
    open_parquet,
    read_records,
    read_rows,
)
from ..data.sources import parse_metadata
from ..data.turns import RowError, is_filled, read_pair, read_turns
from ..progress import progress, tell_read
from .config import BuildConfig, SourceConfig
from .documents import UnreadableRow, parquet_rows
from .text_statistics import fields_of, year_of

# How turns of instructions are told apart in a text; a system's turn stands alone at the head.
_SPEAKERS = {"system": "", "user": "Pergunta: ", "assistant": "Resposta: "}
_ROWS_LOOKED_AT = 20  # first rows of a file, which show the keys that hold text
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
        rows: of a sample: the rows that it reads; None: all of them.
    """

    number: int
    source: str
    path: str
    name: str
    first: int = 0
    end: int | None = None
    rows: list[int] | None = None


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
    # A sample reads few rows of a file: cut into shards, it would be opened many times.
    most_bytes = config.shard_rows_megabytes * 2**20 if config.sample is None else 2**63
    for name, source in config.source_configs.items():
        suffixes = (*SUFFIXES, *PAGE_SUFFIXES)
        for file in resolve_files(f"sources.{name}.inputs", source.inputs, suffixes):
            for first, end in _cuts(f"sources.{name}.inputs", file.path, most_bytes):
                shards.append(WorkShard(len(shards), name, str(file.path), file.name, first, end))
    return shards if config.sample is None else _choose_rows(shards, config, config.sample)


@functools.lru_cache
def _rows_and_bytes(path: str) -> tuple[int, int]:
    import pyarrow.parquet

    found = pyarrow.parquet.read_metadata(Path(path).absolute())
    return found.num_rows, sum(found.row_group(group).total_byte_size for group in range(found.num_row_groups))


def shard_bytes(shard: WorkShard, unpacked: bool = False) -> float:
    """Return a shard's part of the bytes of its file; `unpacked`: of parquet before its compression, as work goes."""
    size = Path(shard.path).stat().st_size
    if shard.end is None:
        return size
    rows, num_bytes = _rows_and_bytes(shard.path)
    return (num_bytes if unpacked else size) * (shard.end - shard.first) / max(1, rows)


def _choose_rows(shards: list[WorkShard], config: BuildConfig, sample: int) -> list[WorkShard]:
    """Return the shards of a sample: of each source the rows with the lowest hashes, over all of its files."""
    chosen: list[WorkShard] = []
    for name, source in config.source_configs.items():
        own = [shard for shard in shards if shard.source == name]
        lowest: list[tuple[int, int, int]] = []  # hash, place of the shard, row
        for place, shard in enumerate(progress(own, f"looking for rows of {name}", "files")):
            rows = _rows_of(shard, source)
            hashes = _row_hashes(shard.name, rows)
            first = np.argsort(hashes, kind="stable")[:sample]
            lowest += [(int(hashes[number]), place, int(rows[number])) for number in first]
        wanted = sorted(lowest)[:sample]
        for place, shard in enumerate(own):
            if found := sorted(row for _, of, row in wanted if of == place):
                chosen.append(replace(shard, number=len(chosen), rows=found))
    return chosen


def _rows_of(shard: WorkShard, source: SourceConfig) -> NDArray[np.int64]:
    """Return the numbers of the rows of a file; one that does not say how many they are is read."""
    if shard.end is not None:
        return np.arange(shard.first, shard.end)
    if shard.path.lower().endswith((".html", ".htm")):
        return np.zeros(1, dtype=np.int64)
    return np.fromiter((row for row, _ in _drafts_of(Path(shard.path), shard, source)), dtype=np.int64)


def _row_hashes(name: str, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a hash of each row of a file: splitmix64 (Steele et al. 2014) of its number, from a seed of the name."""
    hashes = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(text_hash(name))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def _cuts(key: str, path: Path, most_bytes: int) -> list[tuple[int, int | None]]:
    """Return the rows at which a file is cut, each part with at most so many bytes where its row groups allow."""
    if kind_of(path) != ".parquet":
        return [(0, None)]
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path.absolute()) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{key}={path}: cannot be read as parquet ({first_line(error)}). Copy the file again, or leave it out."
        ) from error
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


def read_drafts(shard: WorkShard, source: SourceConfig) -> Iterator[Draft | BrokenRow]:
    """Yield the documents of a shard, in order; rows without text are left out, those that cannot be read are named.

    A line of jsonl, a row of parquet and a conversation can be broken by themselves; what is wrong with csv, json or
    txt is wrong with all of the file.

    Args:
        shard: what to read.
        source: its config.

    Raises:
        InputError: a damaged file, a missing column, or text that is none.
    """
    wanted = None if shard.rows is None else frozenset(shard.rows)
    end = shard.end if wanted is None else max(wanted, default=-1) + 1
    for row, draft in _drafts_of(Path(shard.path), shard, source):
        if end is not None and row >= end:
            return
        if row >= shard.first and (wanted is None or row in wanted):
            yield draft


def _drafts_of(path: Path, shard: WorkShard, source: SourceConfig) -> Iterator[tuple[int, Draft | BrokenRow]]:
    """Yield the documents of a file with their rows; of parquet from the row group on in which a shard begins."""
    name = path.name.lower()
    if name.endswith((".html", ".htm")):
        yield 0, Draft("", shard.source, "", "", shard.name, is_page=True, page=path.read_bytes())
        return
    if name.endswith((".warc", ".warc.gz")):
        yield from _warc_pages(path, shard)
        return
    key = f"sources.{shard.source}.inputs"
    if kind_of(path) == ".txt":
        rows = read_rows(key, path, source.text_column, source.metadata_column, source.txt_unit, source.encoding)
        for row, (text, _) in enumerate(rows):
            yield row, Draft(text, shard.source, "", "", f"{shard.name}:{row + 1}")
        return
    column, records = _with_column(key, path, source, _records_of(key, path, shard, source))
    for row, record in records:
        place = f"{shard.name}:{row + 1}"
        if isinstance(record, BrokenRow):
            yield row, record
            continue
        try:
            draft = _draft_of(record, column, place, shard.source, source)
        except RowError as error:
            yield row, BrokenRow(place, str(error), json.dumps(record, default=str))
            continue
        if draft is not None:
            yield row, draft


def _draft_of(record: dict[str, Any], column: str, place: str, name: str, source: SourceConfig) -> Draft | None:
    """Return the document of a row, or None for one without text.

    Args:
        record: the row.
        column: that holds the text or the page.
        place: of the row.
        name: of the source.
        source: its config.

    Raises:
        RowError: it is none; its text is the reason.
    """
    if source.conversations:
        messages = read_pair(record).chosen if is_filled(record.get("chosen")) else read_turns(record).messages
        content: Any = "\n\n".join(f"{_SPEAKERS[message['role']]}{message['content']}" for message in messages)
        origin, license_name = read_origin(record, name)
    else:
        if column not in record:
            raise RowError(f"no key {column}")
        content = record[column]
        if content is None:
            return None
        origin, license_name = parse_metadata(record.get(source.metadata_column), name)
    url = str(record.get(source.url_column or "") or "")
    if source.html_column and isinstance(content, bytes):
        return Draft("", name, "", url, place, is_page=True, page=content)
    if not isinstance(content, str):
        raise RowError(f"{column} holds {type(content).__name__}, not text")
    try:
        page = content.encode("utf-8")
    except UnicodeEncodeError as error:  # jsonl can escape half of a character
        raise RowError(f"{column} is not valid Unicode") from error
    if source.html_column:
        return Draft("", name, "", url, place, is_page=True, page=page)
    return Draft(
        content, name, license_name, url, place, notes=_notes(origin, name, record.get(source.metadata_column))
    )


def _notes(origin: str, source: str, metadata: Any) -> dict[str, Any]:
    """Return what the metadata of a document says: where it comes from, if that is not its source, and its year."""
    year = year_of(fields_of(metadata), "")
    return ({} if origin == source else {"origin": origin}) | ({"year": year} if year else {})


_Records = Iterator[tuple[int, dict[str, Any] | BrokenRow]]


def _with_column(key: str, path: Path, source: SourceConfig, records: _Records) -> tuple[str, _Records]:
    """Return the column of the text or page, and the records unread.

    Raises:
        InputError: no such column, and none that could only be the text.
    """
    if source.conversations:
        return source.text_column, records
    if kind_of(path) == ".parquet":
        return _parquet_columns(key, path, source)[0], records
    first = list(itertools.islice(records, _ROWS_LOOKED_AT))
    found = [record for _, record in first if isinstance(record, dict)]
    names = list(dict.fromkeys(name for record in found for name in record))
    with_text = [name for name in names if all(isinstance(record.get(name, ""), str) for record in found)]
    wanted = _column(key, path, source, names, with_text) if found else source.html_column or source.text_column
    return wanted, itertools.chain(first, records)


def _column(key: str, path: Path, source: SourceConfig, names: list[str], with_text: list[str]) -> str:
    """Return the column of the text or page of a file with columns of these names.

    Raises:
        InputError: one that the config names is missing, or there is none that could only be the text.
    """
    of_source = key.removesuffix("inputs")
    for name, column in (("html_column", source.html_column), ("url_column", source.url_column)):
        ensure(
            column is None or column in names,
            f"{of_source}{name}={column}: {path} has no such column.{near_name(column or '', names)} It has "
            f"{', '.join(names)}.",
        )
    if source.html_column is not None:
        return source.html_column
    try:
        return choose_text_column(path, names, with_text, source.text_column, source.metadata_column, str(path))
    except InputError as error:
        raise InputError(f"{of_source}{error}") from error


def _records_of(key: str, path: Path, shard: WorkShard, source: SourceConfig) -> _Records:
    """Yield the rows of a file of records, and those that cannot be read.

    Raises:
        InputError: a damaged file, or a missing column.
    """
    if kind_of(path) == ".parquet":
        columns = None if source.conversations else _parquet_columns(key, path, source)
        for row, record in parquet_rows(key, path, columns, (shard.first, shard.end)):
            if isinstance(record, UnreadableRow):
                yield row, BrokenRow(f"{shard.name}:{row + 1}", record.reason, record.content)
            else:
                yield row, record
    elif kind_of(path) == ".jsonl":
        for row, line in enumerate(lines_of(characters(key, path, source.encoding))):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield row, BrokenRow(f"{shard.name}:{row + 1}", f"not JSON ({first_line(error)})", line)
                continue
            is_object = isinstance(record, dict)
            yield row, record if is_object else BrokenRow(f"{shard.name}:{row + 1}", "not a JSON object", line)
    else:
        yield from enumerate(read_records(key, path, None, source.encoding))


def _parquet_columns(key: str, path: Path, source: SourceConfig) -> list[str]:
    """Return the columns to read of a parquet file, that of the text or page first.

    Raises:
        InputError: one is missing, or holds no text.
    """
    with open_parquet(key, path) as file:
        schema = file.schema_arrow
    with_text, names = [field.name for field in schema if is_text(field.type)], schema.names
    wanted = _column(key, path, source, names, with_text)
    kind, name = str(schema.field(wanted).type), "html_column" if source.html_column else "text_column"
    ensure(
        wanted in with_text or (source.html_column and "binary" in kind),
        f"{key.removesuffix('inputs')}{name}={wanted}: of {path} holds {kind}, not text. Name the column that holds "
        "the documents.",
    )
    more = [name for name in (source.url_column, source.metadata_column) if name in names]
    return list(dict.fromkeys([wanted, *(name for name in more if name)]))


def _warc_pages(path: Path, shard: WorkShard) -> Iterator[tuple[int, Draft | BrokenRow]]:
    """Yield the HTML pages among the answers of a web archive; answers other than 200 (OK) are no documents.

    Raises:
        InputError: the file is no web archive.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    row, told, why = -1, 0, "ends without one"
    with path.open("rb") as file:
        records = ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True, auto_decode="all")
        try:
            for row, record in enumerate(records):
                tell_read(-told + (told := file.tell()))
                place, kind = f"{shard.name}:{row + 1}", (record.http_content_type or "").lower()
                if "html" not in kind or record.http_headers.status_code != 200:
                    continue
                page, size = record.reader.read(), record.content_length  # as sent
                is_plain = not any(record.http_headers.get(f"{name}-Encoding") for name in ("Content", "Transfer"))
                if is_plain and len(page) < size:
                    yield row, BrokenRow(place, f"cut off: {len(page)} of {size} bytes", page.decode(errors="replace"))
                    continue
                draft = Draft("", shard.source, "", record.headers.get("WARC-Target-URI") or "", place, is_page=True)
                draft.page, draft.declared = page, record.http_charset
                yield row, draft
        except OSError as error:  # cut off, or damaged: nothing behind the place can be read
            why = first_line(error)
            if row >= 0:
                yield row + 1, BrokenRow(f"{shard.name}:{row + 2}", f"damaged from here on ({why})", "")
    key = f"sources.{shard.source}.inputs"
    ensure(row >= 0, f"{key}={path}: holds no answer of a server, a record `response` ({why}). Is it a web archive?")


def text_hash(text: str) -> int:
    """Return a 64-bit hash of a document's text, by which exact copies are found and documents are put in order."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def write_plan(path: Path, shards: list[WorkShard]) -> None:
    """Write the shards for the processes that work on them."""
    path.write_text(json.dumps([asdict(shard) for shard in shards]), encoding="utf-8")


def read_plan(path: Path) -> list[WorkShard]:
    """Return the shards that `write_plan` wrote."""
    return [WorkShard(**values) for values in json.loads(path.read_text(encoding="utf-8"))]
