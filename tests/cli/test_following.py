"""What an operator types and sees: the queue of a server, and a run that goes on elsewhere."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedgraft.cli.following import RunFollower, print_sites
from fedgraft.cli.main import app
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.flower.run_state import Ended, Outcome, RunState
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    return ServerFolder.create(tmp_path / "server", ["127.0.0.1"], 1)


def _typed(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_queue_shows_what_becomes_of_every_run(server: ServerFolder, tmp_path: Path) -> None:
    """One is at work though its command was killed, one is paused, one is queued, one failed."""
    assert "No run was submitted" in _typed("server", "runs", server.path)
    places = {}
    for name in ("works", "paused", "queued", "failed"):
        directory = RunDirectory(tmp_path / name)
        directory.create(RunConfig(method="local"))
        places[name] = server.queue.enter(directory.path)
    for name in ("works", "paused", "failed"):
        places[name].leave()
    working = RunDirectory(tmp_path / "works")
    working.lock()
    RunState(tmp_path / "failed").end(Ended(Outcome.FAILED, "abc", 0, "No site takes part."))
    assert "pauses after its present round" in _typed("server", "pause", server.path, "paused")
    assert (
        "is paused after this one"
        in (_typed("server", "pause", server.path, "works"), _typed("server", "runs", server.path))[1]
    )
    assert places["queued"].ahead() == [tmp_path / "works"]
    listed = json.loads(_typed("server", "runs", server.path, "--json"))
    assert [(Path(run["out"]).name, run["state"]) for run in listed] == [
        ("works", "runs, round 1, is paused after this one"),
        ("paused", "paused after round 0"),
        ("queued", "queued"),
        ("failed", "failed after round 0: No site takes part."),
    ]
    working.unlock()
    assert places["queued"].ahead() == []
    assert f"fedgraft run {server.path} --out {tmp_path / 'paused'}" in _typed(
        "server", "resume", server.path, "paused"
    )
    assert "ends after its present round" in _typed("server", "stop", server.path, "queued")


def test_a_run_that_has_ended_is_neither_paused_nor_stopped(server: ServerFolder, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "done")
    directory.write_json("summary.json", {})
    server.queue.enter(directory.path).leave()
    for command in ("pause", "resume", "stop"):
        with pytest.raises(UserError, match="has ended: finished"):
            _typed("server", command, server.path, "done")


class Told(Observer):
    def __init__(self) -> None:
        self.lines: list[object] = []

    def on_notice(self, sentence: str) -> None:
        self.lines.append(sentence)

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        self.lines.append((server_round, rounds, metrics))

    def on_site_left_out(self, server_round: int, site: int, reason: str) -> None:
        self.lines.append((server_round, site, reason))


def _row(server_round: int, scope: str, **more: object) -> dict[str, object]:
    return {"round": server_round, "fold": None, "scope": scope, **more}


def test_a_run_is_followed_by_its_directory(tmp_path: Path) -> None:
    directory, told = RunDirectory(tmp_path), Told()
    follower = RunFollower(directory, told, 3)
    follower.look("The run waits for 1 before it.")
    follower.look("The run waits for 1 before it.")
    directory.append([_row(0, "personal", accuracy=33.0)])
    directory.append([_row(1, "train", loss=0.5, sites=[0]), _row(1, "left_out", site=1, reason="disk full")])
    follower.look()
    follower.look()
    directory.append([_row(1, "personal", accuracy=50.0)])
    follower.look()
    assert told.lines == [
        "The run waits for 1 before it.",
        (1, 1, "disk full"),
        (0, 3, {"personal": 33.0}),
        (1, 3, {"personal": 50.0, "loss": 0.5}),
    ]
    resumed = Told()
    RunFollower(directory, resumed, 3).look()
    assert resumed.lines == [(1, 3, {"personal": 50.0, "loss": 0.5})]


def test_absent_and_left_out_sites_are_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    directory = RunDirectory(tmp_path)
    directory.create(RunConfig(method="local", sites=3))
    directory.write_json("sites.json", {"north": {"number": 0}, "[bold]south": {"number": 1}})
    directory.append(
        [
            _row(1, "train", loss=0.5, sites=[0, 1]),
            _row(2, "train", loss=0.4, sites=[0]),
            _row(2, "left_out", site=1, reason="disk [red]full"),
            *(_row(number, "left_out", site=2, reason="it is not connected") for number in (1, 2)),
        ]
    )
    print_sites(directory)
    lines = [" ".join(line.strip("│┃ ").replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "north 0 2 of 2" in lines
    assert "[bold]south 1 1 of 2 1 disk [red]full" in lines
    assert "(never connected) 2 0 of 2 2 it is not connected" in lines
