"""Two results of each method against each other, such as base and novel, with lines of equal harmonic mean.

The harmonic mean h of x and y is constant along y = h x / (2 x - h). The zero-shot point is that of a method that
trains nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.data.results import Metric
from fedgraft.reports.drawing import INK, MUTED, RC, WIDTH
from fedgraft.reports.marks import add_key, add_legend, marks_of, place_numbers

_CROSS: dict[str, Any] = {"color": INK, "linewidth": 0.6, "linestyle": (0, (1, 2)), "zorder": 1}
_SMALL: dict[str, Any] = {"fontsize": 6.5, "color": MUTED, "annotation_clip": False}


@dataclass(frozen=True)
class Point:
    """One method's pair of results in percent, each with its standard deviation over seeds."""

    name: str
    x: float
    y: float
    x_spread: float = 0.0
    y_spread: float = 0.0
    untrained: bool = False


def tradeoff_figure(
    points: Sequence[Point], right: Metric, up: Metric, numbers: Sequence[int] | None = None, width: float = WIDTH
) -> Figure:
    """A mark for each method, whiskers of one standard deviation, and dashed lines of equal harmonic mean.

    Dotted lines through the first method that trains nothing tell what the others gain and lose.

    Args:
        numbers: of the methods, for the points to be numbered rather than told apart by marks; there are no whiskers
            then.
    """
    names = [point.name for point in points]
    marks = marks_of(names, [point.untrained for point in points])
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 0.78 * width))
        axes = figure.subplots()
        for point in points[::-1]:  # the first methods on top
            mark = marks[point.name]
            colour = mark.colour if numbers is None else INK
            if numbers is None:
                axes.errorbar(
                    point.x, point.y, point.y_spread or None, point.x_spread or None, fmt="none", ecolor=colour,
                    elinewidth=0.8, alpha=0.55, zorder=2,
                )  # fmt: skip
            marker, size = (mark.marker, mark.size) if numbers is None or mark.hollow else ("o", 3.2)
            axes.plot(
                point.x, point.y, marker, color=colour, markersize=size, markeredgewidth=0.9,
                zorder=4 if mark.hollow else 3,
                markerfacecolor=mark.face if numbers is None or mark.hollow else INK,
            )  # fmt: skip
        _set_limits(axes, points, whiskers=numbers is None)
        _draw_levels(axes)
        for point in [point for point in points if point.untrained][:1]:
            axes.axvline(point.x, **_CROSS)
            axes.axhline(point.y, **_CROSS)
        axes.set_xlabel(f"{right.label.lower()} accuracy, %")
        axes.set_ylabel(f"{up.label.lower()} accuracy, %")
        if numbers is None:
            add_legend(figure, marks, lines=False)
        else:
            add_key(figure, names)
            place_numbers(axes, [(n, point.x, point.y) for n, point in zip(numbers, points, strict=True)])
        return figure


def _set_limits(axes: Axes, points: Sequence[Point], whiskers: bool) -> None:
    """Around points and whiskers, up to 100 %; at least two points wide."""
    for values, spreads, set_limits in (
        ([point.x for point in points], [point.x_spread for point in points], axes.set_xlim),
        ([point.y for point in points], [point.y_spread for point in points], axes.set_ylim),
    ):
        spreads = spreads if whiskers else [0.0] * len(values)
        low = min(np.subtract(values, spreads), default=0.0)
        high = min(100.0, max(np.add(values, spreads), default=100.0))
        room = max(0.07 * (high - low), 1.0 - (high - low) / 2, 0.2)
        set_limits(max(0.0, low - room), high + room)


def _draw_levels(axes: Axes) -> None:
    """Lines of equal harmonic mean, each labelled where it leaves the axes."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    smallest, largest = 2 * left * low / max(left + low, 1e-9), 2 * right * high / (right + high)
    for level in MaxNLocator(6).tick_values(smallest, largest):
        if not smallest < level < min(largest, 100.0):
            continue
        begin = max(left, level * high / (2 * high - level))
        xs = np.linspace(begin, right, 200)
        ys = level * xs / (2 * xs - level)
        if not ((ys >= low) & (ys <= high)).any():
            continue
        text = f"HM {level:g}"
        if low <= ys[-1] <= high:
            axes.annotate(text, (right, ys[-1]), (2, 0), textcoords="offset points", va="center", **_SMALL)
        elif begin > left:
            axes.annotate(text, (begin, high), (0, 2), textcoords="offset points", ha="center", **_SMALL)
        else:
            continue
        axes.plot(xs, ys, color=MUTED, linewidth=0.5, linestyle=(0, (5, 3)), zorder=1)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
