"""Accuracy against what it costs: bytes that travel, seconds, parameters that are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.data.results import Metric
from fedgraft.reports.drawing import INK, MUTED, RC, WIDTH
from fedgraft.reports.marks import Mark, add_key, add_legend, place_numbers


@dataclass(frozen=True)
class Cost:
    """What one method reaches, in percent with its standard deviation, and what it costs by kind of cost."""

    name: str
    reached: float
    spread: float
    costs: Mapping[str, float | None]


def cost_figure(
    methods: Sequence[Cost], metric: Metric, marks: Mapping[str, Mark], numbered: bool, width: float = WIDTH
) -> Figure:
    """A panel for each kind of cost, side by side, with logarithmic axes; what costs nothing stands left of a break."""
    kinds = list(dict.fromkeys(kind for method in methods for kind in method.costs))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 0.56 * width))
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        placed = []
        for axes, kind in zip(panels, kinds, strict=True):
            known = [(n, method) for n, method in enumerate(methods, 1) if method.costs.get(kind) is not None]
            places = _set_scale(axes, [float(method.costs[kind] or 0.0) for _, method in known])
            placed.append([(n, x, method.reached) for (n, method), x in zip(known, places, strict=True)])
            for (_, method), x in zip(known, places, strict=True):
                mark = marks[method.name]
                colour = INK if numbered else mark.colour
                plain = numbered and not mark.hollow
                spread = None if numbered else method.spread or None
                axes.errorbar(x, method.reached, spread, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.55)
                axes.plot(
                    x, method.reached, "o" if plain else mark.marker, color=colour, markeredgewidth=0.9,
                    markersize=3.0 if plain else mark.size, markerfacecolor=INK if plain else mark.face,
                )  # fmt: skip
            axes.set_xlabel(kind, fontsize=8)
            axes.yaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
            axes.grid()
        spreads = [0.0 if numbered else method.spread for method in methods]
        low = min((method.reached - spread for method, spread in zip(methods, spreads, strict=True)), default=0.0)
        high = max((method.reached + spread for method, spread in zip(methods, spreads, strict=True)), default=100.0)
        high = min(100.0, high)
        room = max(0.08 * (high - low), 0.3)
        panels[0].set_ylim(max(0.0, low - room), high + room)
        panels[0].set_ylabel(f"{metric.label}, %")
        if numbered:
            add_key(figure, [method.name for method in methods])
            for axes, points in zip(panels, placed, strict=True):
                place_numbers(axes, points, 6.0)
        else:
            add_legend(figure, {method.name: marks[method.name] for method in methods}, lines=False)
        return figure


def _set_scale(axes: Axes, costs: Sequence[float]) -> list[float]:
    """Where the costs stand: at their logarithms, and zeros left of the smallest; the axis says the costs."""
    positive = np.log10([cost for cost in costs if cost > 0] or [1.0])
    low, high = float(positive.min()), float(positive.max())
    if high - low < 0.4:
        low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5
    room = 0.12 * (high - low)
    left, zero = low - room, low - 3.2 * room
    powers = _ticks(left, high + 0.6 * room)
    places, labels = powers, [_short(10**power) for power in powers]
    if any(cost <= 0 for cost in costs):
        places, labels = [zero, *powers], ["0", *labels]
        axes.axvline(low - 1.7 * room, color=MUTED, linewidth=0.6, linestyle=(0, (1, 2)))
        left = zero - room
    axes.set_xticks(places, labels, fontsize=7)
    axes.set_xlim(left, high + room)
    return [float(np.log10(cost)) if cost > 0 else zero for cost in costs]


def _ticks(low: float, high: float) -> list[float]:
    """Logarithms of up to three round numbers between two logarithms: powers of ten, or 1, 2 and 5 times them."""
    scale = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        found = [power + float(np.log10(digit)) for power in scale for digit in digits]
        inside = [place for place in found if low <= place <= high]
        if len(inside) >= 2:
            return inside[:: max(1, -(-len(inside) // 3))]
    return [low, high]


def _short(value: float) -> str:
    """A number in at most four characters or so."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.2g}{letter}" if value < 99.5 * size else f"{value / size:.0f}{letter}"
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
