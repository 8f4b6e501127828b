"""Rows of tickets and of exported models become a page with figures and tables."""

import json
from pathlib import Path

import pytest

from fedgraft.core.errors import UserError
from fedgraft.reports.edge import accuracy_figure, ticket_table, write_edge_report


def _row(pattern: str, sparsity: float, induction: str, seed: int, base: float) -> dict[str, object]:
    return {
        "pattern": pattern, "sparsity": sparsity, "induction": induction, "seed": seed,
        "base": base, "novel": base + 1, "attacked": base - 1,
    }  # fmt: skip


ROWS = [
    _row("structured", 0.5, "pgd", 0, 50.0),
    _row("structured", 0.5, "pgd", 1, 54.0),
    _row("structured", 0.5, "none", 0, 40.0),
    _row("dense", 0.0, "none", 0, 60.0),
]


def test_the_table_has_mean_and_deviation_over_seeds_and_the_dense_tower_first() -> None:
    head, lines = ticket_table(ROWS)
    assert head == ["pattern", "removed", "ticket", "seeds", "base", "novel", "attacked"]
    assert lines[0] == ["dense", "0 %", "natural", "1", "60.0", "61.0", "59.0"]
    assert lines[1][2:5] == ["natural", "1", "40.0"]
    assert lines[2][2:5] == ["robust (pgd)", "2", "52.0 ± 2.8"]


def test_every_kind_is_a_line_through_its_means() -> None:
    axes = accuracy_figure(ROWS, ["base"]).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}  # type: ignore[union-attr]
    assert lines["natural"] == [[0.0, 60.0], [50.0, 40.0]]
    assert lines["robust (pgd)"] == [[50.0, 52.0]]


def test_the_page_holds_what_the_folder_has(tmp_path: Path) -> None:
    latency = {"name": "dense <int8>", "megabytes": 80.0, "ms": 60.0}
    (tmp_path / "latency.jsonl").write_text(json.dumps(latency) + "\n")
    only = write_edge_report(tmp_path).read_text()
    assert "Latency against size" in only
    assert "Accuracy against sparsity" not in only
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"torn": ')
    page = write_edge_report(tmp_path).read_text()
    assert page.count("<svg") == 2
    assert "52.0 ± 2.8" in page
    assert "dense &lt;int8&gt;" in page
    assert (tmp_path / "tickets.svg").read_text().count("<svg") == 1


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tickets\.jsonl nor latency\.jsonl"):
        write_edge_report(tmp_path)
    (tmp_path / "tickets.jsonl").write_text("torn\n{}\n")
    with pytest.raises(UserError, match=r"Line 1 of .* is not JSON"):
        write_edge_report(tmp_path)
