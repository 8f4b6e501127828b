"""The figures of a comparison: accuracy of each method, and the trade of local against novel classes."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fedgraft.server.report.drawing import INK, RC, WIDTH, apart, brief, colours
from fedgraft.server.report.units import metric_label

_DRAWN = ("local", "base", "novel", "hm", "accuracy", "worst_site", "mean")  # and every domain


def comparison_figure(comparison: dict[str, Any]) -> Figure:
    """A group of bars for each method, a bar for each metric, with the standard deviation over seeds.

    Args:
        comparison: what `comparison.json` holds.
    """
    methods = comparison["methods"]
    keys = [key for key in metric_keys(comparison) if key in _DRAWN or key.startswith("domain:")]
    thickness = 0.8 / max(len(keys), 1)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 0.9 + len(methods) * max(0.18 * len(keys) + 0.1, 0.3)))
        axes = figure.subplots()
        for number, (key, colour) in enumerate(colours(keys).items()):
            positions = np.arange(len(methods)) - 0.4 + thickness * (number + 0.5)
            means = [_number(method, key, "mean") for method in methods]
            spreads = [_number(method, key, "std") for method in methods]
            axes.barh(positions, means, 0.92 * thickness, color=colour, label=brief(metric_label(key)))
            if len(comparison["seeds"]) > 1:
                axes.errorbar(means, positions, xerr=spreads, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
            for position, mean, spread in zip(positions, means, spreads, strict=True):
                if np.isfinite(mean):
                    end = mean + float(np.nan_to_num(spread))
                    axes.annotate(
                        f"{mean:.1f}", (end, position), (3, 0), textcoords="offset points", va="center", fontsize=7
                    )
        axes.set_xlim(0, 106)
        axes.set_xticks(range(0, 101, 20))
        axes.set_ylim(len(methods) - 0.45, -0.55)
        axes.set_yticks(range(len(methods)), [brief(method["method"]) for method in methods], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("accuracy, %")
        figure.legend(loc="outside upper center", ncols=min(len(keys), 4), frameon=False, handlelength=0.9)
        figure.draw_without_rendering()  # the ticks take their style now, not when a caller saves the figure
        return figure


def tradeoff_figure(comparison: dict[str, Any]) -> Figure:
    """Each method as a point: accuracy on a site's own classes against accuracy on novel ones."""
    points = {
        brief(method["method"]): [
            _number(method, key, statistic) for statistic in ("mean", "std") for key in ("local", "novel")
        ]
        for method in comparison["methods"]
    }
    points = {name: numbers for name, numbers in points.items() if np.isfinite(numbers[:2]).all()}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 3.4))
        axes = figure.subplots()
        for local, novel, local_spread, novel_spread in np.nan_to_num(list(points.values())):
            axes.errorbar(local, novel, novel_spread, local_spread, color=INK, fmt="o", markersize=5, elinewidth=0.8)
        axes.margins(0.15)
        low, high = axes.get_ylim()
        heights = apart([novel + 0.03 * (high - low) for _, novel, *_ in points.values()], 0.065 * (high - low))
        for (name, (local, *_)), height in zip(points.items(), heights, strict=True):
            axes.annotate(name, (local, height), (6, 0), textcoords="offset points", va="center")
        axes.grid()
        axes.set_xlabel("local accuracy, %")
        axes.set_ylabel("novel accuracy, %")
        return figure


def metric_keys(comparison: dict[str, Any]) -> list[str]:
    """The metrics that any of the methods has, in the order of their first mention."""
    return list(dict.fromkeys(key for method in comparison["methods"] for key in method["metrics"]))


def _number(method: dict[str, Any], key: str, statistic: str) -> float:
    value = method["metrics"].get(key, {}).get(statistic)
    return float("nan") if value is None else float(value)
