"""Plots of an evaluation: scores against trivial answers and other models; scores over checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measures import Measure
from .references import read_references, why_not_comparable
from .results import Results, Score

SCORES_PLOT, PROGRESS_PLOT = "scores.png", "progress.png"


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")  # no display needed
    from matplotlib import pyplot

    return pyplot


def plot_scores(results: Results, path: Path) -> None:
    """Draw each final score with two standard errors, the trivial answer, and the models of `references.yaml`."""
    scores = [score for score in results.scores if score.step is None]
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.55 * len(scores)), dpi=120)
    places = list(range(len(scores)))[::-1]
    others = [
        (place, 100 * reference.value)
        for place, score in zip(places, scores, strict=True)
        for found in read_references().values()
        for reference in found
        if (reference.suite, reference.task) == (score.suite, score.task)
        and why_not_comparable(score, reference) is None
    ]
    if others:
        axis.plot([value for _, value in others], [place for place, _ in others], "o", color="0.75", ms=5,
                  label="other models (published)")  # fmt: skip
    trivial = [(place, 100 * score.trivial) for place, score in zip(places, scores, strict=True)
               if score.trivial is not None]  # fmt: skip
    axis.plot([value for _, value in trivial], [place for place, _ in trivial], "|", color="tab:red", ms=18, mew=2,
              label="best answer without a model")  # fmt: skip
    axis.errorbar([100 * score.value for score in scores], places,
                  xerr=[200 * (score.stderr or 0.0) for score in scores], fmt="s", color="tab:blue", capsize=3,
                  label="this model, ± 2 standard errors")  # fmt: skip
    axis.set_yticks(places, [f"{score.name} ({score.suite})" for score in scores])
    axis.set_ylim(-0.7, len(scores) - 0.3)
    axis.set_xlabel("score in percent (correlations times a hundred)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="best", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


@dataclass(frozen=True)
class _Line:
    """One quantity over the checkpoints, in the order of their steps.

    Attributes:
        label: in the legend.
        points: scores or measures, each with a step.
        scale: to the axis's unit.
        trivial: the best answer that needs no model, in the same unit.
    """

    label: str
    points: list[Any]
    scale: float = 1.0
    trivial: float | None = None


def plot_progress(
    scores: Sequence[Score], measures: Sequence[Measure], kwh_of_step: dict[int, float | None], path: Path
) -> None:
    """Draw scores of checkpoints with their errors against tokens (or steps) and against energy.

    Below them, what moves where scores are still noise: bits per byte of held-out text and of the right answers.

    Args:
        scores: of checkpoints.
        measures: of checkpoints.
        kwh_of_step: energy consumed by each checkpoint; without any, the right half is left out.
        path: of the PNG.
    """
    rows = [
        (lines, label)
        for lines, label in ((_score_lines(scores), "score in percent, ± one standard error"),
                             (_bits_lines(measures, scores), "bits per byte, ± one standard error; lower is better"))
        if lines
    ]  # fmt: skip
    points = [point for lines, _ in rows for line in lines for point in line.points]
    has_tokens = all(point.tokens is not None for point in points)
    has_energy = any(kwh_of_step.get(point.step) is not None for point in points)
    columns = [("tokens" if has_tokens else "step", None), *([("kWh", kwh_of_step)] if has_energy else [])]
    pyplot = _pyplot()
    from matplotlib.ticker import EngFormatter

    size = (6.5 * len(columns), 4.2 * len(rows) + 0.3)
    figure, axes = pyplot.subplots(len(rows), len(columns), figsize=size, dpi=120, squeeze=False)
    for (lines, y_label), axes_of_row in zip(rows, axes, strict=True):
        for axis, (x_label, energy) in zip(axes_of_row, columns, strict=True):
            for number, line in enumerate(lines):
                known = [point for point in line.points if energy is None or energy.get(point.step) is not None]
                x = [energy[point.step] if energy else (point.tokens if has_tokens else point.step) for point in known]
                axis.errorbar(x, [line.scale * point.value for point in known],
                              yerr=[line.scale * (point.stderr or 0.0) for point in known], fmt="o-", ms=4, capsize=2,
                              color=f"C{number % 10}", label=line.label)  # fmt: skip
                if line.trivial is not None:
                    axis.axhline(line.trivial, color=f"C{number % 10}", ls=":", lw=1)
            axis.set_xlabel(x_label)
            if x_label == "tokens":
                axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.set_ylabel(y_label)
            axis.grid(alpha=0.3)
        axes_of_row[0].legend(fontsize=7)
    figure.suptitle("dotted: the best answer that needs no model", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _score_lines(scores: Sequence[Score]) -> list[_Line]:
    by_task: dict[tuple[str, str], list[Score]] = {}
    for score in sorted(scores, key=lambda score: score.step or 0):
        by_task.setdefault((score.suite, score.name), []).append(score)
    return [
        _Line(f"{name} ({suite})", found, 100, None if found[-1].trivial is None else 100 * found[-1].trivial)
        for (suite, name), found in by_task.items()
    ]


def _bits_lines(measures: Sequence[Measure], scores: Sequence[Score]) -> list[_Line]:
    names = {score.task: score.name for score in scores}
    by_task: dict[str, dict[int, Measure]] = {}
    for measure in sorted(measures, key=lambda measure: measure.step or 0):
        if measure.part is None and measure.metric in ("bits_per_byte", "answer_bits_per_byte"):
            name = names.get(measure.task, measure.task)
            label = "held-out text" if measure.metric == "bits_per_byte" else f"right answers of {name}"
            by_task.setdefault(label, {})[measure.step or 0] = measure  # a task may count in several suites
    return [_Line(label, list(found.values())) for label, found in by_task.items()]
