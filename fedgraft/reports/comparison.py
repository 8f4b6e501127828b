"""The page of a comparison: each method's results over the seeds, and its costs."""

import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedgraft.config.registry import PROTOCOLS
from fedgraft.data.results import Metric
from fedgraft.reports import comparison_plots as plots
from fedgraft.reports import elements as page
from fedgraft.reports import units
from fedgraft.reports.retention import compared_retention


def comparison_page(comparison: dict[str, Any], directory: Path) -> str:
    """The report of a comparison (the content of `comparison.json`) as HTML, with links to the runs' reports."""
    methods, seeds = comparison["methods"], comparison["seeds"]
    subtitle = (
        f"{units.plural(len(methods), 'method')} under the protocol {comparison['protocol']}: "
        f"{units.plural(comparison['sites'], 'site')}, {units.plural(comparison['rounds'], 'round')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."
    )
    figures = (_bars(comparison), _tradeoff(comparison), compared_retention(comparison))
    sections = [_result(comparison), _published(comparison), *figures, _cost(methods), _runs(comparison, directory)]
    return page.document(f"Methods on {comparison['data']}", subtitle, sections)


def _result(comparison: dict[str, Any]) -> str:
    methods, several = comparison["methods"], len(comparison["seeds"]) > 1
    keys = plots.metric_keys(comparison)
    protocol = PROTOCOLS.load(comparison["protocol"])
    shown = {key: protocol.metric(key) for key in keys}
    best = {key: _best(shown[key], [method["metrics"].get(key, {}).get("mean") for method in methods]) for key in keys}

    def cell(method: dict[str, Any], key: str) -> str:
        statistics = method["metrics"].get(key, {})
        mean = units.number(statistics.get("mean"))
        text = f"{mean} ± {units.number(statistics.get('std'))}" if several else mean
        return page.Best(text) if len(methods) > 1 and mean == best[key] else text

    rows = [(str(method["method"]), *(cell(method, key) for key in keys)) for method in methods]
    head = ("Method", *(metric.label for metric in shown.values()))
    seeds = f", mean ± standard deviation over {len(comparison['seeds'])} seeds" if several else ""
    explained = "; ".join(f"{metric.label}: {metric.meaning}" for metric in protocol.metrics if metric.key in shown)
    note = page.paragraph(f"Percent, after the last round{seeds}; the best value of each column is bold. {explained}.")
    return page.section("Result", page.table(head, rows), note)


def _best(metric: Metric, means: list[float | None]) -> str | None:
    known = [mean for mean in means if mean is not None and math.isfinite(mean)]
    if not known:
        return None
    return units.number(min(known) if metric.lower_is_better else max(known))


def _bars(comparison: dict[str, Any]) -> str:
    if not comparison["methods"]:
        return ""
    errors = "; the whiskers are the standard deviation over seeds" if len(comparison["seeds"]) > 1 else ""
    caption = f"Accuracy of each method after the last round, in percent{errors}."
    return page.section("Accuracy by method", page.figure(plots.comparison_figure(comparison), "methods", caption))


def _published(comparison: dict[str, Any]) -> str:
    rows = comparison.get("published", [])
    if not rows:
        return ""
    keys = [key for key in plots.metric_keys(comparison) if any(key in row["metrics"] for row in rows)]
    protocol = PROTOCOLS.load(comparison["protocol"])
    head = ("Method", *(protocol.metric(key).label for key in keys), "Data", "Source", "Measured by", "Checked on")
    cells = [
        (
            str(row["method"]),
            *(units.number(row["metrics"].get(key)) for key in keys),
            row["dataset"] or "mean over several",
            row["source"],
            row["copied_from"] or "the method's authors",
            row.get("checked") or "as copied, not checked",
        )
        for row in rows
    ]
    note = page.paragraph("Figures that others published for this setting, in percent; compare with care.")
    missing = [page.paragraph(sentence) for sentence in comparison.get("missing", [])]
    return page.section("Published", page.table(head, cells), note, *missing)


def _tradeoff(comparison: dict[str, Any]) -> str:
    if not {"local", "novel"} <= set(plots.metric_keys(comparison)):
        return ""
    caption = "Personalization against generalization: a site's own classes to the right, novel classes upwards."
    if plots.numbered(comparison):
        caption += " The numbers are those of the methods above."
    return page.section("Local against novel", page.figure(plots.tradeoff_figure(comparison), "tradeoff", caption))


def _cost(methods: list[dict[str, Any]]) -> str:
    rows = [
        (
            str(method["method"]),
            units.byte_size(method.get("uplink_bytes_per_site_round")),
            units.count(method.get("trainable_parameters")),
            units.count(method.get("shared_parameters")),
            units.duration(method.get("wall_seconds")),
        )
        for method in methods
    ]
    head = ("Method", "Uplink per site per round", "Trainable parameters", "Shared parameters", "Wall time")
    return page.section("Cost", page.table(head, rows))


def _runs(comparison: dict[str, Any], directory: Path) -> str:
    names = [str(name) for name in comparison.get("runs", [])]
    reports = {name: f"{quote(name)}/report.html" for name in names if (directory / name / "report.html").is_file()}
    return page.section("Runs", page.links((name, reports.get(name)) for name in names) if names else "")
