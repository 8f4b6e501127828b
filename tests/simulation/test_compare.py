"""The commands end to end: a comparison with its table, plot and report, and the one JSON object of --json."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from fedgraft import RunConfig, UserError, compare
from fedgraft.config.registry import METHODS
from fedgraft.core.observer import Observer
from fedgraft.simulation.comparison import every_method
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

SETTINGS = {"data": "digits", "sites": 2, "rounds": 1, "shots": 2, "local_epochs": 1, "method_options": {"n_ctx": 2}}


@pytest.fixture
def _without_processes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgraft.simulation.comparison.open_engine", lambda resources: nullcontext(engine))


@pytest.mark.slow
def test_a_comparison_runs_every_method_with_every_seed_and_can_be_resumed(tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    comparison = compare(SETTINGS, ["zeroshot", "promptfl"], [0, 1], out)
    assert comparison["runs"] == ["zeroshot-seed0", "promptfl-seed0", "zeroshot-seed1", "promptfl-seed1"]
    for entry in comparison["methods"]:
        summaries = [
            json.loads((out / f"{entry['method']}-seed{seed}" / "summary.json").read_text()) for seed in (0, 1)
        ]
        values = [summary["metrics"]["hm"] for summary in summaries]
        assert entry["metrics"]["hm"] == {"mean": np.mean(values), "std": np.std(values), "values": values}
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    ended = [out / "promptfl-seed1" / name for name in ("summary.json", "report.html")]
    before = [file.stat().st_mtime_ns for file in ended]
    (out / "promptfl-seed0" / "report.html").unlink()
    with pytest.raises(UserError, match="--resume"):
        compare(SETTINGS, ["zeroshot", "promptfl"], [0, 1], out)
    assert compare(SETTINGS, ["zeroshot", "promptfl"], [0, 1], out, resume=True) == comparison
    assert [file.stat().st_mtime_ns for file in ended] == before
    assert (out / "promptfl-seed0" / "report.html").exists()


@pytest.mark.usefixtures("_without_processes")
def test_entries_have_options_and_strategies_of_their_own(engine: Engine, tmp_path: Path) -> None:
    words = "promptfl(ctx_init=a photo of a)"
    compared = ["promptfl", f"{words}+drift+anchored(drift=0.001)"]
    settings = {**SETTINGS, "lr": 0.1}
    comparison = compare(settings, compared, [0], tmp_path / "out")
    assert [entry["method"] for entry in comparison["methods"]] == compared
    plain, anchored = (tmp_path / "out" / name for name in comparison["runs"])
    assert anchored.name == "promptfl_ctx_init_a_photo_of_a_+drift+anchored_drift_0.001-seed0"
    rows = [json.loads(line) for line in (anchored / "metrics.jsonl").read_text().splitlines()]
    trained = next(row for row in rows if row["scope"] == "train")
    assert 0 <= trained["drift"] <= 0.001 < trained["aggregate_drift"]
    assert 'strategy = "drift+anchored(drift=0.001)"' in (anchored / "config.toml").read_text()
    assert "Drift" in (anchored / "report.html").read_text()
    config = RunConfig.build({**settings, "method": "promptfl"})
    alone = simulate_on(engine, config, tmp_path / "alone", False, Observer())
    assert json.loads((plain / "summary.json").read_text())["metrics"] == alone["metrics"]


@pytest.mark.slow
@pytest.mark.usefixtures("_without_processes")
def test_steps_follow_the_rules_that_merge(tmp_path: Path) -> None:
    steps = ("drift", "anchored(drift=0.0001)", "interpolate(coefficient=0)")
    settings = {**SETTINGS, "rounds": 2, "lr": 0.05, "method_options": {"rank": 2}}
    comparison = compare(settings, [f"{m}+{s}" for m in ("fedex-lora", "flora") for s in steps], [0], tmp_path / "out")
    runs = [(tmp_path / "out" / name / "metrics.jsonl").read_text().splitlines() for name in comparison["runs"]]
    rows = [[json.loads(line) for line in lines] for lines in runs]
    for free, held, undone in (rows[:3], rows[3:]):
        last_free, last_held = ([row for row in run if row["scope"] == "train"][-1] for run in (free, held))
        assert 0 < last_held["drift"] <= 1e-4 < last_held["aggregate_drift"] < last_free["drift"]
        accuracies = [[row["accuracy"] for row in undone if row["round"] == r and "accuracy" in row] for r in (0, 1, 2)]
        assert accuracies[0] == accuracies[2] != accuracies[1]


@pytest.mark.parametrize(
    ("methods", "seeds", "options", "word"),
    [
        ([], [0], {}, "at least one method"),
        (["local", "local"], [0], {}, "once"),
        (["zeroshot", "local"], [0], {"mu": 1.0}, "mu"),
        (["zeroshot", "nonsense"], [0], {}, "nonsense"),
        (["zeroshot+median"], [0], {}, "takes no strategy"),
        (["promptfl+anchored(drift=0)"], [0], {}, "'drift' of 'anchored' has the value 0"),
        (["promptfl+nonsense"], [0], {}, "nonsense"),
        (["+median"], [0], {}, "names no method"),
    ],
)
def test_a_mistaken_comparison_is_refused_before_anything_runs(
    tmp_path: Path, methods: list[str], seeds: list[int], options: dict[str, float], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        compare({**SETTINGS, "method_options": options}, methods, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_json_prints_the_summary_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fedgraft", "simulate", "--data", "digits", "--sites", "2", "--rounds", "1"]
    command += ["--shots", "2", "--method", "promptfl", "--set", "n_ctx=2", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads((out / "summary.json").read_text())
    assert (out / "report.html").is_file()


def test_all_methods_are_those_that_the_settings_allow_and_the_others_are_named() -> None:
    names, left_out = every_method({"data": "shapes"})
    assert names == list(METHODS.names())
    assert left_out == []
    names, left_out = every_method({"data": "shapes", "strategy": "median"})
    assert "promptfl" in names
    assert "zeroshot" not in names
    assert any(sentence.startswith("zeroshot is left out. ") and "trains nothing" in sentence for sentence in left_out)
    assert {sentence.split()[0] for sentence in left_out} == {*METHODS.names()} - {*names}


def test_all_methods_refused_are_one_mistake_in_the_settings() -> None:
    with pytest.raises(UserError, match=r"No method can be run with these settings; .* is left out"):
        every_method({"data": "shapes", "backbone": "./nowhere"})
