"""A submitted run: followed to its end, resubmitted if it is interrupted, given up with its reason."""

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.submitted import SubmittedRun
from fedgraft.flower.run_state import Ended, Outcome, RunState, Wanted
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
            submission = json.loads(tomllib.loads(settings.read_text())["settings"])["submission"]
            command = [sys.executable, "-c", played[-1], submission]
            return subprocess.Popen(command, stdout=log, stderr=log)  # type: ignore[call-overload]

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


def _ends(out: Path, outcome: str, reason: str = "") -> str:
    """What the ServerApp writes when it ends."""
    ended = {"outcome": outcome, "round": 1, "reason": reason, "kind": "RunFailed"}
    file = str(out / "ended.json")
    return f"import sys, json; json.dump({ended!r} | {{'submission': sys.argv[1]}}, open({file!r}, 'w'))"


def test_a_run_that_ended_for_a_reason_is_not_handed_in_again(server: ServerFolder, out: Path, plays: Runs) -> None:
    played = plays(_ends(out, "failed", "Round 2 has 0 valid answers of 2"))
    with pytest.raises(RunFailed, match="before its last round: Round 2 has 0 valid answers of 2"):
        _to_the_end(SubmittedRun(server, CONFIG, out))
    assert len(played) == 1


def test_what_a_site_writes_into_the_log_is_no_reason(server: ServerFolder, out: Path, plays: Runs) -> None:
    """Nor is the reason of an earlier submission."""
    RunState(out).end(Ended(Outcome.FAILED, "another", 1, "It failed yesterday."))
    played = plays("print('fedgraft.core.errors.RunFailed: the site says so'); raise SystemExit(1)", _finishes(out))
    _to_the_end(SubmittedRun(server, CONFIG, out))
    assert len(played) == 2


def test_a_run_that_lost_its_server_is_handed_in_again(server: ServerFolder, out: Path, plays: Runs) -> None:
    played = plays(_ends(out, "interrupted", "ConnectError: refused"), _finishes(out))
    _to_the_end(SubmittedRun(server, CONFIG, out))
    assert len(played) == 2


def test_runs_of_one_server_go_one_after_another(server: ServerFolder, out: Path, plays: Runs, tmp_path: Path) -> None:
    later_out = tmp_path / "later"
    played = plays(_at_work_until(out), _finishes(later_out))
    first = SubmittedRun(server, CONFIG, out)
    later_out.mkdir()
    later = SubmittedRun(server, CONFIG, later_out)
    assert later.supervise()
    assert later.waits_for == f"The run waits for 1 before it, first {out}."
    assert len(played) == 1
    assert [(run.out, run.state().split(",")[0]) for run in server.queue.runs()] in (
        [(out, "queued"), (later_out, "queued")],
        [(out, "runs"), (later_out, "queued")],
    )
    with pytest.raises(UserError, match="Another `fedgraft run` follows the run"):
        SubmittedRun(server, CONFIG, later_out)
    (out / "end").touch()
    _to_the_end(first)
    first.stop()
    _to_the_end(later)
    assert len(played) == 2
    assert [run.state() for run in server.queue.runs()] == ["finished", "finished"]


def _at_work_until(out: Path) -> str:
    """Holds the run directory until there is a file `end` in it, and finishes."""
    return (
        "import pathlib, time\nfrom fedgraft.runs.run_directory import RunDirectory\n"
        f"out = pathlib.Path({str(out)!r})\n"
        f"RunDirectory(out).lock()\nwhile not (out / 'end').exists(): time.sleep(0.01)\n{_finishes(out)}"
    )


def test_a_paused_run_gives_way_and_goes_on_when_it_may(
    server: ServerFolder, out: Path, plays: Runs, tmp_path: Path
) -> None:
    other_out = tmp_path / "other"
    other_out.mkdir()
    played = plays(_ends(out, "paused"), _finishes(other_out), _finishes(out))
    run = SubmittedRun(server, CONFIG, out)
    RunState(out).want(Wanted.PAUSE)
    while not run.waits_for:
        assert run.supervise()
    assert "is paused after round 0; `fedgraft server resume" in run.waits_for
    assert server.queue.find(str(out)).state() == "paused after round 0"
    _to_the_end(SubmittedRun(server, CONFIG, other_out))
    assert run.supervise()
    assert len(played) == 2
    RunState(out).want(Wanted.GO_ON)
    _to_the_end(run)
    assert len(played) == 3


def test_a_run_that_was_stopped_before_it_began_ends(server: ServerFolder, out: Path, plays: Runs) -> None:
    plays("raise SystemExit(1)")
    run = SubmittedRun(server, CONFIG, out)
    RunState(out).want(Wanted.STOP)
    with pytest.raises(RunFailed, match="stopped before it began"):
        _to_the_end(run)


def test_a_run_is_found_by_its_directory_or_its_name(server: ServerFolder, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        server.queue.enter(tmp_path / parent / "first")
        (tmp_path / parent / "first").mkdir(parents=True)
    (tmp_path / "second").mkdir()
    server.queue.enter(tmp_path / "second")
    assert server.queue.find("second").out == tmp_path / "second"
    assert server.queue.find(str(tmp_path / "b" / "first")).out == tmp_path / "b" / "first"
    with pytest.raises(UserError, match="Several runs are named 'first'"):
        server.queue.find("first")
    with pytest.raises(UserError, match="No run 'third' was submitted"):
        server.queue.find("third")


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


_FOLLOWING = """
import sys
from pathlib import Path
from fedgraft.deployment import running_server
from fedgraft.runs.server_folder import ServerFolder

running_server.guarded = lambda command: [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"]
with Path(sys.argv[2]).open("wb") as log:
    follower = running_server.submit(ServerFolder.open(Path(sys.argv[1])), Path("settings.toml"), log)
print(follower.pid, flush=True)
follower.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_command_leaves_no_process_that_reads_the_log(server: ServerFolder, tmp_path: Path) -> None:
    """A SuperLink waits for such a process before it ends, and the process for the SuperLink."""
    log, deadline = tmp_path / "log", time.monotonic() + 120
    words = [sys.executable, "-c", _FOLLOWING, str(server.path), str(log)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as command:
        assert command.stdout is not None
        follower = int(command.stdout.readline())
        while not log.read_bytes():
            time.sleep(0.01)
        command.kill()
    while _is_alive(follower):
        assert time.monotonic() < deadline, "it lives on; this only ends a test that would hang"
        time.sleep(0.01)


def _is_alive(pid: int) -> bool:
    """Whether a process has not ended; what nobody has asked for its status has no command line any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
