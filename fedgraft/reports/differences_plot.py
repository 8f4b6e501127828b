"""How far each method is from the reference: paired differences with their intervals, a column for each result."""

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedgraft.reports.drawing import BLANK, INK, RC, WIDTH, brief, name_rows, row_height, wrapped
from fedgraft.reports.marks import Mark
from fedgraft.reports.significance import Difference


def differences_figure(
    results: Mapping[str, Mapping[str, Difference]], marks: Mapping[str, Mark], reference: str, width: float = WIDTH
) -> Figure:
    """Differences in percentage points by result and method; filled where the interval leaves zero out."""
    names = list(dict.fromkeys(name for methods in results.values() for name in methods))
    labels = [wrapped(name, 14 if width < WIDTH else 24) for name in names]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 0.62 + len(names) * row_height(labels, 0.22)))
        columns = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
        for axes, (label, methods) in zip(columns, results.items(), strict=True):
            axes.axvline(0, color=INK, linewidth=0.8)
            for position, name in enumerate(names):
                if (difference := methods.get(name)) is None:
                    continue
                mark = marks[name]
                if np.isfinite(difference.low):
                    axes.plot([difference.low, difference.high], [position] * 2, color=mark.colour, linewidth=1.3)
                axes.plot(
                    difference.mean, position, mark.marker, color=mark.colour, markersize=mark.size,
                    markerfacecolor=mark.colour if difference.is_clear else BLANK, markeredgewidth=0.9,
                )  # fmt: skip
            axes.set_title(brief(label, 14), fontsize=8.5)
            axes.margins(x=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2, steps=[1, 2, 5, 10]))
        name_rows(figure, columns, labels, f"points above {brief(reference, 24)}")
        return figure
