"""The page of one run: its results by round and by site, its costs, and how to reproduce it."""

from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedgraft.data.protocols.protocol import flat_results
from fedgraft.reports import elements as page
from fedgraft.reports import plots, units
from fedgraft.reports.reading import Run
from fedgraft.reports.retention import retention_section

CONFUSED_PAIRS = 10


def run_page(run: Run) -> str:
    """The report of a run as HTML."""
    summary = run.summary
    method = "+".join(filter(None, (summary["method"], summary.get("strategy"))))
    title = f"{method} on {summary['data']}"
    subtitle = (
        f"The method {method} under the protocol {summary['protocol']}: "
        f"{units.plural(summary['sites'], 'site')}, {units.plural(summary['rounds'], 'round')}, "
        f"seed {summary['seed']}, on the frozen backbone {summary['backbone']}."
    )
    sections = (_result(run), _rounds(run), _sites(run), retention_section(summary), _confusion(run), _cost(summary))
    rest = (_privacy(summary), _left_out(run), _configuration(run), _versions(summary))
    return page.document(title, subtitle, [*sections, *rest])


def _result(run: Run) -> str:
    summary = run.summary
    last, last5 = flat_results(summary["metrics"]), flat_results(summary.get("metrics_last5") or {})
    shown = {key: run.protocol.metric(key) for key in last}
    rows = [
        (shown[key].label, units.number(value), units.number(last5.get(key)), shown[key].meaning)
        for key, value in last.items()
    ]
    return page.section("Result", page.table(("Percent", "Last round", "Mean of last 5", ""), rows, text=(0, 3)))


def _rounds(run: Run) -> str:
    if not run.accuracy:
        return ""
    series = {name: [(row.round, row.mean) for row in rows] for name, rows in run.accuracy.items()}
    caption = "Accuracy on test images after each round, in percent, mean over sites. Round 0 is before any training."
    parts = [page.figure(plots.rounds_figure(series, run.colours(series), "accuracy, %", 1), "accuracy", caption)]
    if run.loss:
        plot = plots.rounds_figure(run.loss, run.colours(run.loss), "training loss", 3)
        parts.append(page.figure(plot, "loss", "Mean training loss of each round."))
    if run.drift:
        caption = (
            "Drift: mean cosine distance between the text features of classes that no site has, under the shared "
            "parameters, and the hand-written ones."
        )
        parts.append(page.figure(plots.rounds_figure(run.drift, run.colours(run.drift), "drift", 3), "drift", caption))
    return page.section("Round by round", *parts)


def _sites(run: Run) -> str:
    last = {name: rows[-1].sites for name, rows in run.accuracy.items() if rows[-1].sites}
    if not last:
        return ""
    caption = "Accuracy of each site after the last round, in percent; the dashed line is the mean over sites."
    return page.section("Site by site", page.figure(plots.sites_figure(last, run.colours(last)), "sites", caption))


def _confusion(run: Run) -> str:
    parts = []
    chosen = run.colours(run.confusion)
    for number, (scope, matrix) in enumerate(run.confusion.items()):
        classes = [str(name) for name in matrix["classes"]]
        counts = np.asarray(matrix["counts"], dtype=np.float64)
        caption = f"{scope}: share of each true class's test images (row) predicted as each class (column), in percent."
        plot = plots.confusion_figure(classes, counts, chosen[scope])
        parts.append(page.figure(plot, f"confusion{number}", caption))
        if len(classes) > plots.NAMED_CLASSES and (pairs := _confused(classes, counts)):
            head = ("True class", "Predicted as", "Images", "Share of class")
            parts.append(page.paragraph(f"The most confused pairs of {scope}:") + page.table(head, pairs, text=(0, 1)))
    return page.section("Confusion", *parts)


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


def _cost(summary: dict[str, Any]) -> str:
    rows = [
        ("Uplink per site per round", units.byte_size(summary.get("uplink_bytes_per_site_round"))),
        ("Downlink per site per round", units.byte_size(summary.get("downlink_bytes_per_site_round"))),
        ("Trainable parameters", units.count(summary.get("trainable_parameters"))),
        ("of which shared with the server", units.count(summary.get("shared_parameters"))),
        ("Wall time", units.duration(summary.get("wall_seconds"))),
    ]
    return page.section("Cost", page.table((), rows))


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
