"""Rows of a parquet file of which some may be damaged: those that can be read, and why the others cannot."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import DamagedRowsError
from ..data.input_files import first_line
from ..data.readers import Part, batches, open_parquet


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
