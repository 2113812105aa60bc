"""Rows of one file: parquet, jsonl (plain, gz or zst), json, csv, txt; errors name the file and the place in it."""

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..checks import InputError, ensure

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")  # of texts
RECORD_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json")  # of rows with several columns
TABLE_SUFFIXES = (".csv", ".tsv")  # of rows whose cells are all text
_PARQUET_BUFFER_BYTES = 1 << 20
Row = tuple[str, Any]  # text, metadata cell (None when there is none)


def read_rows(key: str, path: Path, text_column: str, metadata_column: str, txt_unit: str) -> Iterator[Row]:
    """Yield (text, metadata) for each row of a file, in order; rows without text (null) are left out.

    Raises:
        InputError: damaged file, wrong column, text that is not a string or not valid UTF-8; the message names the
            file and the row, line or byte.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        rows = _read_parquet(key, path, text_column, metadata_column)
    elif name.endswith(".txt"):
        rows = _read_txt(key, path, txt_unit)
    else:
        rows = _read_jsonl(key, path, text_column, metadata_column)
    for number, (text, metadata) in enumerate(rows, start=1):
        if text is None:
            continue
        ensure(
            isinstance(text, str),
            f"text_column={text_column}: row {number} of {path} holds {type(text).__name__}, not text. "
            "Name the column that holds the documents.",
        )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # jsonl can escape half of a surrogate pair
            raise InputError(
                f"{key}={path}: row {number} is not valid UTF-8 (character {error.start} is half of a surrogate pair). "
                "Repair or drop the row."
            ) from error
        yield text, metadata


def _invalid_utf8(key: str, path: Path, where: str, error: UnicodeDecodeError) -> InputError:
    found = error.object[error.start]
    return InputError(
        f"{key}={path}: {where} is not valid UTF-8 (byte 0x{found:02x}). "
        f"If the file is Latin-1: iconv -f latin1 -t utf-8 {path.name} > new-{path.name}"
    )


@contextlib.contextmanager
def _open_parquet(key: str, path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        # By default a whole row group is read at once, and many programs write one for the whole file.
        file = pyarrow.parquet.ParquetFile(path, buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{key}={path}: not a readable parquet file ({str(error).splitlines()[0]}).") from error
    with file:
        yield file


def _batches(key: str, path: Path, file: Any, columns: list[str] | None) -> Iterator[Any]:
    """Yield the record batches of an open parquet file; None: with all columns."""
    import pyarrow

    row = 0
    try:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield batch
            row += batch.num_rows
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{key}={path}: damaged after row {row} ({str(error).splitlines()[0]}).") from error


def _read_parquet(key: str, path: Path, text_column: str, metadata_column: str) -> Iterator[tuple[Any, Any]]:
    with _open_parquet(key, path) as file:
        names = file.schema_arrow.names
        ensure(
            text_column in names,
            f"text_column={text_column}: {path} has no such column. It has {', '.join(names)}.",
        )
        columns = [text_column] + ([metadata_column] if metadata_column in names else [])
        row = 0
        try:
            for batch in _batches(key, path, file, columns):
                metadata = batch.column(1) if len(columns) > 1 else None
                for index, cell in enumerate(batch.column(0)):
                    row += 1
                    yield cell.as_py(), metadata[index].as_py() if metadata is not None else None
        except UnicodeDecodeError as error:
            raise _invalid_utf8(key, path, f"row {row}", error) from error


def read_records(key: str, path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield every row of a parquet, jsonl, json (one list of objects), csv or tsv file as a mapping of all its columns.

    Args:
        key: the config key that names the file, for the message.
        path: of the file.
        columns: of a parquet file, the ones to read; None: all.

    Raises:
        InputError: a damaged file, or one that holds no objects; the message names the file and the row or line.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        with _open_parquet(key, path) as file:
            row = 0
            try:
                for batch in _batches(key, path, file, columns):
                    yield from batch.to_pylist()
                    row += batch.num_rows
            except UnicodeDecodeError as error:
                raise _invalid_utf8(key, path, f"a row after row {row}", error) from error
            except OverflowError as error:  # dates outside Python's
                raise InputError(f"{key}={path}: a row after row {row} cannot be read ({error}).") from error
    elif name.endswith(".json"):
        yield from _read_json(key, path)
    elif name.endswith(TABLE_SUFFIXES):
        yield from _read_table(key, path)
    else:
        yield from (record for _, record in _json_lines(key, path))


def _read_json(key: str, path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _invalid_utf8(key, path, f"byte {error.start}", error) from error
    except ValueError as error:
        raise InputError(f"{key}={path}: not JSON ({error}). One object a line is a .jsonl file.") from error
    ensure(
        isinstance(content, list) and all(isinstance(record, dict) for record in content),
        f"{key}={path}: must be one list of JSON objects.",
    )
    return list(content)


def _read_table(key: str, path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a csv or tsv file under the names in its first line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid_utf8(key, path, f"byte {error.start}", error) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for row in reader:
            ensure(
                None not in row and None not in row.values(),
                f"{key}={path}: line {reader.line_num} has another number of cells than the first line. Quote texts "
                "that hold the separator.",
            )
            yield row
    except csv.Error as error:
        raise InputError(f"{key}={path}: line {reader.line_num} is not csv ({error}).") from error


def _open_bytes(path: Path) -> IO[bytes]:
    if path.name.lower().endswith((".gz", ".zst")):
        import pyarrow

        codec = "gzip" if path.name.lower().endswith(".gz") else "zstd"
        stream: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), codec)
        return stream
    return path.open("rb")


def _lines(key: str, path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain or compressed file without their line ends."""
    rest, mark = b"", b"\xef\xbb\xbf"  # which some editors write in front
    with _open_bytes(path) as stream:
        while True:
            try:
                part = stream.read(1 << 20)
            except OSError as error:
                raise InputError(f"{key}={path}: damaged compressed file ({str(error).splitlines()[0]}).") from error
            if not part:
                break
            *whole, rest = (rest + part).removeprefix(mark).split(b"\n")
            mark = b""
            yield from whole
    if rest:
        yield rest


def _json_lines(key: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a jsonl file with the numbers of their lines; empty lines are left out."""
    for number, line in enumerate(_lines(key, path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _invalid_utf8(key, path, f"line {number}", error) from error
        except ValueError as error:
            raise InputError(f"{key}={path}: line {number} is not JSON ({error}). One JSON object a line.") from error
        ensure(isinstance(record, dict), f"{key}={path}: line {number} is not a JSON object.")
        yield number, record


def _read_jsonl(key: str, path: Path, text_column: str, metadata_column: str) -> Iterator[tuple[Any, Any]]:
    for number, record in _json_lines(key, path):
        ensure(
            text_column in record,
            f"text_column={text_column}: line {number} of {path} has no such key. It has {', '.join(record)}.",
        )
        yield record[text_column], record.get(metadata_column)


def _read_txt(key: str, path: Path, txt_unit: str) -> Iterator[tuple[str, None]]:
    if txt_unit == "line":
        for number, line in enumerate(_lines(key, path), start=1):
            try:
                yield line.removesuffix(b"\r").decode("utf-8"), None
            except UnicodeDecodeError as error:
                raise _invalid_utf8(key, path, f"line {number}", error) from error
        return
    try:
        yield path.read_bytes().decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        raise _invalid_utf8(key, path, f"byte {error.start}", error) from error
