"""What `ttl evaluate` asks: tasks whose data is there, held-out text, and the cloze made from it, all checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import ensure
from ..manifest import MANIFEST_NAME
from .cloze import make_cloze, write_cloze
from .config import EvaluateConfig
from .local_data import CLOZE, MissingDataError, TaskRows
from .parts import rows_of
from .suites import LANGUAGE_MODELING, BenchmarkTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .held_out_text import HeldOutText

CLOZE_NAME = "cloze.jsonl"


def tasks_with_data(
    tasks: list[BenchmarkTask], config: EvaluateConfig, missing: dict[str, str]
) -> Iterator[tuple[BenchmarkTask, TaskRows]]:
    """Yield the tasks whose data is there, and put the others into `missing`; all of it is read and checked.

    Raises:
        InputError: data that does not fit, or too few solved examples.
    """
    for task in tasks:
        if task.source == CLOZE:
            continue
        try:
            rows = rows_of(task, config, None)
        except MissingDataError as error:
            missing[task.name] = str(error)
            continue
        ensure(
            len(rows.shots) >= task.shots,
            f"tasks={task.name}: {len(rows.shots)} solved examples are there and {task.shots} are shown. Give the "
            "whole training split.",
        )
        _check_differences(task, rows)
        yield task, rows


def _check_differences(task: BenchmarkTask, rows: TaskRows) -> None:
    """Refuse questions that all have one right answer, where telling classes or degrees apart is the task.

    Raises:
        InputError: they do.
    """
    key = {"labels": "answer", "similarity": "similarity"}.get(task.kind)
    if key is None:
        return
    found = {row[key] for row in rows.test}
    ensure(
        len(found) > 1,
        f"tasks={task.name}: {key} is {next(iter(found))!r} in all questions ({len(rows.test):,}) of "
        f"{rows.origin.split}, so there is nothing to tell apart. Give a file with several.",
    )


def find_held_out_text(
    config: EvaluateConfig,
    wanted: list[tuple[str, BenchmarkTask]],
    tokenizer: "PreTrainedTokenizerBase",
    missing: dict[str, str],
) -> "HeldOutText | None":
    """Return held-out text if something asks for it and it is there; otherwise `missing` gets the reason.

    Raises:
        InputError: it cannot be read, or is missing and nothing else is asked for.
    """
    from .held_out_text import load_held_out

    needs_cloze = any(task.source == CLOZE for _, task in wanted)
    if not (needs_cloze or config.wants_language_modeling):
        return None
    inputs = config.held_out or _packed_of_run(Path(config.model_name_or_path).expanduser())
    if inputs:
        return load_held_out(inputs, tokenizer)
    reason = "needs held-out text. Give held_out: a packed folder, or text files"
    ensure(config.suite != LANGUAGE_MODELING, f"suite={LANGUAGE_MODELING}: {reason}.")
    missing.update({"ttl_cloze": reason} if needs_cloze else {})
    missing.update({LANGUAGE_MODELING: reason} if config.wants_language_modeling else {})
    return None


def _packed_of_run(model: Path) -> list[str]:
    """Return the packed folder that a run's manifest names, if it is still there."""
    for folder in (model, model.parent):
        try:
            packed = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["data"]["packed"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for place in (Path(packed), folder / packed, folder.parent / packed):
            if (place / MANIFEST_NAME).is_file():
                return [str(place)]
    return []


def make_cloze_file(
    config: EvaluateConfig, folder: Path, text: "HeldOutText", missing: dict[str, str]
) -> tuple[Path | None, dict[str, str]]:
    """Write the last words of held-out sentences; return the file, and what is missing."""
    items = make_cloze(text.texts, config.cloze_items)
    if not items:
        return None, {**missing, "ttl_cloze": "the held-out text has no sentence that ends with an ordinary word"}
    write_cloze(folder / CLOZE_NAME, items)
    return folder / CLOZE_NAME, missing
