"""The report on tickets and exports: accuracy against sparsity and latency against size, as plots and tables.

Its rows are in two files of a folder: `tickets.jsonl`, one row per ticket, and `latency.jsonl`, one per exported model.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_text
from fedgraft.data.results import Colour
from fedgraft.reports.drawing import RC, colours
from fedgraft.reports.elements import document, figure, section, table

Row = Mapping[str, Any]
TICKETS, LATENCY = "tickets.jsonl", "latency.jsonl"
_SETTINGS = {
    "kind", "scheme", "pattern", "sparsity", "seed", "images", "induction", "epsilon", "induction_steps",
    "distillation_steps", "test_images", "attacked_images", "parameters", "nonzero", "seconds",
}  # fmt: skip
"""What a row says of a ticket; its other values are accuracies in percent."""
_NAMES = {"none": "natural", "pgd": "robust (pgd)", "smoothing": "robust (smoothing)"}
_OWN: dict[str, Colour] = {"none": "blue", "pgd": "red", "smoothing": "green"}


def write_edge_report(folder: Path) -> Path:
    """Write `edge-report.html`, and each figure to its own file.

    Raises:
        UserError: the folder holds no rows, or a line is not a row.
    """
    tickets, latency = read_rows(folder / TICKETS), read_rows(folder / LATENCY)
    if not tickets and not latency:
        raise UserError(
            f"The folder {folder} has neither {TICKETS} nor {LATENCY}; `fedgraft edge-report RUN` "
            "measures the tickets of a run."
        )
    sections = []
    if tickets:
        plot = _saved(accuracy_figure(tickets), folder / "tickets.svg")
        shown = figure(plot, "tickets", "Accuracy of tickets against the fraction removed; every seed is a dot.")
        sections.append(section("Accuracy against sparsity", shown, table(*ticket_table(tickets))))
    if latency:
        plot = _saved(latency_figure(latency), folder / "latency.svg")
        shown = figure(plot, "latency", "Latency of exported models against their size.")
        sections.append(section("Latency against size", shown, table(*latency_table(latency))))
    path = folder / "edge-report.html"
    write_text(path, document("Tickets on the edge", f"{len(tickets)} tickets, {len(latency)} models", sections))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, if there is one; a last line torn by a kill is left out.

    Raises:
        UserError: another line is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"Line {number} of {path} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f"Line {number} of {path} is not a JSON object: {line[:40]!r}.")
        rows.append(row)
    return rows


def accuracy_figure(rows: Sequence[Row], quantities: Sequence[str] | None = None) -> Figure:
    """Accuracy against sparsity: one row of axes per pattern, one column per quantity, one line per kind of ticket.

    Every seed is a dot, and the line goes through their means; dense towers are drawn at sparsity 0 of every pattern.

    Args:
        rows: with `pattern`, `sparsity`, `induction` and accuracies in percent.
        quantities: keys of accuracies; all by default.
    """
    quantities = quantities or _accuracies(rows)
    patterns = sorted({row["pattern"] for row in rows} - {"dense"}, reverse=True) or ["dense"]
    with matplotlib.rc_context(RC):
        plot = Figure(figsize=(2.1 * len(quantities) + 0.4, 2.1 * len(patterns) + 0.3))
        grid = plot.subplots(len(patterns), len(quantities), squeeze=False, sharey="col")
        for line, pattern in zip(grid, patterns, strict=True):
            shown = [row for row in rows if row["pattern"] in (pattern, "dense")]
            for axes, quantity in zip(line, quantities, strict=True):
                _draw_kinds(axes, shown, quantity)
                axes.set_title(f"{quantity}, {pattern}")
            line[0].set_ylabel("accuracy, %")
        for axes in grid[-1]:
            axes.set_xlabel("removed, %")
        grid[0][0].legend(frameon=False, fontsize=7.5)
        return plot


def latency_figure(rows: Sequence[Row]) -> Figure:
    """Latency against size: one labelled point per exported model.

    Args:
        rows: with `name`, `megabytes` and `ms`.
    """
    with matplotlib.rc_context(RC):
        plot = Figure(figsize=(5.2, 3.2))
        axes = plot.subplots()
        (colour,) = colours(["none"], _OWN.__getitem__).values()
        axes.plot([row["megabytes"] for row in rows], [row["ms"] for row in rows], "o", color=colour)
        for row in rows:
            place = (row["megabytes"], row["ms"])
            axes.annotate(row["name"], place, (4, 4), textcoords="offset points", fontsize=7.5)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.2)
        axes.grid()
        axes.set_xlabel("megabytes")
        axes.set_ylabel("milliseconds per image")
        return plot


def ticket_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: mean ± standard deviation over seeds of every accuracy, grouped by cut."""
    quantities = _accuracies(rows)
    groups: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["pattern"], row["sparsity"], row["induction"]].append(row)
    kinds = list(_NAMES)
    lines = []
    for pattern, sparsity, induction in sorted(
        groups, key=lambda key: (key[0] != "dense", key[0] != "unstructured", key[0], key[1], kinds.index(key[2]))
    ):
        members = groups[pattern, sparsity, induction]
        cells = [_cell([row[quantity] for row in members]) for quantity in quantities]
        lines.append([pattern, f"{100 * sparsity:.0f} %", _NAMES[induction], str(len(members)), *cells])
    return ["pattern", "removed", "ticket", "seeds", *quantities], lines


def latency_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines; each row with how many times smaller and faster than the first it is."""
    first = rows[0]
    lines = [
        [
            row["name"],
            f"{row['megabytes']:.1f}",
            f"{row['ms']:.1f}",
            f"{first['megabytes'] / row['megabytes']:.2f}",
            f"{first['ms'] / row['ms']:.2f}",
        ]
        for row in rows
    ]
    return ["model", "MB", "ms", "times smaller", "times faster"], lines


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _accuracies(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0] if name not in _SETTINGS]


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _draw_kinds(axes: Axes, rows: Sequence[Row], quantity: str) -> None:
    for induction, colour in colours(_NAMES, _OWN.__getitem__).items():
        values: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if row["induction"] == induction:
                values[100 * row["sparsity"]].append(row[quantity])
        if values:
            removed = sorted(values)
            axes.plot(removed, [mean(values[x]) for x in removed], color=colour, label=_NAMES[induction], linewidth=1.4)
            dots = [(x, y) for x in removed for y in values[x]]
            axes.plot(*zip(*dots, strict=True), ".", color=colour, markersize=4, alpha=0.6)
    axes.grid()


def _saved(plot: Figure, path: Path) -> Figure:
    """The figure, written to a file as well."""
    with matplotlib.rc_context(RC):
        plot.savefig(path, format="svg", metadata={"Date": None})
    return plot
