"""The rows of a benchmark: found in a local folder or on the Hub, checked column by column, examples set apart."""

import functools
import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import InputError, ensure, hub_errors
from ..data.input_files import RECORD_SUFFIXES
from ..data.readers import read_records
from .benchmark_rows import BadRowError, Row, count_repeats, has_twin, letter_of, question_key
from .benchmark_sources import SOURCES, Column, DataSplit, Layout, Shots, Source

_SHUFFLE_SEED = 0
_PARQUET_COPY = "refs/convert/parquet"  # https://huggingface.co/docs/dataset-viewer/parquet
CLOZE = "cloze"


@dataclass(frozen=True)
class Origin:
    """Where the questions of a benchmark came from; the Hub's identifiers are None for local files."""

    split: str
    dataset_id: str | None = None
    revision: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class BenchmarkRows:
    """Questions and solved examples in canonical form, in a fixed order.

    Attributes:
        test: the questions.
        shots: the examples, or those from which the harness draws.
        origin: of the questions.
        left_out: rows of the file that are no questions, because they need a picture, or a text is not there.
    """

    test: list[Row]
    shots: list[Row]
    origin: Origin
    left_out: int = 0

    def remarks(self, limit: int | None = None) -> dict[str, int]:
        """Return how many of the questions asked are odd, by what they are; see `results.Score`."""
        asked = self.test[:limit]
        shown = set(map(question_key, self.shots))
        return {
            "repeated_questions": count_repeats(asked),
            "repeated_shots": count_repeats(self.shots),
            "questions_among_shots": sum(question_key(row) in shown for row in asked),
            "questions_with_twins": sum(map(has_twin, asked)),
            "left_out_rows": self.left_out,
        }


class MissingDataError(InputError):
    """The data of a benchmark is not there; the message says what was looked for."""


@functools.lru_cache(maxsize=64)
def load_rows(name: str, data_dir: str | None, cloze_file: str | None = None, with_shots: bool = True) -> BenchmarkRows:
    """Return the rows of a source.

    Args:
        name: in `SOURCES`.
        data_dir: folder of local files; None reads the Hub's dataset (or its cache).
        cloze_file: the rows of `cloze`, which are made from held-out text.
        with_shots: whether solved examples are needed, too; see `suites.BenchmarkTask.shots`.

    Raises:
        MissingDataError: no file of the known names is in the folder, or the Hub cannot give the dataset.
        InputError: columns that do not fit, a label outside the set, a right answer that is no option, an empty split,
            or examples that are missing.
    """
    source = SOURCES[name]
    if name == CLOZE:
        if cloze_file is None:
            raise MissingDataError("cloze is made from held-out text. Give held_out: a packed folder, or text files.")
        test_file: Path | None = Path(cloze_file)
    else:
        test_file = None if data_dir is None else _find(data_dir, source.test)
    if test_file is None:
        (test, origin), left_out = _read_hub(source, source.test), 0
    else:
        test, left_out = _read_file(test_file, source)
        origin = Origin(test_file.name.split(".")[0])
        if origin.split in source.shuffled_stems:
            random.Random(_SHUFFLE_SEED).shuffle(test)
    shots: list[Row] = []
    shots_place = ""
    if source.shots is not None and with_shots:
        pool, pool_file = _read_pool(source, source.shots, data_dir)
        shots_place = (
            f"data_dir={pool_file}" if pool_file else f"dataset {source.dataset_id}, {source.shots.part.split}"
        )
        shots = _choose(source.shots, pool, shots_place)
        held_back = set(source.shots.held_back or (source.shots.ids if pool_file and pool_file == test_file else ()))
        test = [row for row in test if source.shots.column is None or row[source.shots.column] not in held_back]
    place = f"data_dir={test_file}" if test_file else f"dataset {source.dataset_id}, split {origin.split}"
    ensure(test, f"{place}: holds no question that can be used. Give a file with rows.")
    questions = _canonical(source.canonical, test, place)
    ensure(questions, f"{place}: holds no question that can be used. Give a file with rows.")
    examples = _canonical(source.canonical, shots, shots_place)
    return BenchmarkRows(questions, examples, origin, left_out + len(test) - len(questions))


def _canonical(convert: Callable[[Row], Row | None], rows: list[Row], place: str) -> list[Row]:
    """Return rows in another form, without those that are no questions.

    Raises:
        InputError: a row that cannot be asked; the message names its file and number.
    """
    found = []
    for row in rows:
        try:
            converted = convert(row)
        except BadRowError as error:
            raise InputError(f"{place}: row {row['row'] + 1}: {error}.") from error
        if converted is not None:
            found.append(converted)
    return found


def _find(data_dir: str, part: DataSplit) -> Path:
    for stem in part.stems:
        for suffix in RECORD_SUFFIXES:
            path = Path(data_dir) / f"{stem}{suffix}"
            if path.is_file():
                return path
    names = " or ".join(part.stems)
    raise MissingDataError(f"{data_dir} holds no {names} ({', '.join(RECORD_SUFFIXES)})")


def _read_pool(source: Source, shots: Shots, data_dir: str | None) -> tuple[list[Row], Path | None]:
    if data_dir is None:
        return _read_hub(source, shots.part)[0], None
    path = _find(data_dir, shots.part)
    return _read_file(path, source)[0], path


def _choose(shots: Shots, pool: list[Row], place: str) -> list[Row]:
    """Return the examples in their order.

    Raises:
        InputError: one is missing, or two rows have its identifier.
    """
    if not shots.ids:
        return pool
    found: dict[Any, Row] = {}
    for number, row in enumerate(pool):
        identity = number if shots.column is None else row[shots.column]
        ensure(
            identity not in found or identity not in shots.ids,
            f"{place}: row {row['row'] + 1}: {shots.column} {identity!r} stands in an earlier row, too, so that it is "
            "not clear which of them the benchmark shows. Take one of them out.",
        )
        found[identity] = row
    missing = [identity for identity in shots.ids if identity not in found]
    column = shots.column or "row"
    ensure(
        not missing,
        f"{place}: lacks rows that the benchmark shows as solved examples ({column}="
        f"{', '.join(map(str, missing[:5]))}). Give the whole split.",
    )
    return [found[identity] for identity in shots.ids]


def _read_file(path: Path, source: Source) -> tuple[list[Row], int]:
    """Return the rows of a local file in the form of the Hub's dataset, and how many others it has."""
    place = f"data_dir={path}"
    rows = _numbered(list(read_records("data_dir", path)))
    num_rows = len(rows)
    ensure(rows, f"{place}: holds no row. Give a file with rows.")
    for layout in source.layouts:
        if set(layout.columns) <= set(rows[0]) and not _needed(source.columns) <= set(rows[0]):
            _check_rows(place, rows, layout.columns)
            rows = _canonical(functools.partial(_convert, layout), rows, place)
            break
    _check_rows(place, rows, source.columns)
    return rows, num_rows - len(rows)


def _convert(layout: Layout, row: Row) -> Row | None:
    converted = layout.convert(row)
    return converted and {**converted, "row": row["row"]}


def _numbered(records: list[Row]) -> list[Row]:
    """Return rows with their number from 0; the `nan` of tables, which stands for an empty cell, is one."""
    return [
        {**{name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()},
         "row": number}
        for number, row in enumerate(records)
    ]  # fmt: skip


def _needed(columns: dict[str, Column]) -> set[str]:
    return {name for name, column in columns.items() if not column.optional}


def _check_rows(place: str, rows: list[Row], columns: dict[str, Column]) -> None:
    """Refuse rows whose columns do not fit.

    Raises:
        InputError: it names the columns that are missing, expected and found, or the row, its value and what is
            allowed.
    """
    for row in rows:
        number = row["row"] + 1
        missing = sorted(_needed(columns) - set(row))
        found = ", ".join(sorted(name for name in row if name != "row"))
        ensure(
            not missing,
            f"{place}: column {', '.join(missing)} is missing in row {number}. Expected are "
            f"{', '.join(sorted(_needed(columns)))}; found are {found}.",
        )
        for name, column in columns.items():
            value = row.get(name)
            if value is None and (column.optional or column.may_be_empty):
                continue
            ensure(
                _fits(value, column),
                f"{place}: row {number}: {name} is {str(value)[:80]!r}, but must be {_wanted(column)}. Correct the "
                "row, or take it out.",
            )
            label = letter_of(value) if column.kind == "letter" else value
            ensure(
                column.allowed is None or (isinstance(label, Hashable) and label in column.allowed),
                f"{place}: row {number}: {name} is {repr(value)[:80]}, outside the set "
                f"{', '.join(map(repr, column.allowed or ()))}. Correct the row, or take it out"
                + (": whether a number counts from 0 or from 1 is not guessed." if column.kind == "letter" else "."),
            )


def _fits(value: Any, column: Column) -> bool:
    if column.kind == "text":
        # A label may be a number where the Hub's dataset has a text.
        return bool(isinstance(value, str) and (value.strip() or column.optional or column.may_be_empty)) or (
            column.allowed is not None and isinstance(value, int)
        )
    if column.kind == "letter":
        return isinstance(value, str | int)
    if column.kind == "number":
        return isinstance(value, int | float) and math.isfinite(value)
    if column.kind == "options":
        texts, labels = (value.get("text"), value.get("label")) if isinstance(value, dict) else (None, None)
        return isinstance(texts, list) and isinstance(labels, list) and 0 < len(texts) == len(labels)
    items = isinstance(value, list)
    return items and (column.kind == "list" or (bool(value) and all(isinstance(item, str | None) for item in value)))


def _wanted(column: Column) -> str:
    names = {"text": "a text", "texts": "a list of texts", "list": "a list", "number": "a number",
             "letter": "a letter", "options": "a mapping of text and label, two lists of one length"}  # fmt: skip
    return names[column.kind]


def _read_hub(source: Source, part: DataSplit) -> tuple[list[Row], Origin]:
    """Return the rows of a Hub dataset's split, and the commit that they are of; the cache does without the network.

    The parquet copy that the Hub keeps of every dataset is read, because some of them are made by a script otherwise,
    and a script is never run.
    """
    from huggingface_hub import snapshot_download

    pattern = source.files or f"{source.config or '*'}/{part.split}/*.parquet"
    revision = None if source.files else _PARQUET_COPY
    unreachable: tuple[type[Exception], ...] = (*hub_errors(), OSError)
    try:
        folder = Path(
            snapshot_download(str(source.dataset_id), repo_type="dataset", revision=revision, allow_patterns=[pattern])
        )
    except unreachable as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDataError(f"the dataset {source.dataset_id} cannot be had from the Hub: {reason}") from error
    files = sorted(folder.glob(pattern))
    place = f"dataset {source.dataset_id}, commit {folder.name}"
    if not files:
        raise MissingDataError(f"{place}: holds no file {pattern}")
    ensure(
        len({file.parent for file in files}) == 1,
        f"{place}: has several configurations ({', '.join(sorted({file.parts[-3] for file in files}))}). Download the "
        "right one and give it with data_dir.",
    )
    rows = _numbered([row for file in files for row in read_records("dataset", file)])
    _check_rows(f"{place}, split {part.split}", rows, source.columns)
    return rows, Origin(part.split, source.dataset_id, folder.name, source.config)
