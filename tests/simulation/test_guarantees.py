"""What a run promises: the same result whatever the workers and kills, personal state that stays, honest rows."""

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

from fedgraft import RunConfig, simulate
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.observer import Observer
from fedgraft.runs.run_directory import RunDirectory

CONFIG = RunConfig(method="fedpgp", data="digits", sites=3, rounds=4, shots=4, method_options={"n_ctx": 4})
WIDTH = 128


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with two workers."""
    out = tmp_path_factory.mktemp("runs") / "two-workers"
    return out, simulate(CONFIG, out, workers=2)


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _names(path: Path) -> set[str]:
    with safe_open(path, framework="numpy") as file:
        return set(file.keys())


def test_one_worker_gives_the_same_metrics_as_two(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    alone = simulate(CONFIG, tmp_path / "one", workers=1)
    assert alone["metrics"] == finished[1]["metrics"]
    assert alone["metrics_last5"] == finished[1]["metrics_last5"]


def test_a_run_killed_in_the_middle_and_resumed_gives_the_same_metrics(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.to_toml())
    command = [sys.executable, "-m", "fedgraft", "simulate", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not (out / "checkpoints" / "fold-000-round-000002.safetensors").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "summary.json").exists()
    resumed = simulate(CONFIG, out, resume=True, workers=2)
    assert resumed["metrics"] == finished[1]["metrics"]
    assert resumed["uplink_bytes_per_site_round"] == finished[1]["uplink_bytes_per_site_round"]
    kept = [(row["round"], row["scope"]) for row in _rows(out)]
    assert kept == [(row["round"], row["scope"]) for row in _rows(finished[0])]


def test_an_interrupted_run_ends_and_leaves_nothing_running(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Ctrl-C during a round: one sentence, no process left, and `--resume` gets to the same metrics."""
    config, out = tmp_path / "run.toml", tmp_path / "interrupted"
    config.write_text(CONFIG.to_toml())
    command = [sys.executable, "-m", "fedgraft", "simulate", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    while not (out / "checkpoints" / "fold-000-round-000001.safetensors").exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.decode().splitlines()[-1] == "fedgraft: The run was stopped; it goes on with --resume."
    deadline = time.monotonic() + 30
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "a process of the run is left"
        time.sleep(0.1)
    assert simulate(CONFIG, out, resume=True)["metrics"] == finished[1]["metrics"]


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


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
    assert RunConfig.build(__import__("tomllib").loads((run / "config.toml").read_text())) == CONFIG
    confusion = json.loads((run / "confusion.json").read_text())["scopes"]["novel"]
    assert confusion["classes"] == ["seven", "six", "three", "two", "zero"]
    assert np.trace(confusion["counts"]) / np.sum(confusion["counts"]) * 100 == pytest.approx(
        summary["metrics"]["novel"], abs=1e-9
    )


def test_another_run_is_not_overwritten_and_a_changed_one_not_resumed(finished: tuple[Path, dict[str, Any]]) -> None:
    run, summary = finished
    with pytest.raises(UserError, match="--resume"):
        simulate(CONFIG, run)
    with pytest.raises(UserError, match="lr"):
        simulate(CONFIG.model_copy(update={"lr": 0.5}), run, resume=True)
    assert simulate(CONFIG, run, resume=True) == summary


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


def test_a_site_that_fails_is_named_and_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    observer = _Saboteur(tmp_path / "run", "000001")
    summary = simulate(CONFIG.model_copy(update={"rounds": 2}), tmp_path / "run", observer=observer)
    assert {(server_round, site) for server_round, site, _ in observer.heard} == {(2, 1)}
    assert "round-000001.safetensors cannot be read" in observer.heard[0][2]
    rows = _rows(tmp_path / "run")
    assert next(row for row in rows if row["scope"] == "train" and row["round"] == 2)["sites"] == [0, 2]
    assert [row["site"] for row in rows if row["scope"] == "left_out"] == [1, 1]
    assert summary["left_out"] == 2


def test_a_run_below_its_quorum_ends_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"Round 2 has 0 sound answers of 3, the quorum is 2\. site 0: The personal"):
        simulate(CONFIG, tmp_path / "run", observer=_Saboteur(tmp_path / "run", "*"))


@pytest.mark.parametrize(
    ("protocol", "data", "method", "keys"),
    [
        ("leave-one-domain-out", "shapes:flat,noisy,scene", "promptfl", {"per_domain", "mean"}),
        ("dirichlet", "digits", "local", {"accuracy", "worst_site", "std"}),
        ("base-to-novel", "digits", "zeroshot", {"local", "base", "novel", "hm", "hm2", "cm"}),
    ],
)
def test_every_protocol_reports_its_metrics(
    tmp_path: Path, protocol: str, data: str, method: str, keys: set[str]
) -> None:
    config = RunConfig.build(
        {"method": method, "data": data, "protocol": protocol, "sites": 2, "rounds": 1, "shots": 1, "local_epochs": 1}
    )
    summary = simulate(config, tmp_path / "run")
    assert set(summary["metrics"]) == keys
    if protocol == "leave-one-domain-out":
        assert list(summary["metrics"]["per_domain"]) == ["flat", "noisy", "scene"]
    if method == "local":
        assert summary["uplink_bytes_per_site_round"] < 512
        assert summary["shared_parameters"] == 0
    if method == "zeroshot":
        assert summary["trainable_parameters"] == summary["uplink_bytes_per_site_round"] == 0


def test_fewer_evaluations_change_the_rows_and_not_the_result(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    summary = simulate(CONFIG.model_copy(update={"eval_every": 3}), tmp_path / "run")
    assert {row["round"] for row in _rows(tmp_path / "run") if row["scope"] == "novel"} == {0, 3, 4}
    assert summary["metrics"] == finished[1]["metrics"]
