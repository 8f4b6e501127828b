"""Retention in reports: what a run, or each method of a comparison, still knows of classes that nobody holds."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fedgraft.reports import elements as page
from fedgraft.reports import units
from fedgraft.reports.drawing import RC, WIDTH, brief, colours, wrapped

_PROBES = {"unheld": "the run's classes that no site trains on", "vocabulary": "names that no site holds"}
_SEPARATOR = ": "
SHOWN = ("nearest", "centred")
"""The figures of a probe that a comparison shows."""


def retention_section(summary: Mapping[str, Any]) -> str:
    """The section of a run's page; empty for a run without probes."""
    retention = summary.get("retention") or {}
    names = [
        (
            _PROBES.get(probe, probe),
            units.count(figures["names"]),
            units.number(figures["nearest"]),
            units.number(figures["centred"], 3),
            units.number(figures["cosine"], 3),
        )
        for probe, figures in (retention.get("names") or {}).items()
    ]
    images = [
        (scope, units.number(found["zero_shot"]), units.number(found["adapted"]))
        for scope, found in (retention.get("images") or {}).items()
    ]
    parts = []
    if names:
        head = ("Probe", "Names", "Nearest, %", "Centred cosine", "Cosine")
        explained = (
            "Text features of class names under the shared parameters after the last round, against those of the "
            "hand-written templates. Nearest: for how many names the own frozen feature is the nearest of all. Centred "
            "cosine: without what all names have in common. Personal parameters are those of a model of all sites."
        )
        parts += [page.paragraph(explained), page.table(head, names)]
    if images:
        explained = "Accuracy on images of classes that nobody holds, in percent; the mean over sites."
        columns = ("Scope", "Hand-written templates", "After the last round")
        parts += [page.paragraph(explained), page.table(columns, images)]
    return page.section("Retention", *parts)


def flat_retention(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run's probes that a comparison shows, by "PROBE: FIGURE", in percent or as a cosine."""
    names = (summary.get("retention") or {}).get("names") or {}
    return {f"{probe}{_SEPARATOR}{key}": float(found[key]) for probe, found in names.items() for key in SHOWN}


def compared_retention(comparison: Mapping[str, Any]) -> str:
    """The section of a comparison's page; empty if no method has figures."""
    methods = [method for method in comparison["methods"] if method.get("retention")]
    if not methods:
        return ""
    keys = _keys(methods)
    several = len(comparison["seeds"]) > 1

    def cell(method: Mapping[str, Any], key: str) -> str:
        found, decimals = method["retention"].get(key, {}), 3 if key.endswith(SHOWN[1]) else 2
        mean = units.number(found.get("mean"), decimals)
        return f"{mean} ± {units.number(found.get('std'), decimals)}" if several and found else mean

    rows = [(str(method["method"]), *(cell(method, key) for key in keys)) for method in methods]
    explained = "; ".join(f"{probe}: {text}" for probe, text in _PROBES.items() if any(probe in key for key in keys))
    note = page.paragraph(
        "Text features of class names that nobody holds, under the shared parameters after the last round. Nearest: in "
        "percent, for how many the own frozen feature is the nearest of all; centred: mean cosine to the frozen one "
        f"without what all names have in common. {explained[:1].upper()}{explained[1:]}."
    )
    caption = "Names whose own frozen feature is still the nearest, in percent, by method."
    plot = page.figure(retention_figure(comparison), "retention", caption)
    return page.section("Retention", page.table(("Method", *keys), rows), note, plot)


def retention_figure(comparison: Mapping[str, Any]) -> Figure:
    """A group of bars for each method that has figures, a bar for each probe: the nearest names in percent."""
    methods = [method for method in comparison["methods"] if method.get("retention")]
    keys = [key for key in _keys(methods) if key.endswith(SHOWN[0])]
    names = [wrapped(method["method"]) for method in methods]
    thickness = 0.8 / len(keys)
    height = 0.9 + len(methods) * max(0.3, 0.18 * len(keys) + 0.1, 0.15 * (1 + max(n.count("\n") for n in names)))
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots()
        for number, (key, colour) in enumerate(colours(keys, lambda key: "").items()):
            means = [float(method["retention"].get(key, {}).get("mean", np.nan)) for method in methods]
            places = np.arange(len(methods)) - 0.4 + thickness * (number + 0.5)
            axes.barh(places, means, 0.92 * thickness, color=colour, label=brief(key.partition(_SEPARATOR)[0]))
        axes.set_xlim(0, 106)
        axes.set_xticks(range(0, 101, 20))
        axes.set_ylim(len(methods) - 0.45, -0.55)
        axes.set_yticks(range(len(methods)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("nearest, %")
        figure.legend(loc="outside upper center", ncols=len(keys), frameon=False, handlelength=0.9)
        figure.draw_without_rendering()
        return figure


def _keys(methods: list[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for method in methods for key in method["retention"]))
