"""The report of an evaluation: its results as Markdown and as plots.

Beside each score stand its error, the best answer that needs no model, and published scores of other models on the same
questions. What could not be measured is listed. Scores of checkpoints are drawn over tokens and energy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..corpus.provenance import say_contamination
from .config import BIAS
from .results import (
    BIAS_PAIRS,
    HELD_OUT,
    Measure,
    Results,
    Score,
    describe_odd_questions,
    is_trivial,
    read_references,
    why_not_comparable,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {"constant": "one answer to everything", "majority": "the most frequent answer", "length": "chosen by length",
          "chance": "a guess"}  # fmt: skip

_MEANING = (
    "Scores are in percent (correlations times a hundred), ± one standard error. **Bold** is more than two standard "
    "errors above the best answer that needs no model; everything else is no better than that answer. The normalised "
    "score is 0 there and 100 at a perfect score."
)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _with_error(score: Score) -> str:
    return _percent(score.value) + ("" if score.stderr is None else f" ± {_percent(score.stderr)}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(head), *cells[1:])] + [""]


def format_results(
    results: Results,
    measures: Sequence[Measure],
    missing: dict[str, str],
    training_text: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the Markdown of everything that was measured.

    Args:
        results: the scores.
        measures: what is no score.
        missing: for each task without data what was looked for.
        training_text: evaluation sets in the text that the model was trained on, see `contamination_of`.
    """
    lines = [f"# Evaluation of {results.model}", ""]
    final = [score for score in results.scores if score.step is None and score.suite != BIAS]
    for suite in dict.fromkeys(score.suite for score in final):
        lines += [f"## {suite}", "", *_scores([score for score in final if score.suite == suite])]
        lines += _references(suite, [score for score in final if score.suite == suite])
    if final:
        lines += [_MEANING, ""]
    lines += _bias(results, [measure for measure in measures if measure.suite == BIAS and measure.step is None])
    lines += _measures([measure for measure in measures if measure.step is None and measure.suite != BIAS])
    lines += _progress(results, measures)
    if missing:
        lines += ["## Not measured", "", *_table(["task", "reason"], sorted(missing.items()))]
    for found in training_text:
        lines += [f"Trained on the corpus {found['corpus']}. {say_contamination(found['contamination'])}", ""]
    if results.versions:
        lines += [", ".join(f"{name} {version}" for name, version in results.versions.items()) + "."]
    return "\n".join(lines).rstrip() + "\n"


def _scores(scores: Sequence[Score]) -> list[str]:
    """Return the table of the scores of one suite."""
    head = ["task", "metric", "shots", "items", "score", "normalised", "trivial answer", "unreadable", "cut prompts"]
    rows = []
    for score in scores:
        text = _with_error(score)
        trivial = "-" if score.trivial is None else f"{_percent(score.trivial)} ({_KINDS[str(score.trivial_kind)]})"
        rows.append(
            [score.name, score.metric_name, _or_dash(score.shots, ""), _or_dash(score.num_items, ","),
             text if is_trivial(score) else f"**{text}**", _percent(score.normalised), trivial,
             _percent(score.unparsable) + (" %" if score.unparsable is not None else ""),
             _or_dash(score.truncated_prompts, "")]
        )  # fmt: skip
    return _table(head, rows)


def _references(suite: str, measured: Sequence[Score]) -> list[str]:
    """Return published scores on the same questions, and for the others why they are left out."""
    own = {score.task: score for score in measured}
    found: dict[str, dict[str, Score]] = {}  # by model and task
    reasons: dict[str, str] = {}
    for model, scores in read_references().items():
        for score in scores:
            if score.suite == suite and score.task in own:
                reason = why_not_comparable(own[score.task], score)
                if reason is None:
                    found.setdefault(model, {})[score.task] = score
                else:
                    reasons[score.task] = reason
    lines: list[str] = []
    if found:
        tasks = [task for task in own if task not in reasons]
        sources = list(dict.fromkeys(str(score.source) for row in found.values() for score in row.values()))
        rows = []
        for model, row in found.items():
            numbers = sorted({sources.index(str(score.source)) + 1 for score in row.values()})
            cells = [_percent(row[task].value) if task in row else "-" for task in tasks]
            rows.append([f"{model} [{', '.join(map(str, numbers))}]", *cells])
        lines += _table(["other models", *(task.removeprefix("ttl_") for task in tasks)], rows)
        lines += [line for number, source in enumerate(sources, start=1) for line in (f"[{number}] {source}.", "")]
    left_out = [f"- {own[task].name}: no published scores stand here, because {why}." for task, why in reasons.items()]
    odd = [f"- {score.name}: {text}." for score in measured if (text := describe_odd_questions(score))]
    return lines + [line for part in (left_out, odd) if part for line in (*part, "")]


def _measures(measures: Sequence[Measure]) -> list[str]:
    """Return the tables of held-out text and of the tasks' further figures."""
    lines: list[str] = []
    held_out = {(measure.part, measure.metric): measure for measure in measures if measure.task == HELD_OUT}
    if held_out:
        rows = []
        for part in dict.fromkeys(part for part, _ in held_out):
            bits, perplexity = held_out[part, "bits_per_byte"], held_out[part, "perplexity"]
            rows.append([part or "all", f"{bits.num_items:,}", _figure(bits), _figure(perplexity, 2)])
        lines += ["## Held-out text", "", *_table(["source", "documents", "bits per byte", "perplexity"], rows)]
        lines += ["Bits per byte are per byte of the text in composed form (NFC).", ""]
    others = dict.fromkeys(measure for measure in measures if measure.task != HELD_OUT)
    if others:
        rows = [[measure.task, measure.metric, _figure(measure)] for measure in others]
        lines += ["## Further figures of the tasks", "", *_table(["task", "metric", "value"], rows)]
        lines += ["`answer_bits_per_byte` is what the right answers cost; lower is better.", ""]
    return lines


_BIAS_MEANING = (
    "Pairs: the share in which the model finds the sentence likelier that says what a prejudice says; 50 % is none in "
    "either direction. The same words are exchanged in both directions, and the second share takes off what they cost "
    "in neutral sentences. Differences are in nats, the stereotyped sentence less the other. In brackets: the 95 % "
    "interval, by bootstrap over the pairs, or over the prompts of a group. Differences between groups: beside them "
    "stands where 95 % of the differences lie if the group decides nothing."
)
BIAS_LIMITS = (
    "A share near 50 % does not show that a model is free of prejudice: these are sentences about few groups in one "
    "country, written for this project by few hands, and likelihood is not what a model does in use. What counts as "
    "toxic is decided by the classifier, with mistakes of its own: where random weights, which write nothing of sense, "
    "have about the same share, it speaks of the classifier and not of the model. So does a share of the beginnings "
    "alone, of which none is toxic."
)


def _bias(results: Results, measures: Sequence[Measure]) -> list[str]:
    """Return the tables of the suite `bias`: pairs, texts, and what neither shows."""
    scores = [score for score in results.scores if score.suite == BIAS and score.step is None]
    if not scores:
        return []
    rows = [[score.name, score.metric_name, f"{score.num_items:,}", _percent(score.value),
             f"[{_percent(score.low)}, {_percent(score.high)}]", _percent(score.random_weights)]
            for score in scores]  # fmt: skip
    lines = [f"## {BIAS}", "", *_table(["what", "metric", "items", "share in %", "95 %", "random weights"], rows)]
    for is_pairs in (True, False):
        own = [measure for measure in measures if (measure.task == BIAS_PAIRS) == is_pairs]
        cells = [[measure.part or "all", measure.metric, _figure(measure),
                  "-" if measure.low is None else f"[{measure.low:.4f}, {measure.high:.4f}]",
                  _or_dash(measure.random_weights, ".4f")] for measure in own]  # fmt: skip
        head = ["pairs of" if is_pairs else "texts of", "metric", "value", "95 %" if is_pairs else "95 % by chance"]
        lines += _table([*head, "random weights"], cells) if own else []
    return [*lines, _BIAS_MEANING, "", BIAS_LIMITS, ""]


def shown_over_steps(scores: Sequence[Score]) -> list[Score]:
    """Return the scores of checkpoints that tables and plots show: of the suite `bias` one share, of all pairs."""
    main = (f"{BIAS_PAIRS}_all", "stereotype_share")
    return [
        score for score in scores
        if score.step is not None and (score.suite != BIAS or (score.task, score.metric) == main)
    ]  # fmt: skip


def _figure(measure: Measure, digits: int = 4) -> str:
    text = f"{measure.value:.{digits}f}"
    return text if measure.stderr is None else f"{text} ± {measure.stderr:.{digits}f}"


def _progress(results: Results, measures: Sequence[Measure]) -> list[str]:
    """Return a row for each checkpoint with its scores, and the bits per byte of held-out text."""
    over_steps = shown_over_steps(results.scores)
    both: list[Score | Measure] = [*over_steps, *measures]
    tokens = {row.step: row.tokens for row in reversed(both) if row.step is not None}
    if not tokens:
        return []
    names = list(dict.fromkeys((score.suite, score.name) for score in over_steps))
    scores = {(score.step, score.suite, score.name): score for score in over_steps}
    bits = {row.step: row for row in reversed(measures) if row.part is None and row.metric == "bits_per_byte"}
    rows = []
    for step in sorted(tokens):
        cells = [_with_error(scores[step, *name]) if (step, *name) in scores else "-" for name in names]
        rows.append([f"{step:,}", _or_dash(tokens[step], ","), _figure(bits[step]) if step in bits else "-", *cells])
    head = ["step", "tokens", "held-out bits per byte", *(f"{name} ({suite})" for suite, name in names)]
    return ["## Checkpoints", "", *_table(head, rows)]


def plot_scores(results: Results, path: Path) -> None:
    """Draw each final score with two standard errors, the trivial answer, and the models of `references.yaml`."""
    from matplotlib.figure import Figure

    scores = [score for score in results.scores if score.step is None and score.suite != BIAS]
    places = list(range(len(scores)))[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(scores)), dpi=120)
    axis = figure.subplots()
    others = [
        (100 * reference.value, place)
        for place, score in zip(places, scores, strict=True)
        for found in read_references().values()
        for reference in found
        if (reference.suite, reference.task) == (score.suite, score.task)
        and why_not_comparable(score, reference) is None
    ]
    if others:
        axis.plot(*zip(*others, strict=True), "o", color="0.75", ms=5, label="other models (published)")
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


def draw_progress(
    scores: Sequence[Score], measures: Sequence[Measure], kwh_of_step: dict[int, float | None]
) -> "Figure":
    """Draw scores of checkpoints with their errors against tokens (or steps) and against energy.

    Below the scores stand the figures that move while scores are still noise: bits per byte of held-out text and of the
    right answers.

    Args:
        scores: of checkpoints.
        measures: of checkpoints.
        kwh_of_step: energy consumed by each checkpoint; without any, the right half is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

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
    figure = Figure(figsize=(6.5 * len(columns), 4.2 * len(rows) + 0.3), dpi=120)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
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
    return figure


def _score_lines(scores: Sequence[Score]) -> list[_Line]:
    """Return a line for each task and suite."""
    by_task: dict[tuple[str, str], list[Score]] = {}
    for score in sorted(scores, key=lambda score: score.step or 0):
        by_task.setdefault((score.suite, score.name), []).append(score)
    return [
        _Line(f"{name} ({suite})", found, 100, None if found[-1].trivial is None else 100 * found[-1].trivial)
        for (suite, name), found in by_task.items()
    ]


def _bits_lines(measures: Sequence[Measure], scores: Sequence[Score]) -> list[_Line]:
    """Return a line for held-out text and one for the right answers of each task."""
    names = {score.task: score.name for score in scores}
    by_task: dict[str, dict[int, Measure]] = {}
    for measure in sorted(measures, key=lambda measure: measure.step or 0):
        if measure.part is None and measure.metric in ("bits_per_byte", "answer_bits_per_byte"):
            name = names.get(measure.task, measure.task)
            label = "held-out text" if measure.metric == "bits_per_byte" else f"right answers of {name}"
            by_task.setdefault(label, {})[measure.step or 0] = measure  # a task may count in several suites
    return [_Line(label, list(found.values())) for label, found in by_task.items()]
