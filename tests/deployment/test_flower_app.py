"""What a user of `flwr run` would lose: the same run as `fedgraft simulate`, and one clear sentence for a mistake."""

import io
import json
import os
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError
from urllib.request import urlopen

import httpx
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.serverapp import Grid

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, RunPaused, UserError
from fedgraft.core.files import free_port
from fedgraft.core.observer import Observer
from fedgraft.deployment.flower_app import _recorded, server_app
from fedgraft.flower.run_state import Ended, Outcome, RunState
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.engine import Engine
from fedgraft.simulation.simulate import simulate_on
from fedgraft.testing.grids import FakeGrid, Said

APP = Path(__file__).parents[2] / "examples" / "flower_app"
BIN = Path(sys.executable).parent


def app_config() -> dict[str, Any]:
    """The run configuration in the app's pyproject.toml."""
    config: dict[str, Any] = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return config


# --- how a deployed run ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (None, Outcome.FINISHED, ""),
        (RunFailed("Round 2 has 0 valid answers of 2."), Outcome.FAILED, "Round 2 has 0 valid answers of 2."),
        (ZeroDivisionError("division by zero"), Outcome.FAILED, "ZeroDivisionError: division by zero"),
        (httpx.ConnectError("refused"), Outcome.INTERRUPTED, "ConnectError: refused"),
        (RunPaused("The run is paused after round 3."), Outcome.PAUSED, "The run is paused after round 3."),
    ],
)
def test_a_deployed_run_records_why_it_ended(
    error: Exception | None, outcome: Outcome, reason: str, tmp_path: Path
) -> None:
    def ends() -> None:
        with _recorded(RunDirectory(tmp_path), "abc") as begun:
            begun()
            running = RunState(tmp_path).ended
            assert running is not None
            assert running.outcome is Outcome.RUNNING
            if error is not None:
                raise error

    if outcome in (Outcome.FAILED, Outcome.INTERRUPTED):
        with pytest.raises(type(error)):  # type: ignore[arg-type]
            ends()
    else:
        ends()
    kind = type(error).__name__ if error else ""
    assert RunState(tmp_path).ended == Ended(outcome, "abc", 0, reason, kind)


def test_a_process_that_does_not_get_the_run_directory_leaves_the_record_of_the_one_that_has_it(tmp_path: Path) -> None:
    holder = RunDirectory(tmp_path)
    holder.lock()
    with pytest.raises(UserError), _recorded(RunDirectory(tmp_path), "later"):
        raise UserError("Another process is using the run.")
    assert RunState(tmp_path).ended is None


# --- the app's folder ---------------------------------------------------------------------------------------------


def test_every_setting_of_a_run_can_be_given_to_flwr_run_and_has_the_commands_default() -> None:
    config, defaults = app_config(), RunConfig.build({}).model_dump()
    assert config.keys() - defaults.keys() == {"out", "wait", "options"}
    assert {key for key in defaults.keys() - config.keys() if not key.endswith("_options")} == set()
    assert {key for key in defaults.keys() & config.keys() if config[key] != defaults[key]} == {"sites"}


def test_the_bundle_carries_no_copy_of_fedgraft() -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(APP))) as bundle:
        names = set(bundle.namelist())
    modules = {"graft/__init__.py", "graft/server_app.py", "graft/client_app.py"}
    assert names == {"pyproject.toml", ".info/CONTENT", *modules}


# --- mistakes -----------------------------------------------------------------------------------------------------


class Silent(FakeGrid):
    """A grid of which only the number of SuperNodes is asked."""

    def said(self, message: Message) -> Said:
        return None


@pytest.mark.parametrize(
    ("nodes", "settings", "sentence"),
    [
        (2, {"sites": 3}, r"3 sites, but the federation has only 2 SuperNodes.*num-supernodes=3"),
        (2, {"sites": 1}, r"2 SuperNodes, more than the 1 sites.*num-supernodes=1"),
        (0, {}, r"No SuperNode connected within 0 seconds"),
        (2, {"wait": "long"}, r"wait must be a number of seconds, not 'long'"),
        (2, {"out": "runs/first"}, r"out has the relative path 'runs/first'.*\$PWD/runs/first"),
        (2, {"data": "folder:./photos"}, r"data has the relative path './photos'.*\$PWD/photos"),
        (2, {"backbone": "./clip"}, r"backbone has the relative path"),
        (2, {"method": "fedpggp"}, r"no method 'fedpggp'.*fedpgp"),
        (2, {"options": "lr=0.1"}, r"'lr' is not an option; give it as a key of its own"),
        (2, {"options": "rnk=4"}, r"'rnk'. Did you mean 'rank'"),
        (2, {"options": "alpha=0.1"}, r"'alpha'"),
    ],
)
def test_a_mistake_ends_with_a_sentence(tmp_path: Path, nodes: int, settings: dict[str, Any], sentence: str) -> None:
    given = {**app_config(), "wait": 0, "out": str(tmp_path / "run"), **settings}
    context = Context(run_id=7, node_id=0, node_config={}, state=RecordDict(), run_config=given)
    with pytest.raises(UserError, match=sentence):
        server_app(grid=cast(Grid, Silent(range(nodes))), context=context)
    assert not (tmp_path / "run").exists()


# --- a real run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Flower with a home and a local SuperLink of its own; gives the SuperLink's log. No process may outlive it.

    `flwr run` would start the local SuperLink by itself, but waits 15 seconds for it whatever the machine has to do.
    """
    home, port, log = tmp_path / "flower", str(free_port()), tmp_path / "superlink.log"
    home.mkdir()
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", port)
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    monkeypatch.setenv("PATH", str(BIN), prepend=os.pathsep)
    command = ["flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", port]
    with log.open("w") as output:
        superlink = subprocess.Popen(command, stdout=output, stderr=output, cwd=home)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", superlink)
        yield log
    finally:
        superlink.terminate()
        superlink.wait(timeout=120)
        left = wait_until_gone(home)
    assert not left, f"These processes outlived the SuperLink: {left}"


@pytest.mark.slow
def test_flwr_run_gives_the_metrics_of_fedgraft_simulate(flower: Path, engine: Engine, tmp_path: Path) -> None:
    out = tmp_path / "by flwr"
    command = ["flwr", "run", str(APP), "--stream", "--federation-config", "client-resources-num-cpus=1"]
    command += ["--run-config", f"rounds=1 out='{out}'"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert (out / "summary.json").exists(), shown.stdout + shown.stderr + flower.read_text()
    assert (out / "report.html").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sites"] == 2
    simulated = simulate_on(engine, RunConfig(sites=2, rounds=1), tmp_path / "by simulate", False, Observer())
    assert summary["metrics"] == simulated["metrics"]


def wait_until_healthy(url: str, superlink: subprocess.Popen[bytes]) -> None:
    """Return when the SuperLink answers, raise when it ended."""
    while superlink.poll() is None:
        try:
            urlopen(url, timeout=1).close()
            return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"flower-superlink ended with {superlink.returncode}")


def wait_until_gone(home: Path) -> list[str]:
    """Wait for the processes of a Flower home to end; kill and name those that do not. Sees them on Linux only."""
    deadline = time.monotonic() + 120
    while (found := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in found:
        os.kill(pid, 9)
    return list(found.values())


def processes_of(home: Path) -> dict[int, str]:
    """Command lines by process id of those that were started with this FLWR_HOME, this process left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"FLWR_HOME={home}".encode() in environment and int(folder.name) != os.getpid():
            found[int(folder.name)] = command
    return found
