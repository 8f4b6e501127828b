"""Tables that are written once and printed as HTML, Markdown, CSV or LaTeX (booktabs)."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedgraft.reports import elements, units


@dataclass(frozen=True)
class Number:
    """A cell that holds a measured value.

    Attributes:
        text: as people read it.
        value: as programs read it; None if it is unknown.
        spread: its standard deviation, if it has one.
        best: whether it is the best of its column and can be told apart from the next.
    """

    text: str
    value: float | None
    spread: float | None = None
    best: bool = False


Cell = str | Number
WIDE = 5
"""Columns; a table of more does not fit into one of two columns of a page."""


@dataclass(frozen=True)
class Table:
    """Head and rows with what they mean.

    Attributes:
        name: of its file and its label.
        caption: one or more sentences.
        rows: text or numbers; a column of numbers has no text but in its missing cells.
        long: whether only programs should see it: it is written as CSV alone.
    """

    name: str
    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    long: bool = False

    @property
    def text_columns(self) -> list[int]:
        """The columns that hold no number."""
        return [
            column for column in range(len(self.head)) if not any(isinstance(row[column], Number) for row in self.rows)
        ]


def measured(value: float | None, spread: float | None = None, best: bool = False, decimals: int = 2) -> Number:
    """A value with its standard deviation over seeds."""
    known = value is not None and math.isfinite(value)
    text = units.number(value, decimals)
    if known and spread is not None:
        text += f" ± {units.number(spread, decimals)}"
    return Number(text, value if known else None, spread if known else None, best)


def to_html(table: Table) -> str:
    """The table without its caption."""
    rows = [[_emphasized(cell) for cell in row] for row in table.rows]
    return elements.table(table.head, rows, text=table.text_columns)


def to_markdown(table: Table) -> str:
    """GitHub's Markdown, with the caption below."""
    text = table.text_columns
    rules = [":---" if column in text else "---:" for column in range(len(table.head))]
    rows = [_shown(row, _markdown_text, "**{}**") for row in table.rows]
    lines = [[_markdown_text(name) for name in table.head], rules, *rows]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{body}\n\n{_markdown_text(table.caption)}\n"


def to_csv(table: Table) -> str:
    """Unrounded values; a column whose values have a standard deviation is followed by one of it."""
    spread = {
        column
        for row in table.rows
        for column, cell in enumerate(row)
        if isinstance(cell, Number) and cell.spread is not None
    }
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for column, head in enumerate(table.head) for name in _heads(head, column in spread)])
    for row in table.rows:
        cells: list[object] = []
        for column, cell in enumerate(row):
            number = cell if isinstance(cell, Number) else None
            cells.append(_plain(number.value) if number else cell)
            if column in spread:
                cells.append(_plain(number.spread) if number else "")
        writer.writerow(cells)
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """A `table` for the package booktabs, over both columns of a page if it is wide; all text is escaped."""
    columns = "".join("l" if column in table.text_columns else "r" for column in range(len(table.head)))
    rows = [" & ".join(_shown(row, latex_text, r"\textbf{{{}}}")) + r" \\" for row in table.rows]
    environment = "table*" if len(table.head) > WIDE else "table"
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"  \centering\small\setlength{\tabcolsep}{4pt}",
            rf"  \caption{{{latex_text(table.caption)}}}",
            rf"  \label{{tab:{table.name}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {' & '.join(map(latex_text, table.head))} \\\\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            rf"\end{{{environment}}}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "\N{MINUS SIGN}": "$-$", "…": r"\ldots{}", "\n": " ",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def _markdown_text(text: str) -> str:
    escaped = re.sub(r"([\\|*<>`\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    return escaped.replace("\n", " ")


def _shown(row: Sequence[Cell], escape: Callable[[str], str], emphasis: str) -> list[str]:
    shown = []
    for cell in row:
        text = escape(cell.text if isinstance(cell, Number) else cell)
        shown.append(emphasis.format(text) if isinstance(cell, Number) and cell.best else text)
    return shown


def _emphasized(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    return elements.Best(cell.text) if cell.best else cell.text


def _heads(head: str, with_spread: bool) -> list[str]:
    return [head, f"{head} std"] if with_spread else [head]


def _plain(value: float | None) -> str:
    """All digits of a number, without a needless fraction."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
