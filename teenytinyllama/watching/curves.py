"""Curves as SVG: from a run's figures to one panel of a page, with axes, a legend and the points that hovering reads.

No library draws here, because the page takes its colours from the reader's light or dark theme, and loads nothing.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

WIDTH, HEIGHT = 560, 240  # of a panel, in the units of its viewBox
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 30
MOST_POINTS = 400  # of a curve; a panel is about 500 pixels wide
_LOG_FROM = 50.0  # ratio of the largest to the smallest value from which an axis is logarithmic
_START_SHARE, _FEW_POINTS = (
    0.05,
    60,
)  # of a run's tokens, whose higher values are left out; of points, of which none are
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        name: for the legend.
        points: (tokens, value), by tokens; values are finite.
        look: class of its colour in the page's style.
        dotted: whether each point is marked, as for scores that are measured now and then.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    look: str = "c0"
    dotted: bool = False


@dataclass(frozen=True)
class Panel:
    """A drawn plot.

    Attributes:
        title: what is plotted, with its unit.
        curves: for the legend: each curve's name and look.
        shapes: elements of SVG, each with `tag` and `attributes` and perhaps `text`.
        readings: for hovering: the name of each curve, and its points as [x in the picture, tokens, value].
        last: the newest value of each curve, as text.
    """

    title: str
    curves: tuple[tuple[str, str], ...]
    shapes: tuple[dict[str, Any], ...]
    readings: tuple[dict[str, Any], ...]
    last: tuple[str, ...]


def thin_points(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most so many points: the lowest and the highest of equal parts, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    kept: list[tuple[float, float]] = []
    parts = most // 2
    for part in range(parts):
        some = points[part * len(points) // parts : (part + 1) * len(points) // parts]
        ends = {some.index(min(some, key=lambda point: point[1])), some.index(max(some, key=lambda point: point[1]))}
        kept += [some[place] for place in sorted(ends)]
    if kept[-1] != points[-1]:
        kept[-1] = points[-1]  # the newest is what a reader looks for
    return kept


def ticks_between(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from `low` to `high`, at most so many: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def shown(value: float) -> str:
    """Return a number in few letters, such as 1.2M, 0.0034 or 3e-05."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def draw_panel(
    title: str,
    curves: Sequence[Curve],
    marks: Sequence[tuple[float, str]] = (),
    can_be_log: bool = False,
    leaves_out_start: bool = False,
) -> Panel | None:
    """Return a panel of some curves over tokens, or None where no curve has a point.

    Args:
        title: what is plotted, with its unit.
        curves: those without points are left out.
        marks: (tokens, text) of events, drawn as vertical lines.
        can_be_log: the axis is logarithmic where values differ very much.
        leaves_out_start: what is higher at the start than everywhere after it is not drawn, as a loss at its fall: it
            would press what follows into a flat line.
    """
    if leaves_out_start:
        curves, title = _without_start(curves, title)
    curves = [replace(each, points=tuple(thin_points(each.points))) for each in curves if each.points]
    if not curves:
        return None
    values = [value for curve in curves for _, value in curve.points]
    high_x = max(tokens for curve in curves for tokens, _ in curve.points) or 1.0
    is_log = can_be_log and min(values) > 0 and max(values) / min(values) > _LOG_FROM
    low, high = min(values), max(values)
    if is_log:
        low, high = math.log10(low), math.log10(high)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    bottom, top = low - margin, high + margin
    if not is_log and low >= 0:
        bottom = max(bottom, 0.0)

    def x_of(tokens: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * tokens / high_x, 1)

    def y_of(value: float) -> float:
        height = math.log10(value) if is_log else value
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (height - bottom) / (top - bottom), 1)

    y_ticks = _log_ticks(bottom, top) if is_log else ticks_between(bottom, top)
    shapes = _axes([(x_of(tick), shown(tick)) for tick in ticks_between(0, high_x)],
                   [(y_of(tick), shown(tick)) for tick in y_ticks])  # fmt: skip
    shapes += _marks([(x_of(tokens), text) for tokens, text in marks if 0 <= tokens <= high_x])
    for curve in curves:
        shapes += _line(curve, [(x_of(tokens), y_of(value)) for tokens, value in curve.points])
    readings = tuple(
        {"name": curve.name, "points": [[x_of(tokens), shown(tokens), shown(value)] for tokens, value in curve.points]}
        for curve in curves
    )
    names = tuple((curve.name, curve.look) for curve in curves)
    suffix = " (logarithmic)" if is_log else ""
    return Panel(title + suffix, names, tuple(shapes), readings, tuple(shown(each.points[-1][1]) for each in curves))


def _marks(marks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """Return the vertical lines of events at these places, each with its text."""
    return [
        {"tag": "line", "title": text,
         "attributes": {"x1": x, "x2": x, "y1": _TOP, "y2": HEIGHT - _BOTTOM, "class": "mark"}}
        for x, text in marks
    ]  # fmt: skip


def _line(curve: Curve, places: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return a curve through these places, with dots where it is dotted or a single point."""
    points = " ".join(f"{x},{y}" for x, y in places)
    shapes: list[dict[str, Any]] = [
        {"tag": "polyline", "attributes": {"points": points, "class": f"curve {curve.look}"}}
    ]
    if curve.dotted or len(places) == 1:
        shapes += [{"tag": "circle", "attributes": {"cx": x, "cy": y, "r": 3, "class": f"dot {curve.look}"}}
                   for x, y in places]  # fmt: skip
    return shapes


def _without_start(curves: Sequence[Curve], title: str) -> tuple[list[Curve], str]:
    """Return curves without points of the first part of the run that are above all that follows, and the title."""
    ends = [curve.points[-1][0] for curve in curves if curve.points]
    later = [value for curve in curves for tokens, value in curve.points if tokens > _START_SHARE * max(ends)]
    if sum(len(curve.points) for curve in curves) < _FEW_POINTS or not later:
        return list(curves), title
    kept = [replace(each, points=tuple(point for point in each.points if point[1] <= max(later))) for each in curves]
    return kept, title if kept == list(curves) else f"{title}, after its first fall"


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two powers, or where there are fewer than two of them, round numbers."""
    powers = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return powers[:: max(1, math.ceil(len(powers) / 6))] if len(powers) > 1 else ticks_between(10**low, 10**high)


def _axes(x_ticks: list[tuple[float, str]], y_ticks: list[tuple[float, str]]) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = []
    for y, text in y_ticks:
        line = {"x1": _LEFT, "x2": WIDTH - _RIGHT, "y1": y, "y2": y, "class": "grid"}
        shapes.append({"tag": "line", "attributes": line})
        label = {"x": _LEFT - 6, "y": y + 4, "text-anchor": "end"}
        shapes.append({"tag": "text", "attributes": label, "text": text})
    for x, text in x_ticks:
        label = {"x": x, "y": HEIGHT - 10, "text-anchor": "middle"}
        shapes.append({"tag": "text", "attributes": label, "text": text})
    return shapes


def running_mean(points: Sequence[tuple[float, float]], share: float = 0.02) -> tuple[tuple[float, float], ...]:
    """Return the mean of each point and its neighbours, within a share of the tokens on either side.

    Few points are not smoothed: an empty result says that the points themselves are to be drawn.
    """
    if len(points) < 1 / share:
        return ()
    reach = share * (points[-1][0] - points[0][0])
    tokens = [place for place, _ in points]
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    found = []
    for place in tokens:
        start, end = bisect.bisect_left(tokens, place - reach), bisect.bisect_right(tokens, place + reach)
        found.append((place, (sums[end] - sums[start]) / (end - start)))
    return tuple(found)
