"""The report on tickets and exports: accuracy against sparsity and latency against size, as plots and tables.

Its rows are in two files of a folder: `tickets.jsonl`, one row per ticket, and `latency.jsonl`, one per exported model.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_text
from fedgraft.reports.drawing import COLUMN, FILES, WIDTH, save_figure
from fedgraft.reports.edge_plots import KINDS, accuracies_of, accuracy_figure, latency_figure
from fedgraft.reports.elements import document, figure, section, table

Row = Mapping[str, Any]
TICKETS, LATENCY = "tickets.jsonl", "latency.jsonl"
_TICKETS_CAPTION = "Accuracy of tickets against the fraction removed; every seed is a dot."
_LATENCY_CAPTION = "Latency of exported models against their size, and against their accuracy where it is known."


def write_edge_report(folder: Path) -> Path:
    """Write `edge-report.html`, and each figure as SVG, PDF and PNG for a column of 3.3 inches.

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
        shown = _figure(lambda width: accuracy_figure(tickets, width=width), folder, "tickets", _TICKETS_CAPTION)
        sections.append(section("Accuracy against sparsity", shown, table(*ticket_table(tickets))))
    if latency:
        shown = _figure(lambda width: latency_figure(latency, width=width), folder, "latency", _LATENCY_CAPTION)
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


def ticket_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and lines: mean ± standard deviation over seeds of every accuracy, grouped by cut."""
    quantities = accuracies_of(rows)
    groups: dict[tuple[str, float, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["pattern"], row["sparsity"], row["induction"]].append(row)
    kinds = list(KINDS)
    lines = []
    for pattern, sparsity, induction in sorted(
        groups, key=lambda key: (key[0] != "dense", key[0] != "unstructured", key[0], key[1], kinds.index(key[2]))
    ):
        members = groups[pattern, sparsity, induction]
        cells = [_cell([row[quantity] for row in members]) for quantity in quantities]
        lines.append([pattern, f"{100 * sparsity:.0f} %", KINDS[induction], str(len(members)), *cells])
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


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _figure(draw: Callable[[float], Figure], folder: Path, name: str, caption: str) -> str:
    """A figure for the page, written to files as well."""
    save_figure(draw(COLUMN), folder / name, FILES)
    return figure(draw(WIDTH), name, caption)
