"""Results as tables on a terminal."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedgraft.cli.consoles import table_console
from fedgraft.config.registry import PROTOCOLS
from fedgraft.core.plain_text import NAME_LENGTH, plain
from fedgraft.data.protocols.protocol import flat_results

if TYPE_CHECKING:
    from fedgraft.edge_export.bundle_manifest import CutsRecord
    from fedgraft.edge_export.draft import Exported


_METHOD_WIDTH = 12
"""Characters that the names of methods keep however many results stand beside them."""


def print_summary(summary: dict[str, Any], report: Path) -> None:
    """The results of a run."""
    protocol = PROTOCOLS.load(summary["protocol"])
    metrics, last5 = flat_results(summary["metrics"]), flat_results(summary["metrics_last5"])
    method = "+".join(filter(None, (summary["method"], summary.get("strategy"))))
    table = Table(title=f"{method} on {summary['data']}, {summary['protocol']}, {summary['sites']} sites")
    table.add_column("percent")
    for name in metrics:
        table.add_column(protocol.metric(name).label, justify="right")
    table.add_row("last round", *(f"{value:.2f}" for value in metrics.values()))
    table.add_row("mean of last five", *(f"{value:.2f}" for value in last5.values()))
    console = table_console()
    console.print(table)
    console.print(
        f"{summary['trainable_parameters']:,} trainable and {summary['shared_parameters']:,} shared parameters, "
        f"{summary['uplink_bytes_per_site_round']:,} bytes uplink and "
        f"{summary['downlink_bytes_per_site_round']:,} bytes downlink per site per round, "
        f"{summary['wall_seconds']:.0f} s."
    )
    if privacy := summary.get("privacy"):
        for account in filter(None, (privacy, privacy.get("local"))):
            console.print(f"{account['mechanism']}: epsilon {account['epsilon']:.3g} at delta {account['delta']:.3g}.")
    for entry in summary.get("often_left_out", []):
        name = f" ({plain(entry['name'], NAME_LENGTH)})" if entry.get("name") else ""
        most = max(entry["reasons"], key=lambda reason: entry["reasons"][reason])
        sentence = f"Site {entry['site']}{name} was left out {entry['times']} times, most often because: {plain(most)}"
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"Report: {report}", soft_wrap=True)


def print_comparison(
    comparison: dict[str, Any],
    report: Path | None,
    only: Collection[str] = (),
    console: Console | None = None,
    timed: bool = True,
) -> None:
    """The table of a comparison; mean and standard deviation where there are several seeds.

    Args:
        report: mentioned below the table, if given.
        only: the metrics to show, instead of all.
        console: where to print, instead of the terminal.
        timed: whether the table has the seconds of a run.
    """
    protocol = PROTOCOLS.load(comparison["protocol"])
    seeds = comparison["seeds"]
    title = (
        f"{comparison['data']}, {comparison['protocol']}, {comparison['sites']} sites, {comparison['rounds']} rounds"
    )
    table = Table(title=f"{title}, seeds {', '.join(map(str, seeds))}", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 0, 0, 1)  # ten columns on 80 characters
    table.add_column("method", overflow="fold", min_width=_METHOD_WIDTH)  # entries may differ at their ends alone
    names = [name for name in comparison["methods"][0]["metrics"] if not only or name in only]
    for name in names:
        label = protocol.metric(name).label.replace(" ", "\n")
        table.add_column(label, justify="right", overflow="fold", min_width=len("100.0"))
    table.add_column("uplink\nbytes", justify="right", no_wrap=True)
    if timed:
        table.add_column("time\nin s", justify="right", no_wrap=True)
    published = comparison.get("published", [])
    console = console or table_console()
    broken = console.width < _METHOD_WIDTH + len(" 100.0 ± 0.0") * len(names) + 20
    for entry in comparison["methods"]:
        cells = [_cell(entry["metrics"][name], len(seeds), "\n" if broken else " ") for name in names]
        cost = [f"{entry['uplink_bytes_per_site_round']:,}", *([f"{entry['wall_seconds']:.0f}"] if timed else [])]
        table.add_row(entry["method"], *cells, *cost, end_section=bool(published))
    for number, row in enumerate(published, 1):
        values = [row["metrics"].get(name) for name in names]
        shown = ["" if value is None else f"{value:.1f}" for value in values]
        table.add_row(f"{row['method']}, published \\[{number}]", *shown)
    console.print(table)
    for number, row in enumerate(published, 1):
        console.print(f"[{number}] {source_of(row)}", markup=False, soft_wrap=True)
    for sentence in comparison.get("missing", []):
        console.print(sentence, markup=False, soft_wrap=True)
    if report is not None:
        console.print(f"Report: {report}", soft_wrap=True)


def runs_table(runs: list[dict[str, Any]]) -> Table:
    """The runs that a site was asked for."""
    table = Table()
    for column in ("run", "state", "asked (UTC)", "method", "rounds", "seconds", "bytes"):
        table.add_column(column, overflow="fold", justify="right" if column in ("seconds", "bytes") else "left")
    for run in runs:
        method = "+".join(filter(None, (run["method"], ascii(run["strategy"])[1:-1])))
        done, cost = f"{run['rounds']} of {run['of']}", (f"{run['seconds']:.1f}", f"{run['bytes']:,}")
        asked = run["asked"][:16].replace("T", " ")
        cells = (run["run"], run["state"], asked, method, done, *cost)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def source_of(row: dict[str, Any]) -> str:
    """Where a published figure is from, who measured it, and what it was compared with."""
    where = f", {row['dataset']}" if row.get("dataset") else ""
    copied = f"; by {row['copied_from']}" if row.get("copied_from") else ""
    checked = f"checked on {row['checked']}" if row.get("checked") else "as copied, not checked"
    return f"{row['source']}{where}{copied}; {checked}."


def print_export(written: "Exported") -> None:
    """What was written and how it was measured."""
    manifest = written.manifest
    parity, kept, fitted = manifest.parity, manifest.generalization, manifest.calibration
    size = sum(entry.bytes for entry in manifest.files.values())
    lines = [
        f"Wrote {written.out}: {size / 1e6:.2f} MB, {manifest.classes} classes, {manifest.model.quantization} weights, "
        f"sparsity {manifest.ticket.spec['sparsity']}.",
        f"Same class as the torch tower on {parity.top1_agreement:.2f} % of {parity.images} images, centred cosine "
        f"{parity.centred_cosine:.4f}.",
    ]
    if parity.saturation is not None:
        pairs = parity.saturation.pairs
        lines.append(
            f"{pairs:,} pairs of its 8-bit weights can saturate on a processor without VNNI."
            if pairs
            else "Its 8-bit products saturate on no processor: every device computes the same integers."
        )
    lines += [
        f"For {target.name} {target.version} ({', '.join(target.files)}): {target.parity.top1_agreement:.2f} %, "
        f"centred cosine {target.parity.centred_cosine:.4f}."
        for target in manifest.targets
    ]
    if kept is not None:
        lines.append(
            f"Accuracy on {kept.images} test images of the scope {kept.scope!r}: {kept.bundle:.2f} %, dense "
            f"{kept.dense:.2f} %."
        )
    if manifest.cuts is not None:
        lines += _cuts(manifest.cuts)
    if fitted.ece is not None:
        where = "held-out" if fitted.held_out else "training"
        lines.append(
            f"Calibration error on {fitted.images} {where} images: {fitted.ece_before:.1f} % before, "
            f"{fitted.ece:.1f} % at temperature {fitted.temperature:.2f}; images below probability "
            f"{fitted.unknown_below:.3f} are unknown."
        )
    lines += [f"Forced: {sentence}" for sentence in manifest.forced]
    lines.append(f"Signed by {written.signer.hex()}.")
    for line in lines:
        print(line)


def _cuts(cuts: "CutsRecord") -> list[str]:
    """What the classifier was cut to, and the accuracy of each cut."""
    layers = "all layers" if cuts.depth is None else f"{cuts.depth} layers"
    lines = [f"The classifier is cut to {cuts.dim} of {cuts.whole_dim} dimensions and {layers}."]
    if cuts.scope is None:
        return lines
    lines.append(f"Accuracy of each cut on {cuts.images} test images of the scope {cuts.scope!r}, in float32:")
    for depth in dict.fromkeys(cut.depth for cut in cuts.cuts):
        own = ", ".join(f"{cut.accuracy:.2f} % at {cut.dim}" for cut in cuts.cuts if cut.depth == depth)
        lines.append(f"  {'all' if depth is None else depth} layers: {own} dimensions")
    return lines


def _cell(statistics: dict[str, float], seeds: int, between: str) -> str:
    spread = f"{between}± {statistics['std']:.1f}" if seeds > 1 else ""
    return f"{statistics['mean']:.1f}{spread}"
