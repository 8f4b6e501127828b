"""What a run promises: the same result whatever is killed, personal state that stays, honest rows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from fedgraft import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.observer import Observer
from fedgraft.data.sources import shapes
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on

CONFIG = RunConfig(method="fedpgp", data="digits", sites=3, rounds=4, shots=4, method_options={"n_ctx": 4})
WIDTH = 128


@pytest.fixture(scope="module")
def finished(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return out, simulate_on(engine, CONFIG, out, False, Observer())


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _names(path: Path) -> set[str]:
    with safe_open(path, framework="numpy") as file:
        return set(file.keys())


class Started:
    """`fedgraft simulate` in a process group of its own, up to the checkpoint of a round."""

    def __init__(self, folder: Path, server_round: int) -> None:
        self.out, config = folder / "run", folder / "run.toml"
        config.write_text(CONFIG.to_toml())
        command = [sys.executable, "-m", "fedgraft", "simulate", "--config", str(config), "--out", str(self.out)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        while not (self.out / "checkpoints" / f"fold-000-round-{server_round:06d}.safetensors").exists():
            assert self.process.poll() is None, "the run ended before anything could happen to it"
            time.sleep(0.01)

    def wait(self) -> str:
        """The last line of what it said, once the whole group is gone; the test's own limit is the limit."""
        _, errors = self.process.communicate()
        while _group_lives(self.process.pid):
            time.sleep(0.1)
        assert not (self.out / "summary.json").exists()
        return (errors.decode().splitlines() or [""])[-1]


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_run_killed_in_the_middle_and_resumed_gives_the_same_metrics(
    finished: tuple[Path, dict[str, Any]], engine: Engine, tmp_path: Path
) -> None:
    """Its worker processes end by themselves."""
    started = Started(tmp_path, 2)
    started.process.kill()
    started.wait()
    resumed = simulate_on(engine, CONFIG, started.out, True, Observer())
    assert resumed["metrics"] == finished[1]["metrics"]
    assert resumed["uplink_bytes_per_site_round"] == finished[1]["uplink_bytes_per_site_round"]
    kept = [(row["round"], row["scope"]) for row in _rows(started.out)]
    assert kept == [(row["round"], row["scope"]) for row in _rows(finished[0])]


@pytest.mark.slow
def test_an_interrupted_run_ends_and_leaves_nothing_running(
    finished: tuple[Path, dict[str, Any]], engine: Engine, tmp_path: Path
) -> None:
    """Ctrl-C during a round: one sentence, no process left, and `--resume` gets to the same metrics."""
    started = Started(tmp_path, 1)
    os.killpg(started.process.pid, signal.SIGINT)
    assert started.wait() == "fedgraft: The run was stopped; resume it with --resume."
    assert started.process.returncode == 1
    assert simulate_on(engine, CONFIG, started.out, True, Observer())["metrics"] == finished[1]["metrics"]


def test_personal_parameters_stay_at_the_site_and_survive(finished: tuple[Path, dict[str, Any]]) -> None:
    """T4: the server's checkpoint holds the shared prompt alone, each site its own U and V of the last round."""
    run, summary = finished
    assert _names(run / "checkpoints" / "fold-000-round-000004.safetensors") == {"sigma"}
    states = sorted(run.glob("sites/000/*/round-000004.safetensors"))
    assert len(states) == CONFIG.sites
    values = []
    for state in states:
        assert _names(state) == {"U", "V"}
        with safe_open(state, framework="numpy") as file:
            values.append(file.get_tensor("U"))
    assert not np.array_equal(values[0], values[1])
    assert summary["shared_parameters"] == 4 * WIDTH


def test_the_uplink_is_the_shared_context_and_an_envelope(finished: tuple[Path, dict[str, Any]]) -> None:
    payload = 4 * WIDTH * 4
    assert payload < finished[1]["uplink_bytes_per_site_round"] < payload + 512


def test_the_last_round_is_reported_never_the_best(finished: tuple[Path, dict[str, Any]]) -> None:
    """T3, against the rows on disk."""
    run, summary = finished
    by_round = {(row["round"], row["scope"]): row for row in _rows(run)}
    for scope in ("local", "base", "novel"):
        assert summary["metrics"][scope] == by_round[4, scope]["accuracy"]
        mean = np.mean([by_round[server_round, scope]["accuracy"] for server_round in range(5)])
        assert summary["metrics_last5"][scope] == pytest.approx(mean)
        assert by_round[4, scope]["accuracy"] == pytest.approx(np.mean(list(by_round[4, scope]["sites"].values())))


def test_the_summary_and_the_run_directory_hold_what_is_promised(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    promised = (
        "method data protocol backbone fingerprint sites rounds seed metrics uplink_bytes_per_site_round "
        "downlink_bytes_per_site_round trainable_parameters wall_seconds versions"
    )
    assert set(promised.split()) <= set(summary)
    assert summary == json.loads((run / "summary.json").read_text())
    assert RunDirectory(run).config() == CONFIG
    confusion = json.loads((run / "confusion.json").read_text())["scopes"]["novel"]
    assert confusion["classes"] == ["seven", "six", "three", "two", "zero"]
    assert np.trace(confusion["counts"]) / np.sum(confusion["counts"]) * 100 == pytest.approx(
        summary["metrics"]["novel"], abs=1e-9
    )


def test_another_run_is_not_overwritten_and_a_changed_one_not_resumed(
    finished: tuple[Path, dict[str, Any]], engine: Engine
) -> None:
    run, summary = finished
    with pytest.raises(UserError, match="--resume"):
        simulate_on(engine, CONFIG, run, False, Observer())
    with pytest.raises(UserError, match="lr"):
        simulate_on(engine, CONFIG.model_copy(update={"lr": 0.5}), run, True, Observer())
    assert simulate_on(engine, CONFIG, run, True, Observer()) == summary


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.lock()
    with pytest.raises(UserError, match="Another process"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


class _Saboteur(Observer):
    """Tears the state files of some sites after the first round."""

    def __init__(self, run: Path, sites: str) -> None:
        self.run, self.sites = run, sites
        self.heard: list[tuple[int, int, str]] = []

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        if server_round == 1:
            for path in self.run.glob(f"sites/000/{self.sites}/round-*.safetensors"):
                path.write_bytes(path.read_bytes()[:50])

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        self.heard.append((server_round, site, reason))


def test_a_site_that_fails_is_named_and_left_out_and_the_run_goes_on(engine: Engine, tmp_path: Path) -> None:
    observer = _Saboteur(tmp_path / "run", "000001")
    summary = simulate_on(engine, CONFIG.model_copy(update={"rounds": 2}), tmp_path / "run", False, observer)
    assert {(server_round, site) for server_round, site, _ in observer.heard} == {(2, 1)}
    assert "round-000001.safetensors cannot be read" in observer.heard[0][2]
    rows = _rows(tmp_path / "run")
    assert next(row for row in rows if row["scope"] == "train" and row["round"] == 2)["sites"] == [0, 2]
    assert [row["site"] for row in rows if row["scope"] == "left_out"] == [1, 1]
    assert summary["left_out"] == 2


def test_a_run_below_its_quorum_ends_with_the_reasons(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed, match=r"Round 2 has 0 valid answers of 3, but the quorum is 2\. site 0: The personal"
    ):
        simulate_on(engine, CONFIG, tmp_path / "run", False, _Saboteur(tmp_path / "run", "*"))


@pytest.mark.parametrize(
    ("protocol", "data", "method", "keys"),
    [
        ("leave-one-domain-out", "shapes:flat,noisy,scene", "promptfl", {"per_domain", "mean"}),
        ("dirichlet", "digits", "local", {"accuracy", "worst_site", "std"}),
        ("base-to-novel", "digits", "zeroshot", {"local", "base", "novel", "hm", "hm2", "cm", "base_all"}),
    ],
)
def test_every_protocol_reports_its_metrics(
    engine: Engine, tmp_path: Path, protocol: str, data: str, method: str, keys: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shapes, "IMAGES_PER_CLASS_AND_STYLE", 1)
    config = RunConfig.build(
        {"method": method, "data": data, "protocol": protocol, "sites": 2, "rounds": 1, "shots": 1, "local_epochs": 1}
    )
    summary = simulate_on(engine, config, tmp_path / "run", False, Observer())
    assert set(summary["metrics"]) == keys
    if protocol == "leave-one-domain-out":
        assert list(summary["metrics"]["per_domain"]) == ["flat", "noisy", "scene"]
    if method == "local":
        assert summary["uplink_bytes_per_site_round"] < 512
        assert summary["shared_parameters"] == 0
    if method == "zeroshot":
        assert summary["trainable_parameters"] == summary["uplink_bytes_per_site_round"] == 0


def test_fewer_evaluations_change_the_rows_and_not_the_result(
    finished: tuple[Path, dict[str, Any]], engine: Engine, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"eval_every": 3})
    summary = simulate_on(engine, config, tmp_path / "run", False, Observer())
    assert {row["round"] for row in _rows(tmp_path / "run") if row["scope"] == "novel"} == {0, 3, 4}
    assert summary["metrics"] == finished[1]["metrics"]
