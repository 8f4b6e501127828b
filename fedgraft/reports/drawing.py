"""The style of the report's figures, and their conversion to SVG for a page that may be light or dark."""

import html
import io
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedgraft.core.files import write_bytes
from fedgraft.data.results import Colour

WIDTH = 4.7  # inches; narrow, so that the text stays readable when a phone scales the figure down
COLUMN = 3.3  # inches; a column of a paper with two
FILES = ("svg", "pdf", "png")
INK, MUTED, GRID, BLANK = "#1b1d21", "#686d76", "#dfe1e6", "#ffffff"
_THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", BLANK: "var(--paper)"}

# Okabe and Ito's palette, safe for colour-blind readers, without yellow (too pale for lines) and black (invisible in
# the dark).
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
CYCLE = (_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED)
_COLOURS: dict[Colour, str] = {
    **{"blue": _BLUE, "orange": _ORANGE, "green": _GREEN, "purple": _PURPLE, "sky": _SKY, "red": _RED},
    "muted": MUTED,
}

RC: dict[str, Any] = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 8.5,
    "text.parse_math": False,  # a class name may contain dollar signs
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # TrueType; publishers refuse Type 3
    "svg.fonttype": "none",  # text stays text: it can be searched, copied and read aloud
    "svg.hashsalt": "fedgraft",
}


@dataclass(frozen=True)
class Drawing:
    """A figure that is not drawn yet.

    Attributes:
        name: of its files, and in a page.
        draw: makes it for a width in inches.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[float], Figure]


def colours(names: Collection[str], own: Callable[[str], Colour]) -> dict[str, str]:
    """A colour for each name: its own, as the protocol defines it, or else (for domains) the next that is free."""
    owned = {name: colour for name in names if (colour := own(name))}
    taken = {_COLOURS[colour] for colour in owned.values()}
    free = cycle([colour for colour in CYCLE if colour not in taken] or CYCLE)
    return {name: _COLOURS[owned[name]] if name in owned else next(free) for name in names}


def brief(name: str, limit: int = 24) -> str:
    """A name shortened to fit at an axis."""
    return name if len(name) <= limit else f"{name[: limit - 1].rstrip()}\N{HORIZONTAL ELLIPSIS}"


def wrapped(name: str, limit: int = 24) -> str:
    """A name as lines short enough for an axis, broken before a plus or a space and after a comma."""
    lines = [""]
    for piece in re.split(r"(?=[+ ])|(?<=,)", name):
        if lines[-1] and len(lines[-1] + piece) > limit:
            lines.append("")
        lines[-1] += piece
    return "\n".join(brief(line.strip(), limit + 8) for line in lines)


def row_height(labels: Sequence[str], least: float) -> float:
    """Inches from row to row, so that labels of one or more lines leave each other room."""
    lines = [label.count("\n") + 1 for label in labels]
    return max([least, *(0.065 * (one + other) + 0.03 for one, other in pairwise(lines))])


def name_rows(figure: Figure, panels: Sequence[Axes], labels: Sequence[str], below: str) -> None:
    """Name the rows that panels side by side share, from the top down, and below them what is measured."""
    for axes in panels:
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7.5)
    panels[0].set_yticks(range(len(labels)), labels, color=INK, fontsize=8)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel(below, fontsize=8.5, color=MUTED)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as needed for neighbours to be `gap` apart, in the given order."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    groups: list[list[int]] = []

    def middle(group: list[int]) -> float:
        return sum(values[index] for index in group) / len(group)

    for index in order:
        groups.append([index])
        while len(groups) > 1 and (
            middle(groups[-1]) - middle(groups[-2]) < gap * (len(groups[-1]) + len(groups[-2])) / 2
        ):
            last = groups.pop()
            groups[-1] += last
    placed = list(values)
    for group in groups:
        for step, index in enumerate(group):
            placed[index] = middle(group) + gap * (step - (len(group) - 1) / 2)
    return placed


def save_figure(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write the figure to `stem` with each of the endings svg, pdf and png; the same figure gives the same bytes."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in formats]
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, path in zip(formats, paths, strict=True):
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[ending]
        buffer = io.BytesIO()
        with matplotlib.rc_context(RC), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            figure.savefig(buffer, format=ending, metadata=dated, dpi=300, bbox_inches="tight", pad_inches=0.02)
        write_bytes(path, buffer.getvalue())
    return paths


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page, without external references.

    Its colours come from the page's custom properties, its width from its container.

    Args:
        name: unique in the page; prefix of the element's IDs.
        description: for screen readers.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser's fonts draw it
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )

    def adapted(match: re.Match[str]) -> str:
        tag = match.group()
        if tag.startswith("<svg"):
            box = re.search(r'viewBox="[^"]*"', tag)
            return f'<svg role="img" aria-label="{html.escape(description)}" {box.group() if box else ""}>'
        tag = tag.replace(' id="', f' id="{name}-').replace("url(#", f"url(#{name}-")
        tag = tag.replace('xlink:href="#', f'href="#{name}-').replace("xlink:href", "href")
        for colour, themed in _THEMED.items():
            tag = tag.replace(colour, themed)
        return tag

    return re.sub(r"<[^>]+>", adapted, svg)  # only tags: matplotlib escapes "<" and ">" in text and attributes
