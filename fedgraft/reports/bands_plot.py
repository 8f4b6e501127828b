"""Results after each round: a line for each method through the mean over seeds, in a band from lowest to highest."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.reports.drawing import MUTED, RC, WIDTH
from fedgraft.reports.marks import Mark, add_legend

Curve = Mapping[int, float]
"""One seed's result by round, in percent."""


def bands_figure(
    curves: Mapping[str, Mapping[str, Sequence[Curve]]], marks: Mapping[str, Mark], width: float = WIDTH
) -> Figure:
    """A panel for each result, two side by side.

    Args:
        curves: by the result's label and the method, one for each seed. A method with a single round, which trains
            nothing, is a line across.
    """
    last = max(at for methods in curves.values() for seeds in methods.values() for curve in seeds for at in curve)
    with matplotlib.rc_context(RC):
        across = min(2, len(curves))
        down = -(-len(curves) // across)
        figure = Figure(figsize=(width, 0.3 + (0.42 if across > 1 else 0.55) * width * down))
        grid = figure.subplots(down, across, sharex=True, squeeze=False)
        for axes, (label, methods) in zip(grid.flat, curves.items(), strict=False):
            for name, seeds in list(methods.items())[::-1]:  # the first methods on top
                mark = marks[name]
                rounds, low, mean, high = _band(seeds, last)
                if len(seeds) > 1:
                    axes.fill_between(rounds, low, high, color=mark.colour, alpha=0.14, linewidth=0)
                flat = len({at for curve in seeds for at in curve}) == 1
                axes.plot(
                    rounds, mean, color=mark.colour, linestyle=mark.line, linewidth=1.3,
                    marker="" if flat or len(rounds) < 2 else mark.marker, markersize=0.62 * mark.size,
                    markevery=max(1, len(rounds) // 8), markerfacecolor=mark.face, markeredgewidth=0.7,
                )  # fmt: skip
            axes.margins(x=0.02, y=0.06)
            axes.set_title(label, fontsize=8.5)
            axes.set_ylim(max(-2.0, axes.get_ylim()[0]), min(102.0, axes.get_ylim()[1]))
            axes.grid(axis="y")
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 2.5, 5, 10]))
        for axes in grid.flat[len(curves) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlabel("round")
        figure.supylabel("accuracy, %", fontsize=8.5, color=MUTED)
        drawn = {name for methods in curves.values() for name in methods}
        add_legend(figure, {name: mark for name, mark in marks.items() if name in drawn}, lines=True)
        return figure


def _band(seeds: Sequence[Curve], last: int) -> tuple[list[int], list[float], list[float], list[float]]:
    """Rounds that all seeds have, with the lowest, mean and highest result; a single round lasts to the end."""
    rounds = sorted(set.intersection(*(set(curve) for curve in seeds)))
    values = np.array([[curve[at] for at in rounds] for curve in seeds])
    bounds = values.min(axis=0), values.mean(axis=0), values.max(axis=0)
    if len(rounds) == 1:
        rounds, bounds = [rounds[0], max(last, rounds[0] + 1)], tuple(np.repeat(one, 2) for one in bounds)  # type: ignore[assignment]
    low, mean, high = (one.tolist() for one in bounds)
    return rounds, low, mean, high
