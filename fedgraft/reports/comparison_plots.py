"""The figures of a comparison: the accuracy of each method, and the trade-off between local and novel classes."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fedgraft.config.registry import PROTOCOLS
from fedgraft.reports.drawing import INK, MUTED, RC, WIDTH, apart, brief, colours, wrapped

_NAMED, _SHORT = 8, 24
"""The largest number of methods, and length of names, for which names are written next to the points."""


def comparison_figure(comparison: dict[str, Any]) -> Figure:
    """A group of bars for each method, a bar for each metric, with the standard deviation over seeds."""
    methods = comparison["methods"]
    protocol = PROTOCOLS.load(comparison["protocol"])
    keys = [key for key in metric_keys(comparison) if protocol.metric(key).drawn]
    thickness = 0.8 / max(len(keys), 1)
    many = numbered(comparison)
    names = [wrapped(f"{n}. {method['method']}" if many else method["method"]) for n, method in enumerate(methods, 1)]
    lines = 1 + max(name.count("\n") for name in names)
    row = max(0.18 * len(keys) + 0.1, 0.15 * lines + 0.1, 0.3)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 0.9 + len(methods) * row))
        axes = figure.subplots()
        for number, (key, colour) in enumerate(colours(keys, lambda key: protocol.metric(key).colour).items()):
            positions = np.arange(len(methods)) - 0.4 + thickness * (number + 0.5)
            means = [_number(method, key, "mean") for method in methods]
            spreads = [_number(method, key, "std") for method in methods]
            axes.barh(positions, means, 0.92 * thickness, color=colour, label=brief(protocol.metric(key).label))
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
        axes.set_yticks(range(len(methods)), names, color=INK)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("accuracy, %")
        figure.legend(loc="outside upper center", ncols=min(len(keys), 4), frameon=False, handlelength=0.9)
        figure.draw_without_rendering()  # the ticks get their style now, not when a caller saves the figure
        return figure


def tradeoff_figure(comparison: dict[str, Any]) -> Figure:
    """Each method as a point: accuracy on a site's own classes against novel ones; `numbered` like the bars."""
    methods = comparison["methods"]
    many = numbered(comparison)
    drawn = [
        (
            str(n) if many else method["method"],
            np.array([_number(method, key, statistic) for statistic in ("mean", "std") for key in ("local", "novel")]),
        )
        for n, method in enumerate(methods, 1)
    ]
    points = [(name, np.nan_to_num(numbers)) for name, numbers in drawn if np.isfinite(numbers[:2]).all()]
    step = 0.13 if many else 0.19  # inches from label to label
    height = 3.4 + 0.1 * max(0, len(points) - _NAMED)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots()
        for _, (local, novel, local_spread, novel_spread) in points:
            axes.errorbar(local, novel, novel_spread, local_spread, color=INK, fmt="o", markersize=5, elinewidth=0.8)
        axes.margins(0.15)
        low, high = axes.get_ylim()
        left, right = axes.get_xlim()
        levels = apart([float(novel) for _, (_, novel, *_) in points], step / (height - 0.5) * (high - low))
        for (name, (local, novel, *_)), level in zip(points, levels, strict=True):
            axes.annotate(
                name,
                (local, novel),
                (local + 0.02 * (right - left), level),
                va="center",
                fontsize=7 if many else None,
                arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
            )
        axes.grid()
        axes.set_xlabel("local accuracy, %")
        axes.set_ylabel("novel accuracy, %")
        return figure


def numbered(comparison: dict[str, Any]) -> bool:
    """Whether there are too many methods, or too long names, to write the names next to the points."""
    names = [method["method"] for method in comparison["methods"]]
    return len(names) > _NAMED or max(map(len, names), default=0) > _SHORT


def metric_keys(comparison: dict[str, Any]) -> list[str]:
    """The metrics that any of the methods has, in order of first appearance."""
    return list(dict.fromkeys(key for method in comparison["methods"] for key in method["metrics"]))


def _number(method: dict[str, Any], key: str, statistic: str) -> float:
    value = method["metrics"].get(key, {}).get(statistic)
    return float("nan") if value is None else float(value)
