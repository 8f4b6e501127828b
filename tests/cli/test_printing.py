"""What a command prints of a run, on a terminal that would act on markup and control characters."""

import json
from pathlib import Path

import pytest

from fedgraft.cli.printing import print_comparison, print_summary

KEPT = Path(__file__).parents[1] / "runs" / "written_by_0_1_0" / "summary.json"


def test_a_site_that_was_often_left_out_is_named_with_its_most_frequent_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = {"the disk is \x1b[31m[bold]full[/bold]": 3, "late": 1}
    entry = {"site": 3, "name": "north", "times": 4, "reasons": reasons}
    print_summary(json.loads(KEPT.read_text()) | {"often_left_out": [entry]}, Path("report.html"))
    printed = capsys.readouterr().out
    assert "Site 3 (north) was left out 4 times, most often because: the disk is (31m(bold)full(/bold)" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]])
def test_every_heading_and_figure_of_a_comparison_fits_a_terminal_of_80_columns(
    seeds: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    metrics = {
        key: {"mean": 10.0 * number + 12.34, "std": 0.5}
        for number, key in enumerate(("local", "base", "novel", "hm", "hm2", "cm", "base_all"))
    }
    entry = {"metrics": metrics, "uplink_bytes_per_site_round": 1_063_198, "wall_seconds": 1234.0}
    methods = [{"method": name, **entry} for name in ("zeroshot", "fedpgp+anchored(drift=0.05)")]
    told = {"protocol": "base-to-novel", "data": "digits", "sites": 5, "rounds": 10, "seeds": seeds}
    print_comparison({**told, "methods": methods}, Path("report.html"))
    printed = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    figures = ("12.3", "22.3", "32.3", "42.3", "52.3", "62.3", "72.3", "1,063,198", "1234")
    headings = ("Local", "Base", "Novel", "HM", "HM2", "CM", "All", "base", "uplink", "bytes", "time", "in s")
    for word in (*headings, *figures):
        assert f" {word} " in printed.replace("\n", " ")


def test_a_table_that_goes_to_a_file_keeps_every_column_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    metrics = {key: {"mean": 71.7, "std": 0.8} for key in ("local", "base", "novel", "hm", "hm2", "cm", "base_all")}
    entry = {"metrics": metrics, "uplink_bytes_per_site_round": 1_063_198, "wall_seconds": 1234.0}
    told = {"protocol": "base-to-novel", "data": "digits", "sites": 5, "rounds": 10, "seeds": [0, 1]}
    print_comparison({**told, "methods": [{"method": "fedpgp+anchored(drift=0.05)", **entry}]}, None)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "fedpgp" in line]
    assert row.split() == ["fedpgp+anchored(drift=0.05)", *["71.7", "±", "0.8"] * 7, "1,063,198", "1234"]
