"""The figures of a run: accuracy and loss by round, accuracy by site, confusion of classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedgraft.reports.drawing import GRID, INK, RC, WIDTH, apart, brief

NAMED_SITES = 20  # more than these are drawn as a strip sorted by accuracy
NAMED_CLASSES = 40  # with more than these, there are no tick labels
WRITTEN_CLASSES = 12  # with up to these, the cells show percentages
_LEADER: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.8, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}
UPRIGHT: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}


def rounds_figure(
    series: Mapping[str, Sequence[tuple[int, float]]],
    chosen: Mapping[str, str],
    quantity: str,
    decimals: int,
    width: float = WIDTH,
) -> Figure:
    """A line for each series of (round, value) in its `chosen` colour, labelled at the right with the last value."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 2.7))
        axes = figure.subplots()
        for name, points in series.items():
            rounds, values = zip(*points, strict=True)
            axes.plot(
                rounds, values, color=chosen[name], linewidth=1.6, marker="o", markersize=2.6 if len(rounds) < 40 else 0
            )
        axes.margins(x=0.02, y=0.08)
        low, high = axes.get_ylim()
        ends = {name: points[-1] for name, points in series.items()}
        heights = apart([value for _, value in ends.values()], (high - low) * 0.075)
        for (name, (at, value)), height in zip(ends.items(), heights, strict=True):
            axes.annotate(
                f"{brief(name)} {value:.{decimals}f}",
                (at, value),
                (1.05, height),
                textcoords=axes.get_yaxis_transform(),
                va="center",
                arrowprops={**_LEADER, "color": chosen[name]},
            )
        axes.set_ylim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        axes.set_xlabel("round")
        axes.set_ylabel(quantity)
        return figure


def sites_figure(scopes: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str], width: float = WIDTH) -> Figure:
    """For each scope, in its `chosen` colour, a row of bars, one per site, with their mean as a dashed line."""
    upright = any(len(site) > 4 for sites in scopes.values() if len(sites) <= NAMED_SITES for site in sites)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 0.5 + (2.0 if upright else 1.25) * len(scopes)))
        rows = figure.subplots(len(scopes), sharey=True, squeeze=False)[:, 0]
        for axes, (name, sites) in zip(rows, scopes.items(), strict=True):
            many = len(sites) > NAMED_SITES
            labels = sorted(sites, key=lambda site: sites[site]) if many else list(sites)
            values = [sites[label] for label in labels]
            positions = range(len(values))
            axes.bar(positions, values, width=0.94 if many else 0.7 * min(1, len(values) / 8), color=chosen[name])
            mean = float(np.mean(values))
            axes.axhline(mean, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set_title(f"{brief(name)}: {min(values):.1f} to {max(values):.1f}, mean {mean:.1f}")
            axes.set_xticks([])
            if not many:
                axes.set_xticks(positions, [brief(label, 14) for label in labels], **(UPRIGHT if upright else {}))
            axes.set_xlim(-0.6, len(values) - 0.4)
            axes.grid(axis="y")
            axes.set_ylim(0, 100)
            axes.set_yticks([0, 50, 100])
            axes.tick_params(axis="x", length=0)
        rows[-1].set_xlabel("sites, sorted by accuracy" if len(labels) > NAMED_SITES else "site")
        return figure


def confusion_figure(classes: Sequence[str], counts: NDArray[np.float64], colour: str, width: float = WIDTH) -> Figure:
    """A matrix of how often a class (row) was predicted as another (column), as a share of the row.

    Args:
        counts: (C, C), row the true class.
        colour: of a share of one; smaller shares are more transparent, so that the page shows through.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size, labels = len(classes), [brief(name) for name in classes]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, width))
        axes = figure.subplots()
        # The square root makes a confusion of one percent visible.
        ramp = ListedColormap([(*to_rgb(colour), opacity) for opacity in np.sqrt(np.linspace(0, 1, 256))])
        axes.imshow(shares, cmap=ramp, vmin=0, vmax=1, interpolation="none")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.spines[:].set(visible=True, color=GRID)
        if size > NAMED_CLASSES:
            axes.set_xticks([])
            axes.set_yticks([])
            return figure
        small = 8.0 if size <= WRITTEN_CLASSES else max(4.5, 8.5 - size / 10)
        axes.set_xticks(range(size), labels, fontsize=small, **UPRIGHT)
        axes.set_yticks(range(size), labels, fontsize=small)
        axes.tick_params(length=0)
        if size <= WRITTEN_CLASSES:
            red, green, blue = to_rgb(colour)
            strong = "#010101" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.4 else "#fefefe"
            for (row, column), share in np.ndenumerate(shares):
                if counts[row, column]:
                    ink = strong if share > 0.25 else INK
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=small)
        return figure
