"""Results as Markdown: scores with their errors, trivial answers and reference models; what could not be measured."""

from collections.abc import Sequence

from .measures import Measure
from .references import read_references, why_not_comparable
from .results import Results, Score, describe_odd_questions, is_trivial

_KINDS = {"constant": "one answer to everything", "majority": "the most frequent answer", "length": "chosen by length",
          "chance": "a guess"}  # fmt: skip

_MEANING = (
    "Scores are in percent (correlations times a hundred), ± one standard error. **Bold** is more than two standard "
    "errors above the best answer that needs no model; everything else is no better than that answer. The normalised "
    "score is 0 there and 100 at a perfect score."
)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _with_error(value: float | None, stderr: float | None) -> str:
    return _percent(value) if stderr is None else f"{_percent(value)} ± {_percent(stderr)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, *rows]]
    return ["| " + " | ".join(row) + " |" for row in (cells[0], ["---"] * len(head), *cells[1:])] + [""]


def format_results(results: Results, measures: Sequence[Measure], missing: dict[str, str]) -> str:
    """Return the Markdown of everything that was measured.

    Args:
        results: the scores.
        measures: what is no score.
        missing: for each task without data what was looked for.
    """
    lines = [f"# Evaluation of {results.model}", ""]
    final = [score for score in results.scores if score.step is None]
    for suite in dict.fromkeys(score.suite for score in final):
        lines += [f"## {suite}", "", *_scores([score for score in final if score.suite == suite])]
        lines += _references(suite, [score for score in final if score.suite == suite])
    if final:
        lines += [_MEANING, ""]
    lines += _measures([measure for measure in measures if measure.step is None])
    lines += _progress(results, measures)
    if missing:
        lines += ["## Not measured", "", *_table(["task", "reason"], sorted(missing.items()))]
    if results.versions:
        lines += [", ".join(f"{name} {version}" for name, version in results.versions.items()) + "."]
    return "\n".join(lines).rstrip() + "\n"


def _scores(scores: Sequence[Score]) -> list[str]:
    head = ["task", "metric", "shots", "items", "score", "normalised", "trivial answer", "unreadable", "cut prompts"]
    rows = []
    for score in scores:
        text = _with_error(score.value, score.stderr)
        trivial = "-" if score.trivial is None else f"{_percent(score.trivial)} ({_KINDS[str(score.trivial_kind)]})"
        rows.append(
            [score.name, score.metric_name, "-" if score.shots is None else str(score.shots),
             "-" if score.num_items is None else f"{score.num_items:,}",
             text if is_trivial(score) else f"**{text}**", _percent(score.normalised), trivial,
             "-" if score.unparsable is None else f"{_percent(score.unparsable)} %",
             "-" if score.truncated_prompts is None else str(score.truncated_prompts)]
        )  # fmt: skip
    return _table(head, rows)


def _references(suite: str, measured: Sequence[Score]) -> list[str]:
    """Return published scores on the same questions, and for the others why they are left out."""
    rows, sources, reasons = [], [], {}
    own = {score.task: score for score in measured}
    for model, scores in read_references().items():
        found = {}
        for score in scores:
            if score.suite == suite and score.task in own:
                reason = why_not_comparable(own[score.task], score)
                if reason is None:
                    found[score.task] = score
                else:
                    reasons[score.task] = reason
        if found:
            tasks = [task for task in own if task not in reasons]
            sources += [str(score.source) for score in found.values()]
            numbers = [list(dict.fromkeys(sources)).index(str(score.source)) + 1 for score in found.values()]
            label = f"{model} [{', '.join(map(str, sorted(set(numbers))))}]"
            rows.append([label, *(_percent(found[task].value) if task in found else "-" for task in tasks)])
    left_out = [
        f"- {own[task].name}: no published scores stand here, because {reason}." for task, reason in reasons.items()
    ]
    left_out += [""] if left_out else []
    odd = [f"- {score.name}: {describe_odd_questions(score)}." for score in measured if describe_odd_questions(score)]
    left_out += [*odd, ""] if odd else []
    if not rows:
        return left_out
    tasks = [task for task in own if task not in reasons]
    notes = [f"[{number}] {source}." for number, source in enumerate(dict.fromkeys(sources), start=1)]
    head = ["other models", *(task.removeprefix("ttl_") for task in tasks)]
    return [*_table(head, rows), *(line for note in notes for line in (note, "")), *left_out]


def _measures(measures: Sequence[Measure]) -> list[str]:
    lines: list[str] = []
    held_out = [measure for measure in measures if measure.task == "held_out"]
    if held_out:
        parts = list(dict.fromkeys(measure.part for measure in held_out))
        found = {(measure.part, measure.metric): measure for measure in held_out}
        rows = []
        for part in parts:
            bits, perplexity = found[part, "bits_per_byte"], found[part, "perplexity"]
            rows.append([part or "all", f"{bits.num_items:,}", _figure(bits), _figure(perplexity, 2)])
        lines += ["## Held-out text", "", *_table(["source", "documents", "bits per byte", "perplexity"], rows)]
        lines += ["Bits per byte are per byte of the text in composed form (NFC).", ""]
    others = [measure for measure in measures if measure.task != "held_out"]
    if others:
        rows = [[measure.task, measure.metric, _figure(measure)] for measure in dict.fromkeys(others)]
        lines += ["## Further figures of the tasks", "", *_table(["task", "metric", "value"], rows)]
        lines += ["`answer_bits_per_byte` is what the right answers cost; lower is better.", ""]
    return lines


def _figure(measure: Measure, digits: int = 4) -> str:
    text = f"{measure.value:.{digits}f}"
    return text if measure.stderr is None else f"{text} ± {measure.stderr:.{digits}f}"


def _progress(results: Results, measures: Sequence[Measure]) -> list[str]:
    """Return a row for each checkpoint with its scores, and the bits per byte of held-out text."""
    both: list[Score | Measure] = [*results.scores, *measures]
    steps = sorted({row.step for row in both if row.step is not None})
    if not steps:
        return []
    names = list(dict.fromkeys((score.suite, score.name) for score in results.scores if score.step is not None))
    rows = []
    for step in steps:
        found = {(score.suite, score.name): score for score in results.scores if score.step == step}
        tokens = next((row.tokens for row in both if row.step == step), None)
        bits = next((row for row in measures if row.step == step and row.part is None
                     and row.metric == "bits_per_byte"), None)  # fmt: skip
        cells = [_with_error(found[name].value, found[name].stderr) if name in found else "-" for name in names]
        rows.append(
            [f"{step:,}", "-" if tokens is None else f"{tokens:,}", "-" if bits is None else _figure(bits), *cells]
        )
    head = ["step", "tokens", "held-out bits per byte", *(f"{name} ({suite})" for suite, name in names)]
    return ["## Checkpoints", "", *_table(head, rows)]
