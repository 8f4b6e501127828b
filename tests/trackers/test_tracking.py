"""What a user of trackers would lose: rows while the run goes on, a whole record, and a run that no tracker can end."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.observer import Observer
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.simulate import simulate
from fedgraft.trackers import tracker as trackers_module
from fedgraft.trackers.series import results_of, values_of
from fedgraft.trackers.tracker import Record, TrackedRun, Tracker, load_trackers
from fedgraft.trackers.tracking import Tracking, TrackingObserver, track
from tests.trackers.conftest import finish, rows_of_a_run, write_rows


class Kept(Record):
    """Keeps what it is sent."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.results: dict[str, float] | None = None
        self.run: TrackedRun | None = None
        self._fails_at = fails_at

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step == self._fails_at:
            raise ConnectionError("the disk\nis full")
        self.steps.append((step, dict(values)))

    def close(self, results: Mapping[str, float]) -> None:
        self.results = dict(results)

    def tracker(self, name: str = "kept") -> Tracker:
        def begin(run: TrackedRun) -> Record:
            self.run = run
            return self

        return Tracker(name, "for tests", begin, library="json", extra="kept")


def _ignore(tracker: Tracker, reason: str) -> None:
    raise AssertionError(reason)


def test_rows_arrive_while_the_run_goes_on_each_once(run: Path) -> None:
    rows = rows_of_a_run()
    (run / "summary.json").unlink()
    write_rows(run, rows[:1])
    kept = Kept()
    tracking = Tracking(run, run.parent, [kept.tracker()], _ignore)
    tracking.look()
    assert kept.steps == [(0, {"accuracy/target/photo": 60.0, "worst_site/target/photo": 50.0})]
    write_rows(run, rows)
    tracking.look()
    tracking.look()
    finish(run)
    tracking.close()
    everything = [name for _, values in kept.steps for name in values if name == "accuracy/target/photo"]
    assert len(everything) == 3
    round_1 = next(values for step, values in kept.steps if step == 1)
    assert round_1["left_out/photo"] == 2
    assert round_1["train/loss/photo"] == 1.0
    assert kept.results is not None
    assert kept.results["result/domain:photo"] == 62.0
    assert kept.results["cost/wall_seconds"] == 3.5
    assert kept.run is not None
    assert (kept.run.name, kept.run.root) == ("promptfl-seed0", run.parent)
    assert kept.run.config["method"] == "promptfl"


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    kept = Kept()
    tracking = Tracking(tmp_path / "later", tmp_path, [kept.tracker()], _ignore)
    tracking.look()
    tracking.close()
    assert kept.run is None


def test_a_run_without_folds_has_plain_names() -> None:
    row = {"round": 3, "fold": None, "scope": "local", "accuracy": None, "sites": {"0": None}}
    assert values_of(row, [row]) == {}
    row = {"round": 3, "fold": None, "scope": "train", "loss": 0.5, "sites": [1], "unused": "too few"}
    assert values_of(row, [row]) == {"train/loss": 0.5}


def test_privacy_that_was_spent_is_a_result() -> None:
    assert results_of({"metrics": {"hm": 1.0}, "privacy": {"epsilon": 2}}) == {"result/hm": 1.0, "privacy/epsilon": 2.0}


def test_a_tracker_that_fails_is_given_up_and_the_others_go_on(run: Path) -> None:
    broken, whole = Kept(fails_at=1), Kept()
    told: list[tuple[str, str]] = []
    tracking = Tracking(
        run,
        run,
        [broken.tracker("broken"), whole.tracker()],
        lambda tracker, reason: told.append((tracker.name, reason)),
    )
    tracking.close()
    assert [name for name, _ in told] == ["broken"]
    assert "\n" not in told[0][1]
    assert [step for step, _ in whole.steps] == [0, 1, 2]
    assert whole.results
    assert broken.results is None


def test_a_failure_is_a_notice_of_one_line_and_never_ends_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, notices = Kept(fails_at=0), []

    class Told(Observer):
        def on_notice(self, sentence: str) -> None:
            notices.append(sentence)

    monkeypatch.setattr("fedgraft.trackers.tracking.load_trackers", lambda names: [broken.tracker()])
    observer = TrackingObserver(["kept"], run, Told())
    observer.on_run_start(run)
    observer.on_round_end(1, 2, {})
    (run / "metrics.jsonl").write_text("nothing of use\n\n")
    observer.on_run_end(run)
    assert len(notices) == 1
    assert "which goes on" in notices[0]
    write_rows(run, rows_of_a_run())
    with pytest.raises(RunFailed, match="The tracker kept failed"):
        track(run, ["kept"])


def test_all_runs_of_a_comparison_are_sent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"data": "shapes", "protocol": "leave-one-domain-out", "sites": 4, "rounds": 2, "seeds": [0]}
    content |= {"methods": [{"method": "promptfl", "metrics": {}}], "runs": [run.name, "gone-seed0"]}
    RunDirectory(run.parent).write_json("comparison.json", content)
    kept = Kept()
    monkeypatch.setattr("fedgraft.trackers.tracking.load_trackers", lambda names: [kept.tracker()])
    assert track(run.parent, ["kept"]) == [run]
    assert kept.run is not None
    assert kept.run.root == run.parent


def test_mistakes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"There is no tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        load_trackers(["tensorbord"])
    monkeypatch.setattr(trackers_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "fedgraft\[wandb\]"'):
        load_trackers(["wandb"])
    monkeypatch.undo()
    monkeypatch.setattr("fedgraft.trackers.tracking.load_trackers", lambda names: [])
    with pytest.raises(UserError, match="holds no run"):
        track(tmp_path, ["tensorboard"])
    with pytest.raises(UserError, match="holds no run"):
        track(tmp_path / "absent", ["tensorboard"])


def test_trackers_cost_nothing_until_one_is_opened() -> None:
    code = "import sys; from fedgraft.config.registry import TRACKERS; assert len(list(TRACKERS)) >= 3; "
    code += "print(sorted({'mlflow', 'tensorboard', 'wandb', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow  # a simulation starts worker processes
def test_a_simulation_is_tracked_as_it_goes_and_again_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[Kept] = []

    def load(names: list[str]) -> list[Tracker]:
        return [Tracker("kept", "for tests", lambda run: records.append(Kept()) or records[-1], library="", extra="")]

    monkeypatch.setattr("fedgraft.trackers.tracking.load_trackers", load)
    config = RunConfig(method="zeroshot", data="digits", sites=2, shots=1)
    summary = simulate(config, tmp_path / "run", observer=TrackingObserver(["kept"], tmp_path, Observer()))
    for _ in range(2):
        found = {name: value for _, values in records[-1].steps for name, value in values.items()}
        assert found["accuracy/novel"] == pytest.approx(summary["metrics"]["novel"])
        assert records[-1].results is not None
        assert records[-1].results["result/hm"] == pytest.approx(summary["metrics"]["hm"])
        observer = TrackingObserver(["kept"], tmp_path, Observer())
        simulate(config, tmp_path / "run", resume=True, observer=observer)
    assert len(records) == 3
