"""Plots of a lab: scores against tokens with the laws, IsoFLOP curves, learning rates, tokens to the baseline."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparison import Cell, IsoFlop, Outcome, Sweep, TokensToBaseline, best_cells
from .scaling import LabLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOKENS_PLOT, RATES_PLOT, ISOFLOP_PLOT, BASELINE_PLOT = "tokens.png", "rates.png", "isoflop.png", "baseline.png"
_MARKERS = "osD^vP*X"
_BEYOND = 10  # times the longest run, up to which laws are drawn


def draw_plots(
    folder: Path,
    cells: Sequence[Cell],
    sweeps: Sequence[Sweep],
    distances: Sequence[TokensToBaseline],
    isoflops: Sequence[IsoFlop],
    laws: dict[str, LabLaw],
    checks: Sequence[Outcome],
) -> None:
    """Draw the plots for which a lab has runs into its folder; a plot of former runs that it has no more is deleted.

    Args:
        folder: of the lab.
        cells: of its runs.
        sweeps: of the learning rate.
        distances: tokens to the baseline.
        isoflops: curves of equal compute.
        laws: by arm.
        checks: longer runs that no law was fitted to.
    """
    groups = best_cells(cells)
    colours = {group: f"C{place % 10}" for place, group in enumerate(dict.fromkeys(cell.first.group for cell in cells))}
    sizes = list(dict.fromkeys(cell.first.size for cell in sorted(cells, key=_size)))
    markers = {size: _MARKERS[place % len(_MARKERS)] for place, size in enumerate(sizes)}
    plots: dict[str, tuple[object, Callable[[], Any]]] = {
        TOKENS_PLOT: (groups, lambda: draw_tokens(groups, laws, colours, markers, checks)),
        RATES_PLOT: (sweeps, lambda: draw_rates(sweeps, colours)),
        ISOFLOP_PLOT: (isoflops, lambda: draw_isoflops(isoflops, colours)),
        BASELINE_PLOT: (distances, lambda: draw_distances(distances, colours)),
    }
    for name, (has_runs, draw) in plots.items():
        if has_runs:
            partial = folder / f"partial-{name}"
            draw().savefig(partial)
            partial.replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _size(cell: Cell) -> float:
    return cell.mean("num_parameters") or math.inf


def _figure(width: float, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _counts(axis: "Axes", ticks: Sequence[float] | None = None) -> None:
    """Make the x axis logarithmic, with counts such as 500k and 2M at the given places."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if ticks is None:
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_xticks(list(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)


def draw_tokens(
    groups: dict[str, list[Cell]],
    laws: dict[str, LabLaw],
    colours: dict[str, str],
    markers: dict[str, str],
    checks: Sequence[Outcome],
) -> "Figure":
    """Draw the best score of each arm and size against tokens, and the laws with their intervals beyond the runs."""
    from matplotlib.lines import Line2D

    figure, (axis,) = _figure(8.5, 5.2)
    for group, members in groups.items():
        for size, marker in markers.items():
            path = [cell for cell in members if cell.first.size == size]
            if not path:
                continue
            tokens = [cell.mean("tokens") or 0.0 for cell in path]
            axis.errorbar(tokens, [cell.score for cell in path], yerr=[cell.deviation or 0.0 for cell in path],
                          fmt=marker, color=colours[group], capsize=3, ms=6, mec="white", zorder=3)  # fmt: skip
            if group in laws:
                _draw_law(axis, laws[group], path, colours[group], is_largest=size == list(markers)[-1])
    for run in checks:
        axis.plot(run.tokens or math.nan, run.bits_per_byte or math.nan, markers[run.size], mfc="white", ms=8,
                  color=colours[run.group], mew=1.5, zorder=4)  # fmt: skip
    _counts(axis)
    axis.set_xlabel("tokens trained on")
    axis.set_ylabel("bits per byte of held-out text")
    handles = [Line2D([], [], color=colours[group], lw=4, label=group) for group in groups]
    handles += [Line2D([], [], color="0.35", marker=marker, ls="", label=f"size {size}")
                for size, marker in markers.items()]  # fmt: skip
    if laws:
        handles.append(Line2D([], [], color="0.35", ls="--", label="law, 90 % shaded for the largest size"))
    if checks:
        handles.append(
            Line2D([], [], color="0.35", marker="o", mfc="white", ls="", label="run that no law was fitted to")
        )
    axis.legend(handles=handles, fontsize=8, loc="upper right")
    return figure


def _draw_law(axis: "Axes", law: LabLaw, path: Sequence[Cell], colour: str, is_largest: bool) -> None:
    first = path[0].first
    tokens = np.geomspace(law.tokens[0], _BEYOND * law.tokens[1], 40)
    found = [law.predict(_size(path[0]), float(count), first.unique_tokens) for count in tokens]
    axis.plot(tokens, [each.bits_per_byte for each in found], "--", color=colour, lw=1)
    if is_largest:
        axis.fill_between(tokens, [each.low for each in found], [each.high for each in found], color=colour, alpha=0.12,
                          lw=0)  # fmt: skip


def draw_rates(sweeps: Sequence[Sweep], colours: dict[str, str]) -> "Figure":
    """Draw scores against learning rates, a panel a size; the best of a sweep is ringed, a diverged run is a cross."""
    from matplotlib.lines import Line2D

    sizes = list(dict.fromkeys(sweep.cells[0].first.size for sweep in sweeps))
    budgets = sorted({sweep.cells[0].first.budget for sweep in sweeps})
    styles = dict(zip(budgets, ["-", "--", ":", "-.", *["-"] * len(budgets)], strict=False))
    figure, axes = _figure(max(6.0, 4.2 * len(sizes)), 4.8, len(sizes))
    for size, axis in zip(sizes, axes, strict=True):
        rates: set[float] = set()
        lost: list[tuple[float, str]] = []
        for sweep in (sweep for sweep in sweeps if sweep.cells[0].first.size == size):
            first = sweep.cells[0].first
            good = [cell for cell in sweep.cells if math.isfinite(cell.score)]
            x = [cell.first.learning_rate or 0.0 for cell in good]
            rates |= {cell.first.learning_rate or 0.0 for cell in sweep.cells}
            axis.plot(x, [cell.score for cell in good], styles[first.budget], color=colours[first.group], marker="o",
                      ms=4)  # fmt: skip
            if sweep.best:
                best = (sweep.best.first.learning_rate or math.nan, sweep.best.score)
                axis.plot(*best, "o", color=colours[first.group], ms=11, mfc="none")
            lost += [(cell.first.learning_rate or 0.0, colours[first.group])
                     for cell in sweep.cells if not math.isfinite(cell.score)]  # fmt: skip
        for rate, colour in lost:
            axis.plot([rate], [0.97], "x", color=colour, ms=8, mew=2, transform=axis.get_xaxis_transform())
        axis.set_xscale("log")
        _label_rates(axis, sorted(rates))
        axis.set_title(f"size {size}", fontsize=10)
        axis.set_xlabel("peak learning rate")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bits per byte of held-out text")
    groups = dict.fromkeys(sweep.cells[0].first.group for sweep in sweeps)
    handles = [Line2D([], [], color=colours[group], lw=4, label=group) for group in groups]
    handles += [Line2D([], [], color="0.35", ls=styles[budget], label=f"{_short(budget)} tokens") for budget in budgets]
    handles.append(Line2D([], [], color="0.35", marker="o", ms=9, mfc="none", ls="", label="best of its sweep"))
    if any(not math.isfinite(cell.score) for sweep in sweeps for cell in sweep.cells):
        handles.append(Line2D([], [], color="0.35", marker="x", ls="", label="a seed diverged or failed"))
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=4)
    return figure


def _label_rates(axis: Any, rates: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xticks(list(rates), [f"{rate:g}" for rate in rates], rotation=45, fontsize=8)
    axis.xaxis.set_minor_locator(NullLocator())


def _short(count: float) -> str:
    from matplotlib.ticker import EngFormatter

    return str(EngFormatter(sep="")(count))


def draw_isoflops(curves: Sequence[IsoFlop], colours: dict[str, str]) -> "Figure":
    """Draw scores against parameters at equal compute, with their parabolas and lowest points."""
    figure, (axis,) = _figure(7.5, 4.8)
    ticks: set[float] = set()
    for place, curve in enumerate(curves):
        sizes = [_size(cell) for cell in curve.cells]
        ticks |= set(sizes)
        fade = 0.35 + 0.65 * (place + 1) / len(curves)
        axis.plot(sizes, [cell.score for cell in curve.cells], "o", color=colours[curve.group], alpha=fade,
                  label=f"{curve.group}, {curve.flops:.1e} FLOPs")  # fmt: skip
        x = np.linspace(math.log(sizes[0]), math.log(sizes[-1]), 60)
        axis.plot(np.exp(x), np.polyval(curve.coefficients, x), "-", color=colours[curve.group], alpha=fade, lw=1)
        if curve.num_parameters is not None:
            lowest = (curve.num_parameters, curve.bits_per_byte or math.nan)
            axis.plot(*lowest, "*", color=colours[curve.group], ms=14, mec="black")
    _counts(axis, sorted(ticks))
    axis.set_xlabel("parameters, all of them")
    axis.set_ylabel("bits per byte of held-out text")
    axis.set_title("sizes at equal compute; a star is the lowest point of a parabola", fontsize=10)
    axis.legend(fontsize=8)
    return figure


def draw_distances(distances: Sequence[TokensToBaseline], colours: dict[str, str]) -> "Figure":
    """Draw the tokens that each arm needs for the baseline's best score, as a share of the baseline's."""
    figure, (axis,) = _figure(7.5, 1.6 + 0.4 * len(distances))
    for place, found in enumerate(distances):
        colour = colours[found.group]
        if found.ratio is None:
            axis.annotate(found.bound or "", (0.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8,
                          color=colour)  # fmt: skip
            continue
        axis.plot([found.ratio], [place], "o", color=colour)
        if found.low is not None and found.high is not None:
            axis.plot([found.low, found.high], [place, place], "-", color=colour, lw=2, solid_capstyle="butt")
        axis.annotate(f"{found.ratio:.2f}", (found.ratio, place), xytext=(0, 6), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axis.axvline(1, color="0.4", ls="--", lw=1, label="the baseline")
    axis.set_yticks(range(len(distances)), [f"{found.group}, {found.size}" for found in distances])
    axis.set_ylim(len(distances) - 0.4, -0.7)
    axis.set_xlim(left=0)
    bar = " (bar: 90 %)" if any(found.has_interval for found in distances) else ""
    axis.set_xlabel(f"tokens to the baseline's best score, as a share of its tokens{bar}")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8, loc="best")
    return figure
