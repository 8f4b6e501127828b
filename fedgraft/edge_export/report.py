"""Accuracy of tickets against what was removed, and latency against size, as figures."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
_STYLE: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedgraft",
}
_COLOURS = {"none": "#0072b2", "pgd": "#d55e00", "smoothing": "#009e73"}
_NAMES = {"none": "natural", "pgd": "robust (pgd)", "smoothing": "robust (smoothing)"}


def accuracy_figure(rows: Sequence[Row], quantities: Sequence[str] = ("base", "novel", "attacked")) -> Figure:
    """Accuracy against sparsity: a row of axes a pattern, a column a quantity, a line a kind of ticket.

    Every seed is a dot and the line goes through their means; a dense tower stands at sparsity 0 of every pattern.

    Args:
        rows: with `pattern`, `sparsity`, `induction` and the quantities, in percent.
        quantities: keys of the rows.
    """
    patterns = sorted({row["pattern"] for row in rows} - {"dense"}) or ["dense"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.6 * len(quantities) + 0.4, 2.1 * len(patterns) + 0.5))
        grid = figure.subplots(len(patterns), len(quantities), squeeze=False, sharey="row")
        for line, pattern in zip(grid, patterns, strict=True):
            shown = [row for row in rows if row["pattern"] in (pattern, "dense")]
            for axes, quantity in zip(line, quantities, strict=True):
                _draw_kinds(axes, shown, quantity)
                axes.set_title(f"{quantity}, {pattern}", loc="left", fontsize=8.5)
            line[0].set_ylabel("accuracy, %")
        for axes in grid[-1]:
            axes.set_xlabel("removed, %")
        grid[0][-1].legend(frameon=False, fontsize=7.5)
        return figure


def _draw_kinds(axes: Axes, rows: Sequence[Row], quantity: str) -> None:
    for induction, colour in _COLOURS.items():
        values: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if row["induction"] == induction:
                values[100 * row["sparsity"]].append(row[quantity])
        if values:
            removed = sorted(values)
            axes.plot(removed, [mean(values[x]) for x in removed], color=colour, label=_NAMES[induction], linewidth=1.4)
            dots = [(x, y) for x in removed for y in values[x]]
            axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=4, alpha=0.6)


def write_accuracy_figure(rows: Sequence[Row], folder: Path) -> Path:
    """Write `tickets.svg` and return its path."""
    path = folder / "tickets.svg"
    accuracy_figure(rows).savefig(path, metadata={"Date": None})
    return path
