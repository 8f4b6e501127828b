"""How accuracy is spread over sites: a violin for each method where there are many sites, every site where few."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.reports.drawing import INK, RC, WIDTH, brief, name_rows, row_height, wrapped
from fedgraft.reports.marks import Mark

FEW = 30
"""With fewer values than this, each is drawn, and no density is estimated."""
_HALF = 0.36
"""Half the height of a violin or strip; methods are 1 apart."""


def site_spread_figure(
    scopes: Mapping[str, Mapping[str, Sequence[float]]], marks: Mapping[str, Mark], width: float = WIDTH
) -> Figure:
    """A column for each scope and a row for each method: its sites' accuracies of all seeds, and a line at their mean.

    Args:
        scopes: accuracies in percent by scope and method.
    """
    names = [name for name in marks if any(name in methods for methods in scopes.values())]
    labels = [wrapped(name, 14 if width < WIDTH else 24) for name in names]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 0.62 + len(names) * row_height(labels, 0.3)))
        columns = figure.subplots(1, len(scopes), sharey=True, squeeze=False)[0]
        for axes, (scope, methods) in zip(columns, scopes.items(), strict=True):
            for position, name in enumerate(names):
                if values := [value for value in methods.get(name, ()) if np.isfinite(value)]:
                    _draw(axes, np.asarray(values), position, marks[name])
            axes.set_title(brief(scope, 14), fontsize=8.5)
            low, high = axes.get_xlim()
            room = 0.03 * (high - low)
            low, high = max(-room, low), min(100 + room, high)
            axes.set_xlim(low, high)
            if low < 50 and high > 100:
                axes.set_xticks([0, 50, 100] if low < 0.1 else [50, 100])
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2, steps=[1, 2, 5, 10]))
        name_rows(figure, columns, labels, "accuracy of a site, %")
        return figure


def _draw(axes: Axes, values: np.ndarray, position: int, mark: Mark) -> None:
    if len(values) < FEW or np.ptp(values) < 1e-9:
        axes.plot(
            values, position + _stacked(values), mark.marker, color=mark.colour, markersize=0.66 * mark.size,
            markerfacecolor=mark.face, markeredgewidth=0.6, alpha=0.7, clip_on=False,
        )  # fmt: skip
    else:
        parts = axes.violinplot([values], [position], orientation="horizontal", widths=2 * _HALF, showextrema=False)
        bodies: Any = parts["bodies"]
        for body in bodies:
            body.set(facecolor=mark.colour, edgecolor=mark.colour, alpha=0.35, linewidth=0.8)
            body.get_paths()[0].vertices[:, 0] = body.get_paths()[0].vertices[:, 0].clip(0, 100)
        low, high = np.quantile(values, (0.25, 0.75))
        axes.plot([low, high], [position] * 2, color=mark.colour, linewidth=2.4, solid_capstyle="butt")
    mean = float(values.mean())
    axes.plot([mean, mean], [position - _HALF, position + _HALF], color=INK, linewidth=1.1)


def _stacked(values: np.ndarray) -> np.ndarray:
    """Offsets across a strip: values that would cover each other are set side by side, nearest to the middle first."""
    reach = max(float(np.ptp(values)) / 22, 1e-9)
    offsets = np.zeros(len(values))
    placed: list[tuple[float, float]] = []
    ladder = [0.0] + [sign * step * 0.14 for step in range(1, 40) for sign in (1, -1)]
    for index in np.argsort(values, kind="stable"):
        near = {round(offset, 4) for value, offset in placed if values[index] - value < reach}
        offsets[index] = next((offset for offset in ladder if round(offset, 4) not in near), 0.0)
        placed.append((float(values[index]), float(offsets[index])))
    largest = float(np.abs(offsets).max())
    return offsets * min(1.0, (_HALF - 0.04) / largest) if largest else offsets
