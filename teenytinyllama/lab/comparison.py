"""What the runs of a lab say of its arms: means over seeds, best learning rates, tokens to the baseline, IsoFLOP.

A lab's `runs.jsonl` has one JSON object a run. Runs of one `arm` differ in size, tokens and seed only; arms of one
`group` differ in what the group sweeps, such as the learning rate.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from ..checks import InputError, ensure
from ..stage_folder import RUNS_NAME, read_jsonl_records

DONE, DIVERGED = "done", "diverged"
_FIX = "Give the output_dir of a `ttl lab`."
# Runs of one IsoFLOP curve differ by no more than this factor in FLOPs: sizes and whole steps seldom give equal ones.
_EQUAL_FLOPS = 1.2
_DRAWS = 1000
CONFIDENCE = 0.90  # of every interval of a lab


@dataclass(frozen=True)
class Outcome:
    """One run of a lab, as its row says.

    Attributes:
        name: unique in the lab.
        group: what the arm is a member of: arms that differ in a swept key, such as the learning rate.
        arm: what distinguishes recipes; runs that differ in size, tokens or seed share it.
        size: label of the model's size.
        budget: tokens that were asked for; those of all seeds are equal.
        seed: of weights and order of rows.
        state: done, diverged, failed or stopped.
        is_check: a longer run to compare a prediction with; no law is fitted to it.
        tokens: trained on.
        tokens_per_step: of a step.
        num_parameters: all parameters.
        num_non_embedding: without the input embedding and the head.
        unique_tokens: different tokens in the rows.
        learning_rate: peak.
        bits_per_byte: of all held-out documents; None unless done.
        loss: nats per token of the same.
        flops: of the whole training, by 6 N + 12 L h T a token.
        seconds: of the training steps.
        kwh: energy; None: not measured alone.
        usd: money; None: not known.
        reason: why it diverged or failed.
    """

    name: str
    group: str
    arm: str
    size: str
    budget: int
    seed: int
    state: str
    is_check: bool = False
    tokens: int | None = None
    tokens_per_step: int | None = None
    num_parameters: int | None = None
    num_non_embedding: int | None = None
    unique_tokens: int | None = None
    learning_rate: float | None = None
    bits_per_byte: float | None = None
    loss: float | None = None
    flops: float | None = None
    seconds: float | None = None
    kwh: float | None = None
    usd: float | None = None
    reason: str | None = None


_NAMES = [item.name for item in fields(Outcome)]
# What a run that is done must say, so that tables and laws can be made of it.
_NEEDED = ("tokens", "num_parameters", "num_non_embedding", "bits_per_byte", "loss", "flops")
_IDENTITY = ("name", "group", "arm", "size", "budget", "seed", "state")  # of every run


def read_outcomes(folder: Path, key: str = "output_dir") -> list[Outcome]:
    """Return the runs of a lab in the order of their rows; of several rows of a name the last counts.

    Args:
        folder: of the lab.
        key: the config key that names it.

    Raises:
        InputError: there is no such file, or a row lacks what it must say.
    """
    path = folder / RUNS_NAME
    ensure(path.is_file(), f"{key}={folder}: has no {RUNS_NAME}, so it is no lab that has run. {_FIX}")
    return [make_outcome(row) for row in read_rows(folder).values()]


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the runs that have ended, by name, of several rows of a run the last; none without a file.

    Raises:
        InputError: a row lacks what it must say.
    """
    return {row["name"]: row for row in read_jsonl_records(folder / RUNS_NAME, check=make_outcome, fix=_FIX)}


def make_outcome(row: dict[str, Any]) -> Outcome:
    """Return a row of `runs.jsonl` as an outcome.

    Raises:
        KeyError: it lacks a value that its state needs.
    """
    missing = [name for name in _IDENTITY if name not in row]
    missing += [name for name in _NEEDED if row["state"] == DONE and row.get(name) is None] if not missing else []
    if missing:
        raise KeyError(missing[0])
    values = {name: row[name] for name in _NAMES if row.get(name) is not None}
    return Outcome(**{"learning_rate": row.get("values", {}).get("learning_rate"), **values})


@dataclass(frozen=True)
class Cell:
    """All seeds of one arm at one size and budget.

    Attributes:
        runs: of the cell; those that are done first.
        scores: bits per byte of those that are done.
    """

    runs: tuple[Outcome, ...]

    @property
    def first(self) -> Outcome:
        """Return a run that stands for what all of them share."""
        return self.runs[0]

    @property
    def done(self) -> list[Outcome]:
        """Return the runs that ended."""
        return [run for run in self.runs if run.state == DONE]

    @property
    def scores(self) -> list[float]:
        """Return the bits per byte of the runs that ended."""
        return [run.bits_per_byte for run in self.done if run.bits_per_byte is not None]

    @property
    def score(self) -> float:
        """Return the mean of the bits per byte; infinite if a run has not ended well."""
        return fmean(self.scores) if self.scores and len(self.scores) == len(self.runs) else math.inf

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation of the bits per byte over seeds; None for a single one."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    def mean(self, name: str) -> float | None:
        """Return the mean of a figure over the runs that know it."""
        known = [value for run in self.done if (value := getattr(run, name)) is not None]
        return fmean(known) if known else None


def make_cells(outcomes: Iterable[Outcome]) -> list[Cell]:
    """Return the cells of arm, size and budget, by group, size, budget and learning rate; checks are left out."""
    found: dict[tuple[str, str, int], list[Outcome]] = defaultdict(list)
    for run in outcomes:
        if not run.is_check and run.state != "stopped":
            found[run.arm, run.size, run.budget].append(run)
    sizes = _size_order(outcomes)
    cells = [Cell(tuple(sorted(runs, key=lambda run: run.state != DONE))) for runs in found.values()]
    return sorted(cells, key=lambda cell: (cell.first.group, sizes[cell.first.size], cell.first.budget,
                                           cell.first.learning_rate or 0.0, cell.first.arm))  # fmt: skip


def _size_order(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the place of each size by its parameters; a size of which no run ended stands at the end."""
    parameters: dict[str, float] = {}
    for run in outcomes:
        known = run.num_parameters or math.inf
        parameters[run.size] = min(parameters.get(run.size, math.inf), known)
    return {size: place for place, size in enumerate(sorted(parameters, key=lambda size: parameters[size]))}


@dataclass(frozen=True)
class Sweep:
    """The learning rates that a group tried at one size and budget.

    Attributes:
        cells: by learning rate.
        best: the one with the lowest mean; None: none ended well.
        at_edge: the best rate is the smallest or the largest that was tried, so a better one may lie beyond.
    """

    cells: tuple[Cell, ...]
    best: Cell | None
    at_edge: bool


def find_sweeps(cells: Sequence[Cell]) -> list[Sweep]:
    """Return the sweeps of each group, size and budget with at least two learning rates."""
    found: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.first.learning_rate is not None:
            found[cell.first.group, cell.first.size, cell.first.budget].append(cell)
    sweeps = []
    for members in found.values():
        rates = sorted({cell.first.learning_rate or 0.0 for cell in members})
        best = min(members, key=lambda cell: cell.score)
        known = best if math.isfinite(best.score) else None
        at_edge = known is not None and known.first.learning_rate in (rates[0], rates[-1])
        if len(rates) > 1:
            sweeps.append(Sweep(tuple(members), known, at_edge))
    return sweeps


def best_arm(outcomes: Iterable[Outcome]) -> str | None:
    """Return the arm with the lowest mean of bits per byte at one size and budget; None where none is done.

    An arm of which a run has diverged is not it: who takes it may be unlucky too.
    """
    best = min(make_cells(list(outcomes)), key=lambda cell: cell.score, default=None)
    return best.first.arm if best is not None and math.isfinite(best.score) else None


def best_cells(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return for each group its best arm at each size and budget, where one ended well."""
    best: dict[tuple[str, str, int], Cell] = {}
    for cell in cells:
        place = (cell.first.group, cell.first.size, cell.first.budget)
        if math.isfinite(cell.score) and (place not in best or cell.score < best[place].score):
            best[place] = cell
    groups: dict[str, list[Cell]] = defaultdict(list)
    for (group, _, _), cell in best.items():
        groups[group].append(cell)
    return dict(groups)


@dataclass(frozen=True)
class TokensToBaseline:
    """How many tokens a group needs for the best score of the baseline, as a share of the baseline's tokens.

    Attributes:
        group: of arms.
        size: of the models.
        target: the baseline's lowest mean of bits per byte at that size.
        baseline_tokens: of the runs with that score.
        ratio: tokens of the group over those; None: beyond its runs, see `bound`.
        has_interval: whether any cell has two seeds, so that there is an interval.
        low: lower end of the interval of 90 %; None: below the fewest tokens of the runs.
        high: upper end; None: beyond their most tokens.
        bound: a text such as `less than 0.25`, where the group's runs do not enclose the target.
    """

    group: str
    size: str
    target: float
    baseline_tokens: float
    ratio: float | None
    has_interval: bool
    low: float | None
    high: float | None
    bound: str | None


def tokens_to_baseline(cells: Sequence[Cell], baseline: str, seed: int = 0) -> list[TokensToBaseline]:
    """Return for each size and group how many tokens it needs to reach the baseline's best score.

    Between runs of several budgets, each with its whole schedule, the score is taken as linear in the logarithm of
    tokens; points of a run on its way, where the learning rate is still high, are not used. The interval is a bootstrap
    over seeds: means of cells are drawn again from the deviations of all cells with several seeds.

    Args:
        cells: of the lab.
        baseline: its group.
        seed: of the bootstrap.
    """
    groups = best_cells(cells)
    rng = np.random.default_rng(seed)
    spread = _pooled_residuals(cells)
    found = []
    for size in dict.fromkeys(cell.first.size for cell in cells):
        base = [cell for cell in groups.get(baseline, []) if cell.first.size == size]
        if not base:
            continue
        goal = min(base, key=lambda cell: cell.score)
        for group, members in groups.items():
            path = sorted((cell for cell in members if cell.first.size == size), key=_tokens_of)
            if group != baseline and len(path) > 1:
                found.append(_reach(group, path, goal, spread, rng))
    return found


def _tokens_of(cell: Cell) -> float:
    return cell.mean("tokens") or 0.0


def _pooled_residuals(cells: Sequence[Cell]) -> list[float]:
    """Return how runs deviate from the mean of their cell, made as large as they are about the true mean."""
    residuals = []
    for cell in cells:
        count = len(cell.scores)
        if count > 1:
            mean = fmean(cell.scores)
            residuals += [(score - mean) * math.sqrt(count / (count - 1)) for score in cell.scores]
    return residuals


def _reach(group: str, path: list[Cell], goal: Cell, spread: list[float], rng: np.random.Generator) -> TokensToBaseline:
    tokens = np.array([_tokens_of(cell) for cell in path])
    scores = np.array([cell.score for cell in path])
    base = _tokens_of(goal)
    ratio = _crossing(tokens, scores, goal.score) / base
    low = high = None
    if spread:
        counts = [len(cell.scores) for cell in (*path, goal)]
        shifts = np.array([[fmean(rng.choice(spread, count)) for count in counts] for _ in range(_DRAWS)])
        drawn = [_crossing(tokens, scores + shift[:-1], goal.score + shift[-1]) / base for shift in shifts]
        ends = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="nearest")
        low, high = (float(end) if math.isfinite(end) and end > 0 else None for end in ends)
    bound = None
    if ratio == 0:
        bound = f"less than {tokens[0] / base:.2f}"
    elif math.isinf(ratio):
        bound = f"more than {tokens[-1] / base:.2f}"
    first = path[0].first
    return TokensToBaseline(
        group, first.size, goal.score, base, None if bound else ratio, bool(spread), low, high, bound
    )


def _crossing(tokens: Any, scores: Any, target: float) -> float:
    """Return the tokens at which scores first reach a target, linear in log tokens; 0: before, inf: never."""
    if scores[0] <= target:
        return 0.0
    for place in range(1, len(tokens)):
        if scores[place] <= target:
            share = (scores[place - 1] - target) / (scores[place - 1] - scores[place])
            return float(tokens[place - 1] * (tokens[place] / tokens[place - 1]) ** share)
    return math.inf


@dataclass(frozen=True)
class IsoFlop:
    """The best size for one amount of compute, by a parabola in the logarithm of the parameters.

    Attributes:
        group: of arms.
        flops: mean of the runs.
        cells: of the curve, by size.
        coefficients: of bits per byte = c0 x^2 + c1 x + c2 for x = log of all parameters.
        num_parameters: at the lowest point; None: the parabola has none within the sizes of the runs.
        tokens: there, by the compute.
        bits_per_byte: there.
    """

    group: str
    flops: float
    cells: tuple[Cell, ...]
    coefficients: tuple[float, float, float]
    num_parameters: float | None
    tokens: float | None
    bits_per_byte: float | None


def find_isoflops(cells: Sequence[Cell]) -> list[IsoFlop]:
    """Return the IsoFLOP curves: of each group the runs of at least three sizes that share their FLOPs within a fifth.

    Source: approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556).
    """
    curves = []
    for group, members in best_cells(cells).items():
        left = sorted(members, key=lambda cell: cell.mean("flops") or 0.0)
        while left:
            most = _EQUAL_FLOPS * (left[0].mean("flops") or 0.0)
            near = [cell for cell in left if (cell.mean("flops") or 0.0) <= most]
            one_each = {cell.first.size: cell for cell in near}  # of several budgets of a size the longest
            if len(one_each) >= 3:
                curves.append(_parabola(group, list(one_each.values())))
                left = left[len(near) :]
            else:
                left = left[1:]
    return curves


def _parabola(group: str, near: list[Cell]) -> IsoFlop:
    near = sorted(near, key=lambda cell: cell.mean("num_parameters") or 0.0)
    x = np.log([cell.mean("num_parameters") or 1.0 for cell in near])
    centre = float(x.mean())
    curve, slope, level = (float(value) for value in np.polyfit(x - centre, [cell.score for cell in near], 2))
    flops = fmean(cell.mean("flops") or 0.0 for cell in near)
    whole = (curve, slope - 2 * curve * centre, level - slope * centre + curve * centre**2)
    best = centre - slope / (2 * curve) if curve > 0 else math.inf
    if not x[0] <= best <= x[-1]:
        return IsoFlop(group, flops, tuple(near), whole, None, None, None)
    tokens = float(np.exp(np.interp(best, x, np.log([_tokens_of(cell) for cell in near]))))
    return IsoFlop(group, flops, tuple(near), whole, math.exp(best), tokens, level - slope**2 / (4 * curve))


def choose_baseline(cells: Sequence[Cell], baseline: str | None) -> str:
    """Return the group that others are compared with; the first one of the lab by default.

    Raises:
        InputError: the lab has no such group.
    """
    groups = list(dict.fromkeys(cell.first.group for cell in cells))
    if baseline is None:
        return groups[0]
    if baseline not in groups:
        raise InputError(f"baseline={baseline}: must be an arm of the lab: {', '.join(groups)}.")
    return baseline
