"""The report of a lab: `table.md` and `table.csv`, `law.json` and the plots, all made from `runs.jsonl` again."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..checks import InputError, counted, ensure
from ..disk import replace_file
from ..planning.table import markdown_table, short
from ..stage_folder import write_json
from .comparison import (
    DONE,
    Cell,
    IsoFlop,
    Outcome,
    Sweep,
    TokensToBaseline,
    best_cells,
    choose_baseline,
    find_isoflops,
    find_sweeps,
    make_cells,
    read_outcomes,
    tokens_to_baseline,
)
from .plots import draw_plots
from .scaling import FORM, LAW_NAME, ROUGH_NOISE, LabLaw, fit_law, rough_law

TABLE_NAME, CSV_NAME = "table.md", "table.csv"
_LONGER = 10  # times the longest run, for which the report predicts a score
_CSV_HEAD = ("arm", "group", "size", "num_parameters", "num_non_embedding", "tokens", "learning_rate", "runs", "done",
             "bits_per_byte", "deviation", "flops", "seconds", "kwh", "usd", "note")  # fmt: skip


@dataclass(frozen=True)
class LabReport:
    """What the runs of a lab say together.

    Attributes:
        outcomes: its runs.
        cells: of arm, size and budget.
        baseline: the group that others are compared with.
        sweeps: of the learning rate.
        distances: tokens to the baseline.
        isoflops: curves of equal compute.
        laws: by arm.
        refused: why an arm has no law.
    """

    outcomes: list[Outcome]
    cells: list[Cell]
    baseline: str
    sweeps: list[Sweep]
    distances: list[TokensToBaseline]
    isoflops: list[IsoFlop]
    laws: dict[str, LabLaw]
    refused: dict[str, str]


def write_report(folder: Path, baseline: str | None = None) -> None:
    """Write `table.md`, `table.csv`, `law.json` and the plots of a lab into its folder.

    Args:
        folder: of the lab, with `runs.jsonl`.
        baseline: arm that others are compared with; None: the first one.

    Raises:
        InputError: no lab, none of its runs has ended, or no such arm.
    """
    report = make_report(read_outcomes(folder), baseline, folder)
    _write_laws(folder, report.laws, report.refused)
    replace_file(folder / CSV_NAME, _csv(report.cells))
    replace_file(folder / TABLE_NAME, "\n".join(render_report(report)) + "\n")
    checks = [run for run in report.outcomes if run.is_check and run.state == DONE]
    draw_plots(folder, report.cells, report.sweeps, report.distances, report.isoflops, report.laws, checks)


def make_report(outcomes: list[Outcome], baseline: str | None, folder: Path) -> LabReport:
    """Return what the runs of a lab say together; see `write_report`."""
    cells = make_cells(outcomes)
    ensure(
        any(cell.done for cell in cells), f"output_dir={folder}: no run is done, so there is no table. Run `ttl lab`."
    )
    baseline = choose_baseline(cells, baseline)
    laws, refused = _fit_laws(cells)
    distances = tokens_to_baseline(cells, baseline)
    return LabReport(outcomes, cells, baseline, find_sweeps(cells), distances, find_isoflops(cells), laws, refused)


def _fit_laws(cells: Sequence[Cell]) -> tuple[dict[str, LabLaw], dict[str, str]]:
    """Return the law of each arm of a lab, and why the other arms have none."""
    laws, refused = {}, {}
    for arm, members in best_cells(cells).items():
        try:
            laws[arm] = fit_law(arm, members)
        except InputError as error:
            refused[arm] = str(error)
    return laws, refused


def _write_laws(folder: Path, laws: dict[str, LabLaw], refused: dict[str, str]) -> None:
    """Write `law.json`: the laws by arm, why other arms have none, and the arm whose law a plan uses.

    That is the arm which its law expects to score best at the lab's largest size and budget.
    """
    chosen = None
    if laws:
        parameters = max(law.parameters[1] for law in laws.values())
        tokens = max(law.tokens[1] for law in laws.values())
        chosen = min(laws, key=lambda arm: laws[arm].bits_per_byte(parameters, tokens))
    content = {"arm": chosen, "unit": "bits per byte", "form": FORM,
               "laws": {arm: asdict(law) for arm, law in laws.items()}, "refused": refused}  # fmt: skip
    write_json(folder / LAW_NAME, content)


def render_report(report: LabReport) -> list[str]:
    """Return the lines of `table.md`."""
    states = Counter(run.state for run in report.outcomes)
    parts = [
        ["# Lab", "", ", ".join(f"{number} {state}" for state, number in states.most_common()) + "."],
        ["## Runs", "", "Mean and standard deviation over seeds of the bits per byte of all held-out documents. FLOPs, "
         "seconds, kWh and USD are of one run; FLOPs by 6 N + 12 L h T a token.", "", *_runs_table(report.cells)],
        _sweeps_part(report.sweeps),
        _baseline_part(report),
        _isoflops_part(report.isoflops),
        _laws_part(report),
        _checks_part(report),
    ]  # fmt: skip
    return [line for part in parts if part for line in (*part, "")][:-1]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _note(cell: Cell) -> str:
    """Return what became of the runs of a cell that are not done."""
    left = [run for run in cell.runs if run.state != DONE]
    states = Counter(run.state for run in left)
    reason = next((run.reason for run in left if run.reason), "")
    text = ", ".join(f"{number} {state}" for state, number in states.items())
    return f"{text}: {' '.join(reason.split())[:160]}" if reason else text


def _runs_table(cells: Sequence[Cell]) -> list[str]:
    head = ["arm", "size", "tokens", "runs", "bits per byte", "deviation", "FLOPs", "seconds", "kWh", "USD", ""]
    rows = []
    for cell in cells:
        scores, flops = cell.scores, cell.mean("flops")
        mean = sum(scores) / len(scores) if scores else None
        rows.append([cell.first.arm, cell.first.size, short(cell.mean("tokens") or cell.first.budget),
                     f"{len(scores)}", _number(mean, 4), _number(cell.deviation, 4),
                     "" if flops is None else f"{flops:.2e}", _number(cell.mean("seconds"), 0),
                     _number(cell.mean("kwh"), 5), _number(cell.mean("usd"), 3), _note(cell)])  # fmt: skip
    return markdown_table(head, rows)


def _csv(cells: Sequence[Cell]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for cell in cells:
        first, scores = cell.first, cell.scores
        mean = sum(scores) / len(scores) if scores else None
        writer.writerow([first.arm, first.group, first.size, first.num_parameters, first.num_non_embedding,
                         first.tokens or first.budget, first.learning_rate, len(cell.runs), len(scores), mean,
                         cell.deviation, *(cell.mean(name) for name in ("flops", "seconds", "kwh", "usd")),
                         _note(cell)])  # fmt: skip
    return text.getvalue()


def _sweeps_part(sweeps: Sequence[Sweep]) -> list[str]:
    if not sweeps:
        return []
    rows = []
    for sweep in sweeps:
        first = sweep.cells[0].first
        tried = ", ".join(f"{rate:g}" for rate in sorted({cell.first.learning_rate or 0 for cell in sweep.cells}))
        best, score, note = "none", "", "no run ended well"
        if sweep.best is not None:
            best, score = f"{sweep.best.first.learning_rate:g}", f"{sweep.best.score:.4f}"
            note = "at the edge: the sweep is too narrow, a better rate may lie beyond" if sweep.at_edge else ""
        rows.append([first.group, first.size, short(first.budget), best, score, tried, note])
    return ["## Best learning rates", "",
            *markdown_table(["arm", "size", "tokens", "best", "bits per byte", "tried", ""], rows)]  # fmt: skip


def _baseline_part(report: LabReport) -> list[str]:
    if not report.distances:
        return []
    rows = []
    for found in report.distances:
        ratio = found.bound if found.ratio is None else f"{found.ratio:.2f}"
        rows.append([found.group, found.size, f"{found.target:.4f}", short(found.baseline_tokens), ratio or "",
                     _interval(found)])  # fmt: skip
    return [
        f"## Tokens needed to reach {report.baseline}", "",
        "Tokens as a share of those with which the baseline reached its best score. Between runs of several budgets, "
        "each with its whole schedule, scores are taken as linear in the logarithm of tokens; points of a run on its "
        "way are not used. The interval of 90 % is a bootstrap over seeds.", "",
        *markdown_table(["arm", "size", "baseline's bits per byte", "its tokens", "share", "interval"], rows),
    ]  # fmt: skip


def _interval(found: TokensToBaseline) -> str:
    if not found.has_interval:
        return "unknown: no arm has two seeds"
    low = "below its runs" if found.low is None else f"{found.low:.2f}"
    high = "beyond its runs" if found.high is None else f"{found.high:.2f}"
    return low if low == high else f"{low} to {high}"


def _isoflops_part(curves: Sequence[IsoFlop]) -> list[str]:
    if not curves:
        return []
    rows = []
    for curve in curves:
        sizes = ", ".join(cell.first.size for cell in curve.cells)
        if curve.num_parameters is None or curve.tokens is None:
            lowest = min(curve.cells, key=lambda cell: cell.score).first.size
            best = ["not within the sizes", "", f"best of the runs: {lowest}"]
        else:
            best = [short(curve.num_parameters), short(curve.tokens), f"{curve.bits_per_byte:.4f}"]
        rows.append([curve.group, f"{curve.flops:.2e}", sizes, *best])
    return ["## Best size for equal compute", "", "The lowest point of a parabola in the logarithm of all parameters.",
            "", *markdown_table(["arm", "FLOPs", "sizes", "parameters", "tokens", "bits per byte"], rows)]  # fmt: skip


def _laws_part(report: LabReport) -> list[str]:
    lines = ["## Scaling law", ""]
    if report.laws:
        lines += [f"{FORM}, in bits per byte (with g = 1 it is E + A / N^a + B / D^b); in brackets the interval "
                  "of 90 % of each constant. The last column is what the law expects of the largest model trained for "
                  f"{_LONGER} times the most tokens that it had.", ""]  # fmt: skip
        rows = []
        for arm, law in report.laws.items():
            ends = np.quantile(np.array(law.draws), [0.05, 0.95], axis=0).T
            values = (
                law.irreducible,
                law.size_scale,
                law.data_scale,
                law.size_exponent,
                law.data_exponent,
                law.coupling,
            )
            found = law.predict(law.parameters[1], _LONGER * law.tokens[1])
            rows.append([arm, f"{len(law.runs)}",
                         *(f"{value:.3g} ({low:.3g} to {high:.3g})" for value, (low, high)
                           in zip(values, ends, strict=False)), f"{100 * law.noise:.2f} %",
                         f"{found.bits_per_byte:.3f} ({found.low:.3f} to {found.high:.3f})"])  # fmt: skip
        lines += markdown_table(
            ["arm", "runs", "E", "A", "B", "a", "b", "g", "noise", f"{_LONGER} times the tokens"], rows
        )
        lines += ["", *_counts(report.laws), *_left_out(report.laws)]
    lines += [f"- No law: {reason}" for reason in report.refused.values()]
    return lines


def _counts(laws: dict[str, LabLaw]) -> list[str]:
    """Return how well each law fits with either count of parameters, and whether it knows what size is worth."""
    lines = []
    for arm, law in laws.items():
        lines.append(f"- {arm}: residuals of {100 * law.misfit_all:.2f} % with all parameters as N, "
                     f"{100 * law.misfit_non_embedding:.2f} % without the input embedding and the head.")  # fmt: skip
        if law.noise > ROUGH_NOISE:
            lines.append(f"- {arm}: {rough_law(law.noise)}")
        small, large = (law.bits_per_byte(parameters, law.tokens[1]) for parameters in law.parameters)
        if small - large < law.noise * large:
            lines.append(f"- {arm}: its larger models did not score better by more than noise, so its law knows "
                         "nothing of size. Give more tokens, or sizes further apart.")  # fmt: skip
    return lines


def _left_out(laws: dict[str, LabLaw]) -> list[str]:
    return [
        f"- {arm}: {counted(len(law.left_out), 'run')} left out, such as {name}: {reason}."
        for arm, law in laws.items()
        for name, reason in list(law.left_out.items())[:1]
    ]


def _checks_part(report: LabReport) -> list[str]:
    """Return the longer runs beside what the law of their arm, fitted without them, expects."""
    rows = []
    for run in report.outcomes:
        law = report.laws.get(run.group)
        if run.is_check and law and run.bits_per_byte is not None and run.num_parameters and run.tokens:
            found = law.predict(run.num_parameters, run.tokens, run.unique_tokens)
            is_inside = found.low <= run.bits_per_byte <= found.high
            off = run.bits_per_byte - found.bits_per_byte
            rows.append([run.arm, run.size, short(run.tokens), f"{found.times_tokens:.1f}",
                         f"{found.bits_per_byte:.4f} ({found.low:.4f} to {found.high:.4f})",
                         f"{run.bits_per_byte:.4f}", f"{off:+.4f}", "inside" if is_inside else "outside"])  # fmt: skip
    if not rows:
        return []
    head = ["arm", "size", "tokens", "times the longest", "expected", "measured", "difference", ""]
    return ["## The law checked", "", "Runs that the law was not fitted to.", "", *markdown_table(head, rows)]
