"""A submitted run: followed to its end, resubmitted if it is interrupted, given up with its reason."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed
from fedgraft.deployment.submitted import SubmittedRun
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder

pytestmark = pytest.mark.slow
CONFIG = RunConfig(
    method="promptfl", data="folder:own", protocol="own-data", sites=2, protocol_options={"class_names": ["cat", "dog"]}
)
Runs = Callable[..., list[str]]


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    """A folder whose server is told to run by the tests."""
    return ServerFolder.create(tmp_path / "server", ["127.0.0.1"], 1)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The run directory."""
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def plays(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Stands for `flwr run`: the n-th time a run is handed in, the n-th script plays, the last one again and again."""

    def choose(*scripts: str) -> list[str]:
        played: list[str] = []

        def submit(folder: ServerFolder, settings: Path, log: object) -> subprocess.Popen[bytes]:
            played.append(scripts[min(len(played), len(scripts) - 1)])
            return subprocess.Popen([sys.executable, "-c", played[-1]], stdout=log, stderr=log)  # type: ignore[call-overload]

        monkeypatch.setattr("fedgraft.deployment.submitted.submit", submit)
        monkeypatch.setattr("fedgraft.deployment.submitted.is_running", lambda folder: True)
        return played

    return choose


def _finishes(out: Path) -> str:
    return f"open({str(out / 'summary.json')!r}, 'w').write('{{}}')"


def _completes_round(out: Path, number: int) -> str:
    return f"open({str(out / 'checkpoints' / f'fold-000-round-{number:06d}.safetensors')!r}, 'w')"


def _to_the_end(run: SubmittedRun) -> None:
    while run.supervise():
        time.sleep(0.01)


def test_a_run_that_is_cut_off_is_handed_in_again(server: ServerFolder, out: Path, plays: Runs) -> None:
    played = plays(_completes_round(out, 1), "raise SystemExit(1)", _finishes(out))
    _to_the_end(SubmittedRun(server, CONFIG, out))
    assert len(played) == 3
    assert json.loads((out / "summary.json").read_text()) == {}


def test_a_run_that_ended_for_a_reason_is_not_handed_in_again(server: ServerFolder, out: Path, plays: Runs) -> None:
    played = plays("print('fedgraft.core.errors.RunFailed: Round 2 has 0 valid answers of 2')")
    with pytest.raises(RunFailed, match="before its last round: Round 2 has 0 valid answers of 2"):
        _to_the_end(SubmittedRun(server, CONFIG, out))
    assert len(played) == 1


def test_a_run_that_gets_no_further_is_given_up(server: ServerFolder, out: Path, plays: Runs) -> None:
    played = plays("raise SystemExit(1)")
    with pytest.raises(RunFailed, match="interrupted 5 times without passing round 0"):
        _to_the_end(SubmittedRun(server, CONFIG, out))
    assert len(played) == 6


def test_a_run_that_is_still_at_work_is_waited_for(server: ServerFolder, out: Path, plays: Runs) -> None:
    """The command was stopped and typed again; Flower has gone on."""
    played = plays(_finishes(out))
    at_work = RunDirectory(out)
    at_work.lock()
    run = SubmittedRun(server, CONFIG, out)
    assert run.supervise()
    assert played == []
    at_work.unlock()
    _to_the_end(run)
    assert len(played) == 1


def test_a_server_app_that_vanished_is_not_waited_for(
    server: ServerFolder, out: Path, plays: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = plays("import time; time.sleep(600)", _finishes(out))
    run = SubmittedRun(server, CONFIG, out)
    at_work = RunDirectory(out)
    at_work.lock()
    assert run.supervise()
    at_work.unlock()
    assert run.supervise()
    assert len(played) == 1
    later = time.monotonic() + 11
    with monkeypatch.context() as clock:
        clock.setattr("fedgraft.deployment.submitted.time.monotonic", lambda: later)
        assert run.supervise()
    assert len(played) == 2
    _to_the_end(run)
