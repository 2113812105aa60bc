"""Plots of an evaluation: scores against trivial answers and other models; scores over checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .references import read_references
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


def plot_progress(scores: Sequence[Score], kwh_of_step: dict[int, float | None], path: Path) -> None:
    """Draw scores of checkpoints with their errors against tokens (or steps) and against energy.

    Args:
        scores: of checkpoints.
        kwh_of_step: energy consumed by each checkpoint; without any, the right half is left out.
        path: of the PNG.
    """
    pyplot = _pyplot()
    from matplotlib.ticker import EngFormatter

    has_tokens = all(score.tokens is not None for score in scores)
    has_energy = any(kwh_of_step.get(score.step or 0) is not None for score in scores)
    axes_wanted = [("tokens" if has_tokens else "step", None), *([("kWh", kwh_of_step)] if has_energy else [])]
    figure, axes = pyplot.subplots(1, len(axes_wanted), figsize=(6.5 * len(axes_wanted), 4.5), dpi=120, squeeze=False)
    lines = list(dict.fromkeys((score.suite, score.name) for score in scores))
    for axis, (label, energy) in zip(axes[0], axes_wanted, strict=True):
        for number, (suite, name) in enumerate(lines):
            mine = [score for score in scores if (score.suite, score.name) == (suite, name)]
            mine = [score for score in mine if energy is None or energy.get(score.step or 0) is not None]
            x = [energy[score.step or 0] if energy else (score.tokens if has_tokens else score.step) for score in mine]
            color = f"C{number % 10}"
            axis.errorbar(x, [100 * score.value for score in mine],
                          yerr=[100 * (score.stderr or 0.0) for score in mine], fmt="o-", ms=4, capsize=2, color=color,
                          label=f"{name} ({suite})")  # fmt: skip
            trivial = mine[-1].trivial if mine else None
            if trivial is not None:
                axis.axhline(100 * trivial, color=color, ls=":", lw=1)
        axis.set_xlabel(label)
        if label == "tokens":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylabel("score in percent, ± one standard error")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.suptitle("dotted: the best answer that needs no model", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
