"""The figure of a comparison's accuracies: bars for each method."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fedgraft.config.registry import PROTOCOLS
from fedgraft.reports.drawing import INK, RC, WIDTH, brief, colours, wrapped

_NAMED, _SHORT = 8, 24
"""The largest number of methods, and length of names, for which names are written next to the points."""


def comparison_figure(comparison: dict[str, Any], width: float = WIDTH) -> Figure:
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
        figure = Figure(figsize=(width, 0.9 + len(methods) * row))
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
