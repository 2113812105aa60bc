"""Rows of text out of one file: parquet, jsonl (plain, gz or zst) and txt, with errors that name the place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..checks import InputError, ensure

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
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


def _read_parquet(key: str, path: Path, text_column: str, metadata_column: str) -> Iterator[tuple[Any, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{key}={path}: not a readable parquet file ({str(error).splitlines()[0]}).") from error
    with file:
        names = file.schema_arrow.names
        ensure(
            text_column in names,
            f"text_column={text_column}: {path} has no such column. It has {', '.join(names)}.",
        )
        columns = [text_column] + ([metadata_column] if metadata_column in names else [])
        row = 0
        try:
            for batch in file.iter_batches(batch_size=256, columns=columns):
                metadata = batch.column(1) if len(columns) > 1 else None
                for index, cell in enumerate(batch.column(0)):
                    row += 1
                    yield cell.as_py(), metadata[index].as_py() if metadata is not None else None
        except UnicodeDecodeError as error:
            raise _invalid_utf8(key, path, f"row {row}", error) from error
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise InputError(f"{key}={path}: damaged after row {row} ({str(error).splitlines()[0]}).") from error


def _open_bytes(path: Path) -> IO[bytes]:
    if path.name.lower().endswith((".gz", ".zst")):
        import pyarrow

        codec = "gzip" if path.name.lower().endswith(".gz") else "zstd"
        stream: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), codec)
        return stream
    return path.open("rb")


def _lines(key: str, path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain or compressed file without their line ends."""
    rest = b""
    with _open_bytes(path) as stream:
        while True:
            try:
                part = stream.read(1 << 20)
            except OSError as error:
                raise InputError(f"{key}={path}: damaged compressed file ({str(error).splitlines()[0]}).") from error
            if not part:
                break
            *whole, rest = (rest + part).split(b"\n")
            yield from whole
    if rest:
        yield rest


def _read_jsonl(key: str, path: Path, text_column: str, metadata_column: str) -> Iterator[tuple[Any, Any]]:
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
