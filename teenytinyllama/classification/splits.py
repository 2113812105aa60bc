"""Splits that are missing are cut from the training rows by a fixed rule; what splits share is counted."""

import hashlib
from dataclasses import dataclass

from ..checks import ensure
from .rows import Example, keys_of

TEST_FRACTION, VALIDATION_FRACTION = 0.2, 0.1
MOST_VALIDATION_ROWS = 2000  # more would only choose an epoch more slowly
CUT_RULE = (
    "rows in the order of a hash of their text, from each label the same share, rows of equal text on one side: a "
    f"fifth for test, a tenth of the rest for validation (at most {MOST_VALIDATION_ROWS})"
)


@dataclass(frozen=True)
class Splits:
    """The rows of a task, all three splits.

    Attributes:
        rows: by the name of the split.
        cut: which of them were cut from the training rows here.
        seen: share of the rows of validation and of test whose text stands among the training rows, too.
        left_out: training rows that `max_train_rows` leaves out.
    """

    rows: dict[str, list[Example]]
    cut: tuple[str, ...]
    seen: dict[str, float]
    left_out: int


def complete_splits(found: dict[str, list[Example]], max_train_rows: int | None) -> Splits:
    """Return train, validation and test; see `CUT_RULE` for those that are not there.

    The cut depends on the rows alone, not on their order nor on any seed, so every model is scored on the same rows.

    Raises:
        InputError: too few rows to cut from, or a split in which a label of the training rows is all there is.
    """
    rows = dict(found)
    cut = []
    if "test" not in rows:
        rows["test"], rows["train"] = _take(rows["train"], TEST_FRACTION, "test")
        cut.append("test")
    if "validation" not in rows:
        share = min(VALIDATION_FRACTION, MOST_VALIDATION_ROWS / max(len(rows["train"]), 1))
        rows["validation"], rows["train"] = _take(rows["train"], share, "validation")
        cut.append("validation")
    before = len(rows["train"])
    if max_train_rows is not None and max_train_rows < before:
        rows["train"] = _take(rows["train"], max_train_rows / before, "train")[0][:max_train_rows]
    ensure(
        len({example.label for example in rows["train"]}) > 1,
        "train: all rows have one label, so there is nothing to learn. Give rows of every label.",
    )
    known = set(keys_of(rows["train"]))
    seen = {
        split: sum(key in known for key in keys_of(rows[split])) / len(rows[split]) for split in ("validation", "test")
    }
    return Splits(rows, tuple(cut), seen, before - len(rows["train"]))


def _take(rows: list[Example], fraction: float, purpose: str) -> tuple[list[Example], list[Example]]:
    """Return (taken, rest), the fraction of each label's texts; rows of equal text stay together.

    Of a label with a single text a cut takes none, so that it can be learnt.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys_of(rows)):
        groups.setdefault(key, []).append(index)
    by_label: dict[int, list[tuple[str, list[int]]]] = {}
    for key, members in groups.items():
        digest = hashlib.sha256(f"teenytinyllama {purpose}\0{key}".encode()).hexdigest()
        by_label.setdefault(rows[members[0]].label, []).append((digest, members))
    taken: set[int] = set()
    for label in sorted(by_label):
        ordered = sorted(by_label[label])
        most = len(ordered) if purpose == "train" else len(ordered) - 1
        for _, members in ordered[: min(most, max(1, round(fraction * len(ordered))))]:
            taken.update(members)
    ensure(
        taken,
        f"{purpose}: there is no such split, and {len(rows)} training rows with {len(by_label)} labels are too few to "
        "cut one from. Give it as a file.",
    )
    chosen = [row for index, row in enumerate(rows) if index in taken]
    return chosen, [row for index, row in enumerate(rows) if index not in taken]
