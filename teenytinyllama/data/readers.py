"""Readers: the rows of a parquet, jsonl, json, csv, tsv or txt file; an error names the file and the place."""

import codecs
import contextlib
import csv
import itertools
import json
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..checks import DamagedRowsError, InputError, ensure
from ..progress import tell_read
from .input_files import TABLE_SUFFIXES, encoding_of, first_line, kind_of, read_bytes, say_once

Row = tuple[str, Any]  # text, metadata cell (None when there is none)
Part = tuple[int, int | None]  # first row, and the one after the last (None: all that follow)
WHOLE: Part = (0, None)
_PARQUET_BUFFER_BYTES = 1 << 20
_ROWS_LOOKED_AT = 20  # first rows of a jsonl file, which show the keys that hold text
_MOST_CELL_CHARS = 2**31 - 1  # of csv; the csv module's own limit is 131,072
_NO_SEPARATOR = "\x1f"  # separates the cells of a table of one column: no text has it

# Names of a column of texts, where there is none called `text`, and of columns that hold anything but the text.
_TEXT_NAMES = frozenset(
    """
texto textos texts conteudo conteúdo content contents body corpo document documento documents raw_content raw_text
article artigo story historia história sentence frase
""".split()  # noqa: SIM905
)
_OTHER_NAMES = frozenset(
    """
id _id uuid hash url uri link source fonte origem license licence licenca licença language lang idioma date timestamp
created author autor split
""".split()  # noqa: SIM905
)


def read_rows(
    key: str, path: Path, text_column: str, metadata_column: str, txt_unit: str, encoding: str | None = None
) -> Iterator[Row]:
    """Yield (text, metadata) for each row of a file, in order; rows without text (null) are left out.

    Args:
        key: the config key that names the file, for the message.
        path: of the file.
        text_column: the column or key of the text. Where the default, `text`, is missing, the only column that can be
            the text is taken, and said.
        metadata_column: a column that may be there.
        txt_unit: what one document is in a txt file, `file` or `line`.
        encoding: of a file that is no parquet; None: recognised.

    Raises:
        InputError: damaged file, wrong column, text that is not a string or not valid UTF-8; the message names the
            file and the row, line or byte.
    """
    if kind_of(path) == ".txt":
        rows = _read_txt(key, path, txt_unit, encoding)
    elif kind_of(path) == ".parquet":
        rows = _read_parquet(key, path, text_column, metadata_column)
    else:
        rows = _read_texts(key, path, text_column, metadata_column, encoding)
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


def read_records(
    key: str, path: Path, columns: list[str] | None = None, encoding: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield every row of a parquet, jsonl, json, csv or tsv file as a mapping of all its columns.

    Args:
        key: the config key that names the file, for the message.
        path: of the file.
        columns: of a parquet file, the ones to read; None: all.
        encoding: of a file that is no parquet; None: recognised.

    Raises:
        InputError: a damaged file, or one that holds no objects; the message names the file and the row or line.
    """
    if kind_of(path) == ".parquet":
        with open_parquet(key, path) as file:
            for batch in batches(key, path, file, columns):
                yield from _python_rows(key, path, batch)
    else:
        yield from (record for _, record in _text_records(key, path, encoding))


def text_column_of(names: Sequence[str], with_text: Collection[str], wanted: str, metadata_column: str) -> str | None:
    """Return the column of the texts, or None if it cannot be told.

    Args:
        names: all columns.
        with_text: those that hold text.
        wanted: the config's; only its default, `text`, is ever replaced by another.
        metadata_column: which is never the text.

    Example:
        >>> text_column_of(["id", "titulo", "texto"], ["id", "titulo", "texto"], "text", "metadata")
        'texto'
    """
    if wanted in names:
        return wanted
    if wanted != "text":
        return None
    folded = {name: name.strip().casefold() for name in names if name in with_text and name != metadata_column}
    for fits in (
        [name for name, plain in folded.items() if plain == "text"],
        [name for name, plain in folded.items() if plain in _TEXT_NAMES],
        [name for name, plain in folded.items() if plain not in _OTHER_NAMES],
    ):
        if fits:
            return fits[0] if len(fits) == 1 else None
    return None


def choose_text_column(
    path: Path, names: Sequence[str], with_text: Collection[str], wanted: str, metadata_column: str, where: str
) -> str:
    """Return the column of the texts; the user is told of one that the config does not name.

    Raises:
        InputError: there is no such column, and no other that could only be the text.
    """
    found = text_column_of(names, with_text, wanted, metadata_column)
    ensure(
        found is not None,
        f"text_column={wanted}: {where} has no such {'column' if where == str(path) else 'key'}. It has "
        f"{', '.join(map(str, names)) or 'none'}. Name the one that holds the documents with text_column.",
    )
    assert found is not None
    if found != wanted:
        say_once(
            ("text_column", str(path.parent), found),
            f"text_column={wanted}: {path} has none; its column {found!r} is taken as the text, there and in files "
            "like it. text_column names another.",
        )
    return found


def _not_utf_8(key: str, path: Path, where: str, error: UnicodeDecodeError) -> InputError:
    """Return the refusal of bytes that are not UTF-8, with what to do about them.

    Args:
        key: the config key that names the file.
        path: of the file.
        where: the row, line or byte.
        error: the decoder's.
    """
    advice = ""
    if kind_of(path) != ".parquet":
        quoted = shlex.quote(path.name), shlex.quote(f"utf8-{path.name}")
        advice = (
            " Repair the place or drop it. If all of the file is windows-1252 (old Brazilian files mostly are): "
            + ("encoding: cp1252, or " if key in ("inputs", "validation_inputs") else "")
            + f"iconv -f WINDOWS-1252 -t UTF-8 {quoted[0]} > {quoted[1]}"
        )
    found = f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else "the end"
    return InputError(f"{key}={path}: {where} is not valid UTF-8 ({found}).{advice}")


# --- parquet


@contextlib.contextmanager
def open_parquet(key: str, path: Path) -> Iterator[Any]:
    """Open a parquet file for reading row by row.

    Raises:
        InputError: it is none, or has a column's name twice.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # An absolute path, since pyarrow takes `a:b` for an address.
        # By default a whole row group is read at once, and many programs write one for the whole file.
        file = pyarrow.parquet.ParquetFile(path.absolute(), buffer_size=_PARQUET_BUFFER_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{key}={path}: not a readable parquet file ({first_line(error)}).") from error
    with file:
        try:
            names = file.schema_arrow.names
        except (pyarrow.ArrowException, ValueError) as error:  # UnicodeDecodeError is a ValueError
            raise InputError(
                f"{key}={path}: not a readable parquet file: a column's name is damaged ({error})."
            ) from error
        twice = sorted({name for name in names if names.count(name) > 1})
        ensure(not twice, f"{key}={path}: has two columns called {', '.join(twice)}. Rename or drop one of them.")
        yield file


def batches(
    key: str, path: Path, file: Any, columns: list[str] | None, part: Part = WHOLE
) -> Iterator[tuple[int, Any]]:
    """Yield (number of rows before it, record batch of about 16 MB at most) of a part of an open parquet file."""
    import pyarrow

    first, end = part[0], file.metadata.num_rows if part[1] is None else part[1]
    parts = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    bounds = [0, *itertools.accumulate(own.num_rows for own in parts)]
    rows = 16 * _PARQUET_BUFFER_BYTES * bounds[-1] // max(1, sum(own.total_byte_size for own in parts))
    groups = [group for group, (a, b) in enumerate(itertools.pairwise(bounds)) if a < end and b > first]
    row = bounds[groups[0]] if groups else 0
    try:
        for batch in file.iter_batches(max(1, min(256, rows)), columns=columns, row_groups=groups):
            begin, stop = max(0, first - row), min(batch.num_rows, end - row)
            if begin < stop:
                tell_read(path.stat().st_size * (stop - begin) / bounds[-1])
                yield row + begin, batch.slice(begin, stop - begin)
            row += batch.num_rows
            if row >= end:
                return
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedRowsError(f"{key}={path}: damaged after row {row} ({first_line(error)}).") from error


def _python_rows(key: str, path: Path, numbered: tuple[int, Any]) -> list[dict[str, Any]]:
    """Return the rows of a batch as Python values."""
    row, batch = numbered
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        raise _not_utf_8(key, path, f"a row after row {row}", error) from error
    except (OverflowError, ValueError) as error:  # dates outside Python's
        raise InputError(f"{key}={path}: a row after row {row} cannot be read ({error}).") from error


def _read_parquet(key: str, path: Path, text_column: str, metadata_column: str) -> Iterator[tuple[Any, Any]]:
    with open_parquet(key, path) as file:
        schema = file.schema_arrow
        with_text = [field.name for field in schema if is_text(field.type)]
        text_column = choose_text_column(path, schema.names, with_text, text_column, metadata_column, str(path))
        columns = [text_column] + ([metadata_column] if metadata_column in schema.names else [])
        for start, batch in batches(key, path, file, columns):
            texts, metadata = batch.column(text_column), batch.column(metadata_column) if len(columns) > 1 else None
            for index, cell in enumerate(texts):
                try:
                    yield cell.as_py(), metadata[index].as_py() if metadata is not None else None
                except UnicodeDecodeError as error:
                    raise _not_utf_8(key, path, f"row {start + index + 1}", error) from error
                except (OverflowError, ValueError) as error:  # dates outside Python's
                    raise InputError(f"{key}={path}: row {start + index + 1} cannot be read ({error}).") from error


def is_text(kind: Any) -> bool:
    """Return whether a column of this pyarrow type holds text."""
    import pyarrow.types

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or str(kind) == "string_view")


# --- txt


def characters(key: str, path: Path, encoding: str | None, by_line: bool = True) -> Iterator[str]:
    """Yield the text of a file in parts, without a byte order mark.

    Args:
        key: the config key that names the file, for the message.
        path: of the file.
        encoding: of the file; None: recognised, and said if it is not UTF-8.
        by_line: name the line of a bad byte, rather than its place in the file.
    """
    name = encoding or encoding_of(key, path)
    decoder = codecs.getincrementaldecoder(name)()
    lines = position = 0
    for part in itertools.chain(read_bytes(key, path), [b""]):
        held_back = len(decoder.getstate()[0])  # the first bytes of a character that the last part cut
        try:
            text = decoder.decode(part, final=not part)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n") + 1
            place = position - held_back + error.start
            where = f"line {line}" if by_line else f"byte {place}"
            if codecs.lookup(name).name == "utf-8":
                raise _not_utf_8(key, path, where, error) from error
            raise InputError(
                f"{key}={path}: {where} is not valid {name} ({error.reason}). Repair it, or give its encoding."
            ) from error
        except UnicodeError as error:  # UTF-16 without the mark that its name promises
            raise InputError(f"{key}={path}: is not valid {name} ({error}). Give its encoding, or none.") from error
        text = text.removeprefix("\ufeff") if position == 0 else text
        position += len(part)
        lines += text.count("\n")
        yield text


def lines_of(parts: Iterator[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in parts, without their line feeds."""
    begun: list[str] = []  # of a line longer than a part: joined once, when it ends
    for part in parts:
        first, *more = part.split("\n")
        begun.append(first)
        if more:
            yield "".join(begun)
            yield from more[:-1]
            begun = [more[-1]]
    if last := "".join(begun):
        yield last


def _read_txt(key: str, path: Path, txt_unit: str, encoding: str | None) -> Iterator[tuple[str, None]]:
    if txt_unit == "line":
        for line in lines_of(characters(key, path, encoding)):
            yield line.removesuffix("\r"), None
    else:
        yield "".join(characters(key, path, encoding, by_line=False)), None


# --- jsonl, json, csv and tsv


def _read_texts(
    key: str, path: Path, text_column: str, metadata_column: str, encoding: str | None
) -> Iterator[tuple[Any, Any]]:
    records = _text_records(key, path, encoding)
    first = list(itertools.islice(records, _ROWS_LOOKED_AT))
    if not first:
        return
    names = list(dict.fromkeys(name for _, record in first for name in record))
    values = {name: [record.get(name) for _, record in first if record.get(name) is not None] for name in names}
    with_text = [name for name, found in values.items() if found and all(isinstance(value, str) for value in found)]
    where = str(path) if kind_of(path) in TABLE_SUFFIXES else f"{first[0][0]} of {path}"
    text_column = choose_text_column(path, names, with_text, text_column, metadata_column, where)
    for place, record in itertools.chain(first, records):
        ensure(
            text_column in record,
            f"text_column={text_column}: {place} of {path} has no such key. It has {', '.join(record)}.",
        )
        yield record[text_column], record.get(metadata_column)


def _text_records(key: str, path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) of a jsonl, json, csv or tsv file; a place is for a message, such as `line 3`."""
    if kind_of(path) in TABLE_SUFFIXES:
        return _read_table(key, path, encoding)
    if kind_of(path) == ".json":
        return _read_json(key, path, encoding)
    return _json_lines(key, path, lines_of(characters(key, path, encoding)))


def _json_lines(key: str, path: Path, lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = _parse_json(key, path, line, f"line {number} is", "One JSON object a line.")
            ensure(isinstance(record, dict), f"{key}={path}: line {number} is not a JSON object.")
            yield f"line {number}", record


def _read_json(key: str, path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a json file: of one list, one object that is the whole file, or one a line."""
    text = "".join(characters(key, path, encoding, by_line=False))
    first_line = text.lstrip().partition("\n")[0].strip()
    if first_line.startswith("{") and first_line.endswith("}") and _is_json(first_line):
        yield from _json_lines(key, path, iter(text.split("\n")))
        return
    content = _parse_json(key, path, text, "", "Give one list of objects, one object, or one object a line.")
    records = content if isinstance(content, list) else [content]
    ensure(
        all(isinstance(record, dict) for record in records),
        f"{key}={path}: must be one list of JSON objects.",
    )
    yield from ((f"row {number}", record) for number, record in enumerate(records, start=1))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_json(key: str, path: Path, text: str, what: str, fix: str) -> Any:
    """Return what a text in JSON says.

    Raises:
        InputError: it is not JSON, is nested too deeply, or has a key twice.
    """
    what = f"{what} " if what else ""
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise InputError(f"{key}={path}: {what}nested too deeply to be data. Drop it. {fix}") from error
    except ValueError as error:  # also a number of thousands of digits
        raise InputError(f"{key}={path}: {what}not JSON ({error}). {fix}") from error
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; a key that stands there twice would hide one of its two values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _read_table(key: str, path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a csv or tsv file under the names in its first line; cells may hold line feeds."""
    lines = (line + "\n" for line in lines_of(characters(key, path, encoding)))
    first = next(lines, "")
    if told := re.fullmatch(r"sep=(.)\r?\n", first):  # Excel's own line
        separator, first = told[1], next(lines, "")
    else:
        separator = _separator(first, path)
    csv.field_size_limit(_MOST_CELL_CHARS)
    reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        twice = sorted({name for name in names if names.count(name) > 1})
        ensure(not twice, f"{key}={path}: has two columns called {', '.join(map(repr, twice))}. Rename one of them.")
        for cells in reader:
            if not cells:
                continue
            ensure(
                len(cells) == len(names),
                f"{key}={path}: line {reader.line_num} has another number of cells than the first line: {len(cells)}, "
                f"not {len(names)}. Quote texts that hold the separator {separator!r}.",
            )
            yield f"line {reader.line_num}", dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{key}={path}: line {reader.line_num} is not csv ({error}).") from error


def _separator(header: str, path: Path) -> str:
    """Return what separates the cells: of , ; tab and | the one that the first line has most of, outside quotes."""
    bare = re.sub(r'"[^"]*"', "", header)
    if kind_of(path) == ".tsv" and "\t" in bare:
        return "\t"
    best = max(",;\t|", key=bare.count)
    return best if best in bare else _NO_SEPARATOR
