"""How methods are told apart in figures: colour, marker and line, so that grey print and colour-blind readers do too.

With more methods than can be told apart by eye they are numbered, and numbers are placed so that none covers another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedgraft.reports.drawing import CYCLE, INK, MUTED, brief

TOLD_APART = 8
"""The largest number of methods that are told apart by their marks alone."""
_MARKERS = "osD^vPX<"
_LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)),
    (0, (9, 2)), (0, (3, 1, 1, 1, 1, 1)), "-", (0, (2, 2)),
)  # fmt: skip
_LEADER: dict[str, Any] = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0}
_DIRECTIONS = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False)]


@dataclass(frozen=True)
class Mark:
    """One method's marks.

    Attributes:
        hollow: for a method that trains nothing.
    """

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]
    hollow: bool = False

    @property
    def size(self) -> float:
        """Of the marker, in points; a star needs more."""
        return 8.0 if self.marker == "*" else 4.6

    @property
    def face(self) -> str:
        """The colour inside the marker."""
        return "none" if self.hollow else self.colour


def marks_of(names: Sequence[str], untrained: Sequence[bool]) -> dict[str, Mark]:
    """A mark for each method; those that train nothing are hollow stars in the colour of text, with dotted lines."""
    marks, trained = {}, 0
    for name, none in zip(names, untrained, strict=True):
        if none:
            marks[name] = Mark(INK, "*", (0, (1, 1.6)), hollow=True)
        else:
            palette = (*CYCLE, MUTED)
            line, marker = _LINES[trained % len(_LINES)], _MARKERS[trained % len(_MARKERS)]
            marks[name] = Mark(palette[trained % len(palette)], marker, line)
            trained += 1
    return marks


def add_legend(figure: Figure, marks: dict[str, Mark], lines: bool) -> None:
    """A legend above the axes, for which the figure is made higher."""
    handles = [
        Line2D(
            [], [], color=mark.colour, marker=mark.marker, markersize=mark.size, markerfacecolor=mark.face,
            linestyle=mark.line if lines else "none", linewidth=1.3, markeredgewidth=0.9, label=brief(name),
        )
        for name, mark in marks.items()
    ]  # fmt: skip
    _add(figure, handles, "outside upper center", 2.4 if lines else 1.2)


def add_key(figure: Figure, names: Sequence[str]) -> None:
    """What the numbers mean, below the axes, for which the figure is made higher."""
    labels = [f"{number}  {_both_ends(name)}" for number, name in enumerate(names, 1)]
    _add(figure, [Line2D([], [], linestyle="none", label=label) for label in labels], "outside lower center", 0)


def _both_ends(name: str, limit: int = 16) -> str:
    """A name without its middle if it is long: entries may differ at their ends alone."""
    half = limit // 2
    return name if len(name) <= limit else f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def _add(figure: Figure, handles: Sequence[Line2D], where: str, handle_length: float) -> None:
    """A legend in as many columns as there is room for."""
    width, height = figure.get_size_inches()
    letter = 0.056 if handle_length else 0.05  # inches
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int((width + 0.14) / (letter * longest + 0.1 * handle_length + 0.14))))
    rows = -(-len(handles) // columns)
    figure.set_size_inches(width, height + 0.14 * rows + 0.08)
    spaces = {"columnspacing": 1.0, "handletextpad": 0.6 if handle_length else 0, "labelspacing": 0.3, "borderpad": 0.1}
    figure.legend(
        handles=handles,
        loc=where,
        ncols=-(-len(handles) // rows),
        frameon=False,
        fontsize=7 if handle_length else 6.5,
        handlelength=handle_length,
        **spaces,
    )


def place_numbers(axes: Axes, points: Sequence[tuple[int, float, float]], size: float = 6.5) -> None:
    """Write each number next to its point (number, x, y), away from the other points and numbers.

    The limits of the axes must be final.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout decides where points are
    inverse = axes.transData.inverted()
    pixel = figure.dpi / 72
    at = axes.transData.transform([(x, y) for _, x, y in points]) / pixel
    bounds = np.asarray(axes.get_window_extent().get_points()) / pixel
    boxes: list[tuple[float, float, float, float]] = [(x - 2.4, y - 2.4, x + 2.4, y + 2.4) for x, y in at]
    for (number, x, y), anchor in zip(points, at, strict=True):
        half = (0.3 * size * len(str(number)) + 0.4, 0.42 * size)
        spot = _free_spot(anchor, half, boxes, bounds)
        boxes.append((spot[0] - half[0], spot[1] - half[1], spot[0] + half[0], spot[1] + half[1]))
        far = np.hypot(*(spot - anchor)) > 10
        axes.annotate(
            str(number), (x, y), tuple(inverse.transform(spot * pixel)), fontsize=size, ha="center",
            va="center_baseline", arrowprops=_LEADER if far else None,
        )  # fmt: skip


def _free_spot(
    anchor: np.ndarray, half: tuple[float, float], boxes: list[tuple[float, float, float, float]], bounds: np.ndarray
) -> np.ndarray:
    """The nearest centre of a label around a point that covers nothing, in points; the first one if there is none."""
    for radius in np.arange(3.5, 90, 1.5):
        for across, up in _DIRECTIONS:
            spot: np.ndarray = anchor + np.array([across * (radius + half[0]), up * (radius + half[1])])
            inside = (spot - half >= bounds[0]).all() and (spot + half <= bounds[1]).all()
            if inside and not any(
                abs(spot[0] - (left + right) / 2) < half[0] + (right - left) / 2
                and abs(spot[1] - (low + high) / 2) < half[1] + (high - low) / 2
                for left, low, right, high in boxes
            ):
                return spot
    beside: np.ndarray = anchor + np.array([3.5 + half[0], 0.0])
    return beside
