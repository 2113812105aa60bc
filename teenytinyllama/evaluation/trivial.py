"""What answers without a model score on the same questions: one answer to everything, a guess, a choice by length."""

from collections import Counter
from collections.abc import Sequence

from .bootstrap import macro_f1, pearson
from .results import TrivialKind
from .rows import Row
from .suites import TaskKind

Line = tuple[TrivialKind, float]


def trivial_lines(kind: TaskKind, metric: str, rows: Sequence[Row]) -> dict[str, Line]:
    """Return the score of each trivial way to answer, by what it does.

    A guess among labels is not counted: a label task is a matter of telling classes apart, and what is compared with
    is the constant answer, which models of no use fall into.

    Args:
        kind: of the task.
        metric: the task's.
        rows: the questions that were asked, in canonical form.
    """
    if kind == "choices":
        return _of_choices([len(row["choices"]) for row in rows], [row["gold"] for row in rows], rows)
    if kind == "exam":
        golds = [row["letters"].index(row["answer"]) for row in rows]
        return _of_choices([len(row["choices"]) for row in rows], golds, rows)
    if kind == "truth":
        return _of_truth(rows)
    if kind == "word":
        word, times = Counter(row["last_word"] for row in rows).most_common(1)[0]
        return {f"always {word!r}": ("majority", times / len(rows))}
    if kind == "similarity":
        return _of_similarity(rows)
    return _of_labels(metric, [row["answer"] for row in rows])


def best_line(lines: dict[str, Line]) -> Line:
    """Return the highest of the lines; the first of several."""
    return max(lines.values(), key=lambda line: line[1])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lengths(row: Row) -> list[int]:
    return [len(choice) for choice in row["choices"]]


def _of_choices(counts: Sequence[int], golds: Sequence[int], rows: Sequence[Row]) -> dict[str, Line]:
    most = Counter(golds).most_common(1)[0][0]
    lines: dict[str, Line] = {"a guess": ("chance", _mean([1 / count for count in counts]))}
    for place in range(max(counts)):
        share = _mean([float(gold == place) for gold in golds])
        lines[f"always choice {place + 1}"] = ("majority" if place == most else "constant", share)
    for name, choose in (("the longest choice", max), ("the shortest choice", min)):
        hits = [
            float(_lengths(row).index(choose(_lengths(row))) == gold) for row, gold in zip(rows, golds, strict=True)
        ]
        lines[name] = ("length", _mean(hits))
    return lines


def _of_truth(rows: Sequence[Row]) -> dict[str, Line]:
    lines: dict[str, Line] = {
        "the same probability for each": ("chance", _mean([sum(row["labels"]) / len(row["labels"]) for row in rows]))
    }
    for name, choose in (("the longest answer", max), ("the shortest answer", min)):
        true = [float(row["labels"][_lengths(row).index(choose(_lengths(row)))]) for row in rows]
        lines[name] = ("length", _mean(true))
    return lines


def _of_labels(metric: str, answers: Sequence[str]) -> dict[str, Line]:
    counts = Counter(answers)
    most = counts.most_common(1)[0][0]
    lines: dict[str, Line] = {}
    for label in sorted(counts):
        pairs = [(answer, label) for answer in answers]
        value = macro_f1(pairs) if metric == "f1_macro" else counts[label] / len(answers)
        lines[f"always {label!r}"] = ("majority" if label == most else "constant", value)
    return lines


def _of_similarity(rows: Sequence[Row]) -> dict[str, Line]:
    lengths = [(len(row["premise"]), len(row["hypothesis"])) for row in rows]
    likeness = [min(pair) / max(pair) for pair in lengths]
    return {
        "always the same number": ("constant", 0.0),
        "likeness of the lengths": (
            "length",
            pearson([(row["similarity"], value) for row, value in zip(rows, likeness, strict=True)]),
        ),
    }
