"""What a reader of a comparison would lose: the rounds and sites of its runs, under any protocol."""

import json
from pathlib import Path

import pytest

from fedgraft.core.errors import UserError
from fedgraft.reports.compared_runs import read_compared_runs
from tests.reports.test_pages import SCOPES, write_run

DRAWN = {
    "base-to-novel": ["local", "base", "novel", "hm"],
    "leave-one-domain-out": ["mean"],
    "dirichlet": ["accuracy", "worst_site"],
}


@pytest.mark.parametrize("protocol", SCOPES)
def test_runs_give_results_by_round_and_accuracies_by_site(tmp_path: Path, protocol: str) -> None:
    names = ["a-seed0", "b-seed0", "a-seed1", "gone-seed1"]
    for name in names[:3]:
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, protocol)
    if "base_all" in SCOPES[protocol]:
        rows = [json.loads(line) for line in (tmp_path / names[0] / "metrics.jsonl").read_text().splitlines()]
        expected = next(row for row in rows if row["round"] == 3 and row["scope"] == "novel")["accuracy"]
    comparison = {"protocol": protocol, "seeds": [0, 1], "methods": [{"method": "a"}, {"method": "b"}], "runs": names}
    found = read_compared_runs(comparison, tmp_path)
    assert found.absent == ["gone-seed1"]
    assert list(found.curves) == DRAWN[protocol]
    for methods in found.curves.values():
        assert [len(methods[name]) for name in ("a", "b")] == [2, 1]
        assert list(methods["a"][0]) == [0, 1, 2, 3]
    if "base_all" in SCOPES[protocol]:
        assert found.curves["novel"]["a"][0][3] == pytest.approx(expected)
        assert list(found.sites) == ["local", "base", "novel"]
    assert {len(methods["a"]) for methods in found.sites.values()} == {6}, "three sites with two seeds"


def test_a_comparison_without_its_runs_is_reported_without_them(tmp_path: Path) -> None:
    comparison = {"protocol": "dirichlet", "seeds": [0], "methods": [{"method": "a"}], "runs": []}
    assert not read_compared_runs(comparison, tmp_path).curves


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-seed0").mkdir()
    (write_run(tmp_path / "a-seed0", "dirichlet") / "metrics.jsonl").write_text("torn\n{}\n")
    comparison = {"protocol": "dirichlet", "seeds": [0], "methods": [{"method": "a"}], "runs": ["a-seed0"]}
    with pytest.raises(UserError, match=r"Line 1 of .*metrics\.jsonl"):
        read_compared_runs(comparison, tmp_path)
