"""The page of one run: its results by round and by site, its costs, and how to reproduce it."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.core.wording import plural
from fedgraft.data.protocols.protocol import flat_results
from fedgraft.reports import elements as page
from fedgraft.reports import plots, units
from fedgraft.reports.drawing import WIDTH, Drawing
from fedgraft.reports.reading import Run
from fedgraft.reports.retention import retention_section
from fedgraft.reports.tables import Cell, Number, Table, measured, to_html

CONFUSED_PAIRS = 10


def run_page(run: Run) -> str:
    """The report of a run as HTML."""
    summary = run.summary
    subtitle = (
        f"The method {_method(summary)} under the protocol {summary['protocol']}: "
        f"{plural(summary['sites'], 'site')}, {plural(summary['rounds'], 'round')}, "
        f"seed {summary['seed']}, on the frozen backbone {summary['backbone']}."
    )
    shown: dict[str, list[str]] = {}
    for drawing in run_figures(run):
        shown.setdefault(drawing.title, []).append(page.figure(drawing.draw(WIDTH), drawing.name, drawing.caption))
    shown.setdefault("Confusion", []).extend(_confused_pairs(run))
    figures = (page.section(title, *parts) for title, parts in shown.items())
    cost = page.section("Cost", to_html(_costs(summary)))
    rest = (_privacy(summary), _left_out(run), _configuration(run), _versions(summary))
    sections = (page.section("Result", to_html(_results(run))), *figures, retention_section(summary), cost, *rest)
    return page.document(_title(summary), subtitle, sections)


def _method(summary: dict[str, Any]) -> str:
    return "+".join(filter(None, (summary["method"], summary.get("strategy"))))


def _title(summary: dict[str, Any]) -> str:
    return f"{_method(summary)} on {summary['data']}"


def run_tables(run: Run) -> list[Table]:
    """Results, accuracies by site after the last round, and costs."""
    return [table for table in (_results(run), _by_site(run), _costs(run.summary)) if table is not None]


def run_figures(run: Run) -> list[Drawing]:
    """All figures that the run allows."""
    return [*_rounds(run), *_sites(run), *_confusion(run)]


def _results(run: Run) -> Table:
    last, last5 = flat_results(run.summary["metrics"]), flat_results(run.summary.get("metrics_last5") or {})
    shown = {key: run.protocol.metric(key) for key in last}
    rows = [
        (shown[key].label, measured(value), measured(last5.get(key)), shown[key].meaning) for key, value in last.items()
    ]
    return Table(
        "results", f"{_title(run.summary)}, in percent.", ("Percent", "Last round", "Mean of last 5", ""), rows
    )


def _by_site(run: Run) -> Table | None:
    last = _last_of_sites(run)
    sites = list(dict.fromkeys(site for accuracies in last.values() for site in accuracies))
    rows: list[tuple[Cell, ...]] = [
        (site, *(measured(accuracies.get(site)) for accuracies in last.values())) for site in sites
    ]
    caption = "Accuracy of each site after the last round, in percent."
    return Table("sites", caption, ("Site", *last), rows, long=True) if rows else None


def _last_of_sites(run: Run) -> dict[str, dict[str, float]]:
    return {name: rows[-1].sites for name, rows in run.accuracy.items() if rows[-1].sites}


def _rounds(run: Run) -> list[Drawing]:
    if not run.accuracy:
        return []
    series = {name: [(row.round, row.mean) for row in rows] for name, rows in run.accuracy.items()}
    caption = "Accuracy on test images after each round, in percent, mean over sites. Round 0 is before any training."
    figures = [_lines("accuracy", caption, run, series, "accuracy, %", 1)]
    if run.loss:
        figures.append(_lines("loss", "Mean training loss of each round.", run, run.loss, "training loss", 3))
    if run.drift:
        caption = (
            "Drift: mean cosine distance between the text features of classes that no site has, under the shared "
            "parameters, and the hand-written ones."
        )
        figures.append(_lines("drift", caption, run, run.drift, "drift", 3))
    return figures


def _lines(
    name: str, caption: str, run: Run, series: Mapping[str, list[tuple[int, float]]], quantity: str, decimals: int
) -> Drawing:
    chosen = run.colours(series)
    return Drawing(
        name, "Round by round", caption, lambda width: plots.rounds_figure(series, chosen, quantity, decimals, width)
    )


def _sites(run: Run) -> list[Drawing]:
    last = _last_of_sites(run)
    if not last:
        return []
    caption = "Accuracy of each site after the last round, in percent; the dashed line is the mean over sites."
    chosen = run.colours(last)
    return [Drawing("sites", "Site by site", caption, lambda width: plots.sites_figure(last, chosen, width))]


def _confusion(run: Run) -> list[Drawing]:
    chosen = run.colours(run.confusion)
    return [
        _matrix(f"confusion{number}", scope, *_counted(matrix), chosen[scope])
        for number, (scope, matrix) in enumerate(run.confusion.items())
    ]


def _matrix(name: str, scope: str, classes: list[str], counts: NDArray[np.float64], colour: str) -> Drawing:
    caption = f"{scope}: share of each true class's test images (row) predicted as each class (column), in percent."
    return Drawing(name, "Confusion", caption, lambda width: plots.confusion_figure(classes, counts, colour, width))


def _counted(matrix: dict[str, Any]) -> tuple[list[str], NDArray[np.float64]]:
    return [str(name) for name in matrix["classes"]], np.asarray(matrix["counts"], dtype=np.float64)


def _confused_pairs(run: Run) -> list[str]:
    """A table for each scope with more classes than its figure names."""
    parts = []
    for scope, matrix in run.confusion.items():
        classes, counts = _counted(matrix)
        if len(classes) > plots.NAMED_CLASSES and (pairs := _confused(classes, counts)):
            head = ("True class", "Predicted as", "Images", "Share of class")
            parts.append(page.paragraph(f"The most confused pairs of {scope}:") + page.table(head, pairs, text=(0, 1)))
    return parts


def _confused(classes: list[str], counts: NDArray[np.float64]) -> list[tuple[str, str, str, str]]:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]:
        true, predicted = divmod(int(flat), len(classes))
        if images := wrong[true, predicted]:
            share = f"{100 * images / counts[true].sum():.1f}%"
            rows.append((classes[true], classes[predicted], units.count(images), share))
    return rows


def _costs(summary: dict[str, Any]) -> Table:
    up, down = summary.get("uplink_bytes_per_site_round"), summary.get("downlink_bytes_per_site_round")
    trained, shared = summary.get("trainable_parameters"), summary.get("shared_parameters")
    seconds = summary.get("wall_seconds")
    rows = [
        ("Uplink per site per round", Number(units.byte_size(up), up)),
        ("Downlink per site per round", Number(units.byte_size(down), down)),
        ("Trainable parameters", Number(units.count(trained), trained)),
        ("of which shared with the server", Number(units.count(shared), shared)),
        ("Wall time", Number(units.duration(seconds), seconds)),
    ]
    return Table("cost", "What the run sent, trained and took.", ("", ""), rows)


def _privacy(summary: dict[str, Any]) -> str:
    if not (privacy := summary.get("privacy")):
        return ""
    explanation = page.paragraph(
        f"Differential privacy by {privacy['mechanism']}: two federations that differ in {privacy['relation']} can "
        "hardly be distinguished by the shared parameters of all rounds. Losses and accuracies are not covered."
    )
    rows = [
        ("Epsilon", f"{privacy['epsilon']:.3g}"),
        ("at delta", f"{privacy['delta']:.3g}"),
        ("Noise multiplier", f"{privacy['noise_multiplier']:.3g}"),
        ("Clipping norm", f"{privacy['clipping_norm']:.3g}"),
        ("Rounds of one site", units.count(privacy["releases"])),
    ]
    if local := privacy.get("local"):
        rows.append((f"Epsilon of the {local['mechanism']}, for {local['relation']}", f"{local['epsilon']:.3g}"))
    return page.section("Privacy", explanation, page.table((), rows))


def _left_out(run: Run) -> str:
    if not run.left_out:
        return page.section("Sites left out", page.paragraph("None: every answer was used."))

    def cause(row: Any) -> tuple[str, str, str]:
        return (row.site.zfill(9), row.fold or "", row.reason)

    rows = []
    for _, group in groupby(sorted(run.left_out, key=cause), key=cause):
        same = list(group)
        held_out = f" (held out: {same[0].fold})" if same[0].fold else ""
        rows.append((same[0].site, units.spans(row.round for row in same) + held_out, same[0].reason))
    explanation = page.paragraph("Sites whose answers the server did not use, and why.")
    return page.section("Sites left out", explanation, page.table(("Site", "Rounds", "Reason"), rows, text=(0, 1, 2)))


def _configuration(run: Run) -> str:
    facts = [("Backbone", str(run.summary["backbone"])), ("Fingerprint", str(run.summary.get("fingerprint", "n/a")))]
    return page.section(
        "Configuration",
        page.table((), facts, text=(0, 1)),
        page.details("config.toml: running it again gives the same run", run.config),
    )


def _versions(summary: dict[str, Any]) -> str:
    versions = [(str(name), str(version)) for name, version in (summary.get("versions") or {}).items()]
    return page.section(
        "Versions", page.table((), versions, text=(0, 1)) if versions else page.paragraph("Not recorded.")
    )
