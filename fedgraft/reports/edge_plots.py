"""The figures of tickets and exports: accuracy against sparsity; latency against size and, where known, accuracy."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.data.results import Colour
from fedgraft.reports.drawing import INK, RC, WIDTH, colours
from fedgraft.reports.marks import TOLD_APART, Mark, add_key, add_legend, marks_of, place_numbers

Row = Mapping[str, Any]
KINDS = {"none": "natural", "pgd": "robust (pgd)", "smoothing": "robust (smoothing)"}
_OWN: dict[str, Colour] = {"none": "blue", "pgd": "red", "smoothing": "green"}
_LINES: dict[str, Any] = {"none": "-", "pgd": (0, (5, 1.5)), "smoothing": (0, (1.2, 1.2))}
_MARKERS = {"none": "o", "pgd": "s", "smoothing": "^"}
_SETTINGS = {
    "kind", "scheme", "pattern", "sparsity", "seed", "images", "induction", "epsilon", "induction_steps",
    "distillation_steps", "test_images", "attacked_images", "parameters", "nonzero", "seconds",
}  # fmt: skip
"""What a row says of a ticket; its other values are accuracies in percent."""


def accuracies_of(rows: Sequence[Row]) -> list[str]:
    """The keys of the accuracies of tickets."""
    return [name for name in rows[0] if name not in _SETTINGS]


def accuracy_figure(rows: Sequence[Row], quantities: Sequence[str] | None = None, width: float = WIDTH) -> Figure:
    """Accuracy against sparsity: one row of axes per pattern, one column per quantity, one line per kind of ticket.

    Every seed is a dot, and the line goes through their means; dense towers are drawn at sparsity 0 of every pattern.

    Args:
        rows: with `pattern`, `sparsity`, `induction` and accuracies in percent.
        quantities: keys of accuracies; all by default.
    """
    quantities = quantities or accuracies_of(rows)
    patterns = sorted({row["pattern"] for row in rows} - {"dense"}, reverse=True) or ["dense"]
    tall = max(1.15, 0.8 * width / len(quantities))
    with matplotlib.rc_context(RC):
        plot = Figure(figsize=(width, tall * len(patterns) + 0.35))
        grid = plot.subplots(len(patterns), len(quantities), squeeze=False, sharey="col", sharex=True)
        drawn: dict[str, Mark] = {}
        for line, pattern in zip(grid, patterns, strict=True):
            shown = [row for row in rows if row["pattern"] in (pattern, "dense")]
            for axes, quantity in zip(line, quantities, strict=True):
                drawn |= _draw_kinds(axes, shown, quantity)
                axes.set_title(f"{quantity}, {pattern}" if width > WIDTH else f"{quantity}\n{pattern}", fontsize=7.5)
                axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
                axes.tick_params(labelsize=7)
        plot.supylabel("accuracy, %", fontsize=8.5)
        plot.supxlabel("removed, %", fontsize=8.5)
        add_legend(plot, drawn, lines=True)
        return plot


def latency_figure(rows: Sequence[Row], width: float = WIDTH) -> Figure:
    """Latency against size, and accuracy against latency where every row has one: a mark for each exported model.

    Args:
        rows: with `name`, `megabytes`, `ms`, and perhaps accuracies in percent.
    """
    names = [str(row["name"]) for row in rows]
    marks = marks_of(names, [False] * len(names))
    numbered = len(names) > TOLD_APART
    accuracies = [key for key in rows[0] if key.startswith("accuracy") and all(key in row for row in rows)]
    panels = [("megabytes", "ms"), *(("ms", key) for key in accuracies)]
    labels = {"megabytes": "megabytes", "ms": "ms per image"}
    with matplotlib.rc_context(RC):
        plot = Figure(figsize=(width, min(0.62 * width, 1.0 + width / len(panels) * 0.6)))
        for axes, (right, up) in zip(plot.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for row in rows:
                mark = marks[str(row["name"])]
                colour, shape = (INK, "o") if numbered else (mark.colour, mark.marker)
                axes.plot(row[right], row[up], shape, color=colour, markersize=mark.size)
            axes.margins(0.12)
            axes.set_xlim(left=0)
            if up == "ms":
                axes.set_ylim(bottom=0)
            axes.grid()
            axes.set_xlabel(labels[right])
            axes.set_ylabel(labels.get(up, f"{up.replace('_', ' ')}, %"))
        if numbered:
            add_key(plot, names)
            for axes, (right, up) in zip(plot.axes, panels, strict=True):
                place_numbers(axes, [(n, float(row[right]), float(row[up])) for n, row in enumerate(rows, 1)])
        else:
            add_legend(plot, marks, lines=False)
        return plot


def _draw_kinds(axes: Axes, rows: Sequence[Row], quantity: str) -> dict[str, Mark]:
    """Draw each kind of ticket, and return their marks by name."""
    drawn = {}
    for induction, colour in colours(KINDS, _OWN.__getitem__).items():
        values: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if row["induction"] == induction:
                values[100 * row["sparsity"]].append(row[quantity])
        if values:
            mark = Mark(colour, _MARKERS[induction], _LINES[induction])
            drawn[KINDS[induction]] = mark
            removed = sorted(values)
            means = [mean(values[x]) for x in removed]
            axes.plot(
                removed, means, color=colour, label=KINDS[induction], linewidth=1.3, linestyle=mark.line,
                marker=mark.marker, markersize=3.2,
            )  # fmt: skip
            dots = [(x, y) for x in removed for y in values[x]]
            axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=3, alpha=0.5)
    axes.grid()
    return drawn
