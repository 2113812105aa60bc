"""`measures.json` beside `results.json`: what has no upper bound or is no score, such as bits per byte."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..checks import InputError, MissingFileError, ensure
from ..manifest import write_json

MEASURES_NAME = "measures.json"


@dataclass(frozen=True)
class Measure:
    """One figure; None is what is not known.

    Attributes:
        suite: it belongs to.
        task: in the harness, or `held_out`.
        metric: `bits_per_byte` (of text), `perplexity`, `answer_bits_per_byte` (of the right answer), or a further
            metric of a task.
        value: in the metric's unit.
        stderr: standard error, in the same unit.
        part: a source or register; None for all.
        num_items: documents or questions.
        step: of the checkpoint; None for the final model.
        tokens: seen by that checkpoint.
    """

    suite: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    part: str | None = None
    num_items: int | None = None
    step: int | None = None
    tokens: int | None = None


def write_measures(path: Path, measures: list[Measure]) -> None:
    """Write measures as a list of JSON objects."""
    write_json(path, [asdict(measure) for measure in measures])


def read_measures(path: Path) -> list[Measure]:
    """Return the measures of a file.

    Raises:
        InputError: no file, no JSON, or a row that does not fit; the message names file, row and key.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file. The evaluation writes it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}). Run the evaluation again.") from error
    known = {field.name for field in fields(Measure)}
    ensure(isinstance(content, list), f"{path}: must hold a list. Run the evaluation again.")
    for number, row in enumerate(content):
        ensure(
            isinstance(row, dict)
            and set(row) <= known
            and {"suite", "task", "metric", "value"} <= set(row)
            and isinstance(row["value"], int | float)
            and math.isfinite(row["value"]),
            f"{path}: row {number} is no measure. Run the evaluation again.",
        )
    return [Measure(**row) for row in content]
