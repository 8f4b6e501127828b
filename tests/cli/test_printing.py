"""What a command prints of a run, on a terminal that would act on markup and control characters."""

import json
from pathlib import Path

import pytest

from fedgraft.cli.printing import print_summary

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
