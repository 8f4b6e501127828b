"""What the page is told of a run, whatever state its directory is in: nothing lost, nothing invented."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from fedgraft.core.errors import UserError
from fedgraft.runs.metrics_tail import MetricsTail
from fedgraft.strategies.privacy import epsilon
from fedgraft.watch.found import open_source
from fedgraft.watch.processes import Load, lock_holder
from tests.watch.conftest import HOSTILE, WrittenRun, viewed, write_comparison


def test_a_directory_that_is_empty_waits_and_then_shows_its_run_round_by_round(tmp_path: Path) -> None:
    written = WrittenRun(tmp_path)
    source = open_source(tmp_path)
    assert viewed(source)["state"] == "waiting"
    written.begin()
    view = viewed(source)
    assert (view["kind"], view["state"], view["runs"][0]["round"]) == ("run", "stopped", 0)
    for number in range(3):
        before = source.revision
        written.round(number)
        run = viewed(source)["runs"][0]
        assert source.revision > before
        assert (run["round"], run["rounds"]) == (number, 4)
    assert run["accuracy"]["novel"]["rounds"] == [0, 1, 2]
    assert run["training"][""]["uplink_bytes_per_site"] == [8192, 8192]
    unchanged = source.revision
    source.refresh()
    assert source.revision == unchanged, "what has not changed is not sent again"


def test_a_comparison_that_has_just_begun_is_one(tmp_path: Path) -> None:
    source = open_source(tmp_path)
    WrittenRun(tmp_path / "fedpgp-seed0").begin().round(0)
    view = viewed(source)
    assert (view["kind"], [entry["label"] for entry in view["entries"]]) == ("comparison", ["fedpgp"])


def test_a_finished_run_has_its_results_and_a_killed_one_has_not(run: WrittenRun) -> None:
    run.begin().finish()
    shown = viewed(open_source(run.directory.path))["runs"][0]
    assert shown["state"] == "finished"
    assert {metric["key"] for metric in shown["metrics"]} == {"local", "base", "novel"}
    (run.directory.path / "summary.json").unlink()
    shown = viewed(open_source(run.directory.path))["runs"][0]
    assert (shown["state"], shown["metrics"], shown["wall_seconds"]) == ("stopped", [], None)


def test_a_process_that_holds_the_lock_is_seen_and_its_lock_left_alone(run: WrittenRun) -> None:
    run.begin()
    source = open_source(run.directory.path)
    assert viewed(source)["state"] == "stopped"
    with (run.directory.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_holder(run.directory.path / ".lock") == os.getpid()
        view = viewed(source)
        assert view["state"] == "running"
        own = next(line for line in view["load"]["processes"] if line["pid"] == os.getpid())
        assert own["role"] == "run"
        assert own["memory"] > 0
    assert viewed(source)["state"] == "stopped"


def test_sites_tell_what_was_left_out_and_how_stale_they_are(tmp_path: Path) -> None:
    written = WrittenRun(tmp_path, sites=8, rounds=3).begin()
    for number in range(3):
        written.round(number)
    sites = viewed(open_source(tmp_path), scope="local")["sites"]
    third = sites["lines"][3]
    assert (third["left_out"], third["stale"], third["last_round"], third["trained"]) == (1, 1, 1, 1)
    assert third["reason"].endswith("norm of 1e9")
    assert sites["missed"][3] == [2]
    assert sites["lines"][0]["stale"] == 0
    assert (len(sites["heat"]), len(sites["heat"][0])) == (3, 8)
    assert sites["scope"] == "local"


def test_what_a_site_says_is_plain(tmp_path: Path) -> None:
    written = WrittenRun(tmp_path, sites=8).begin()
    written.round(2)
    path = tmp_path / "sites.json"
    path.write_text(json.dumps({HOSTILE: {"number": 3, "images": {"train": 12}}}))
    view = viewed(open_source(tmp_path))
    text = json.dumps(view, ensure_ascii=False)
    assert not any(character in text for character in "<>\u202e")
    assert view["sites"]["lines"][3]["images"] == 12


def test_seeds_become_a_mean_and_a_band(tmp_path: Path) -> None:
    view = viewed(open_source(write_comparison(tmp_path)))
    assert view["state"] == "finished"
    assert [entry["label"] for entry in view["entries"]] == ["promptfl(n_ctx=4)", "fedpgp(n_ctx=4)"]
    curves = [run["accuracy"]["novel"]["mean"] for run in view["runs"] if run["name"].startswith("fedpgp")]
    band = view["entries"][1]["accuracy"]["novel"]
    assert band["seeds"] == [2] * 5
    for at, (one, other) in enumerate(zip(*curves, strict=True)):
        assert band["mean"][at] == pytest.approx((one + other) / 2, abs=0.01)
        assert band["high"][at] - band["mean"][at] == pytest.approx(abs(one - other) / 2, abs=0.01)
    assert len(view["entries"][1]["plane"]["xs"]) == 5


def test_rounds_that_a_resumed_run_takes_back_are_gone(run: WrittenRun) -> None:
    run.begin()
    for number in range(4):
        run.round(number)
    source = open_source(run.directory.path)
    assert viewed(source)["runs"][0]["round"] == 3
    run.directory.replace_rows([row for row in run.directory.rows() if row["round"] < 2])
    run.round(2)
    shown = viewed(source)["runs"][0]
    assert shown["round"] == 2
    assert shown["accuracy"]["local"]["rounds"] == [0, 1, 2]


def test_only_what_was_added_is_read_and_a_torn_line_is_left_for_later(tmp_path: Path) -> None:
    path, tail = tmp_path / "metrics.jsonl", MetricsTail(tmp_path / "metrics.jsonl")
    row = json.dumps({"round": 0, "fold": None, "scope": "local", "accuracy": 1.0, "sites": {}})
    assert tail.read() == (False, [])
    path.write_text(row + "\n" + row[:20])
    assert [len(rows) for _, rows in (tail.read(), tail.read())] == [1, 0]
    with path.open("a") as file:
        file.write(row[20:] + "\n")
    assert tail.read() == (False, [json.loads(row)])
    path.write_text(row + "\n")
    assert tail.read() == (True, [json.loads(row)])


def test_an_accuracy_that_is_no_number_is_a_gap(run: WrittenRun) -> None:
    run.begin().round(0)
    run.directory.append([{"round": 1, "fold": None, "scope": "novel", "accuracy": float("nan"), "sites": {}}])
    assert viewed(open_source(run.directory.path))["runs"][0]["accuracy"]["novel"]["mean"][1] is None


def test_folds_and_parts_of_a_scope_are_series_of_their_own(tmp_path: Path) -> None:
    folds = WrittenRun(tmp_path / "folds", protocol="leave-one-domain-out", data="shapes").begin()
    parts = WrittenRun(tmp_path / "parts", protocol="multi-dataset").begin()
    for at in (0, 1):
        value = {"round": at, "accuracy": 10.0 + at, "sites": {"0": 10.0 + at}}
        folds.directory.append({**value, "fold": fold, "scope": "target"} for fold in ("photo", "sketch"))
        names = ("local: pets", "local: dtd", "base: pets")
        parts.directory.append({**value, "fold": None, "scope": name} for name in names)
    view = viewed(open_source(tmp_path / "folds"), scope="sketch")
    assert [scope["label"] for scope in view["runs"][0]["scopes"]] == ["photo", "sketch"]
    assert (view["sites"]["fold"], view["runs"][0]["plane"]) == ("sketch", None)
    run = viewed(open_source(tmp_path / "parts"))["runs"][0]
    assert [scope["label"] for scope in run["scopes"]] == ["Local: pets", "Local: dtd", "Base: pets"]
    assert (run["plane"]["xs"], run["plane"]["ys"]) == ([10.0, 11.0], [10.0, 11.0])


def test_privacy_is_accounted_while_the_run_goes_on(tmp_path: Path) -> None:
    from fedgraft.runs.checkpoints import Checkpoint

    run = WrittenRun(tmp_path, sites=8, strategy="central-dp(noise_multiplier=2.0)").begin()
    for number in range(4):
        run.round(number)
    run.directory.checkpoints.save(Checkpoint(0, 3, {}, []), "ab")
    spent = viewed(open_source(tmp_path))["runs"][0]["privacy"]
    assert spent["so_far"]
    assert spent["releases"] == 3, "a site whose answer was left out was asked all the same"
    assert spent["epsilon"] == pytest.approx(epsilon(2.0, 3, 1e-5))


def test_a_gpu_that_nvidia_smi_knows_is_shown_by_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in *compute-apps*) echo "{os.getpid()}, 512";; '
        '*) echo "0, NVIDIA H200, 37, 1024, 143771"; echo "1, Other, [N/A], 0, 100";; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    load = Load()
    load.sample({os.getpid(): "run"})
    shown = load.view()
    assert shown["gpus"][0] == {
        "index": 0, "name": "NVIDIA H200", "busy": 37, "memory": 1 << 30, "memory_total": 143771 << 20,
    }  # fmt: skip
    assert shown["gpus"][1]["busy"] is None
    assert next(line for line in shown["processes"] if line["pid"] == os.getpid())["gpu_memory"] == 512 << 20


def test_what_is_no_run_is_refused_in_a_sentence(tmp_path: Path, run: WrittenRun) -> None:
    with pytest.raises(UserError, match=r"There is no run in .*which does not exist"):
        open_source(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give the directory"):
        open_source(tmp_path / "file")
    with pytest.raises(UserError, match="holds no run; give the directory"):
        open_source(tmp_path)
    run.begin()
    (run.directory.path / "config.toml").write_text("later = 1\n" + run.config.to_toml())
    with pytest.raises(UserError, match=r"newer format: its config\.toml has the key 'later'"):
        open_source(run.directory.path)


def test_a_file_that_breaks_while_somebody_watches_is_a_sentence_on_the_page(run: WrittenRun) -> None:
    run.begin().round(0)
    source = open_source(run.directory.path)
    with (run.directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": "one"}\n')
    view = viewed(source)
    assert "Line 4 of" in view["problems"][0]
    assert view["runs"][0]["accuracy"]["local"]["rounds"] == [0], "what was known stays"
    with pytest.raises(UserError, match="Line 4 of"):
        open_source(run.directory.path)


def test_a_directory_that_may_not_be_read_is_a_sentence(run: WrittenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    run.directory.path.mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        open_source(run.directory.path)
