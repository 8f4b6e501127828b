"""Server and sites in processes of their own, over TLS with node keys: what is learnt, what is left, who is refused."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedgraft import UserError
from fedgraft.core.errors import RunFailed
from fedgraft.core.files import free_port
from fedgraft.deployment.local import SiteStatus, admit_here, up
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite
from fedgraft.deployment.status_file import read_status
from fedgraft.runs.personal_state import PersonalState
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

pytestmark = pytest.mark.slow
_RESULTS = (".json", ".jsonl", ".safetensors")
SETTINGS = {"method": "fedpgp", "sites": 2, "rounds": 3, "local_epochs": 1, "method_options": {"n_ctx": 2, "rank": 2}}


@dataclass
class Deployed:
    """A deployment that has ended, whose first site's worker was killed after its first round."""

    out: Path
    summary: dict[str, Any]
    killed: list[str]
    commands: set[str]


@pytest.fixture(scope="module")
def deployed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Two sites, three rounds."""
    killed: list[str] = []
    commands: set[str] = set()

    def kill_a_worker_once(sites: list[SiteStatus]) -> None:
        commands.update(_commands())
        if not killed and sites[0].rounds >= 1:
            killed.append(sites[0].name)
            os.kill(sites[0].pids[0], signal.SIGKILL)

    out = tmp_path_factory.mktemp("deployment") / "up"
    return Deployed(out, up(images, SETTINGS, out, kill_a_worker_once), killed, commands)


def test_a_deployment_learns_survives_a_killed_worker_and_leaves_nothing(deployed: Deployed) -> None:
    out = deployed.out
    assert deployed.killed
    assert set(deployed.summary["metrics"]) == {"accuracy", "worst_site", "std"}
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if row["scope"] == "train"] == [1, 2, 3]
    assert [row["round"] for row in rows if row["scope"] == "personal"] == [0, 1, 2, 3]
    assert {row["reason"].split(":")[-1].strip()[:17] for row in rows if row["scope"] == "left_out"} <= {
        "the site's worker"
    }
    sites = json.loads((out / "run" / "sites.json").read_text())
    assert {name: entry["number"] for name, entry in sites.items()} == {"site-0": 0, "site-1": 1}
    assert sites["site-0"]["images"] == {"blue circle": 6, "green square": 6, "red triangle": 6}
    for name in sites:
        folder = SiteFolder.open(out / "sites" / name)
        (state,) = folder.state.glob("*/000")
        assert PersonalState(state, {}).sizes().keys() == {2, 3}
    assert not (out / "run" / "sites").exists()
    assert (out / "run" / "report.html").exists()
    assert _processes_of(out) == []


def test_no_process_list_shows_a_token(deployed: Deployed) -> None:
    started = {match[1] for command in deployed.commands if (match := re.search(r"flower.guarded (\S+)", command))}
    assert {"zygote", "flwr-serverapp"} < started
    assert not [command for command in deployed.commands if "--token" in command]


def test_a_finished_deployment_typed_again_trains_nothing_and_its_sites_are_taken_at_once(
    deployed: Deployed, images: Path
) -> None:
    """A SuperNode that did not deregister when it was stopped would be refused for a minute."""
    out = deployed.out
    found = [path for folder in ("run", "sites") for path in (out / folder).rglob("*") if path.suffix in _RESULTS]
    results = [path for path in found if path.name != "status.json"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in results}
    assert {path.name for path in results} >= {"metrics.jsonl", "summary.json", "attempts.json", "sites.json"}
    assert up(images, SETTINGS, out) == deployed.summary
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in results} == before
    assert all("[code: 2004]" not in log.read_text() for log in out.glob("sites/*/logs/supernode.log"))
    assert _processes_of(out) == []


def test_who_is_refused_by_a_server_and_why(images: Path, tmp_path: Path) -> None:
    """No certificate, another server's, no key, a removed key, a clock that is two hours ahead, plain HTTP."""
    server = RunningServer(ServerFolder.create(tmp_path / "server", ["127.0.0.1"], free_port()))
    other = ServerFolder.create(tmp_path / "other", ["127.0.0.1"], free_port())
    north = SiteFolder.create(tmp_path / "north", "north", images)
    stranger = SiteFolder.create(tmp_path / "stranger", "stranger", images)
    admit_here(server.folder, north)
    admit_here(other, stranger)
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead" / "sitecustomize.py").write_text(_TWO_HOURS_AHEAD)

    def refused(folder: SiteFolder, authority: Path, changed: Callable[[RunningSite], None], said: str) -> None:
        site = RunningSite(folder, f"127.0.0.1:{server.folder.port}", authority)
        changed(site)
        try:
            site.supernode.start()
            with pytest.raises(RunFailed, match=said):
                _wait_for_refusal(site)
        finally:
            site.stop()

    def without_key(site: RunningSite) -> None:
        place = site.supernode.command.index("--auth-supernode-private-key")
        del site.supernode.command[place : place + 2]

    def ahead(site: RunningSite) -> None:
        site.supernode._environment = {**site.supernode._environment, "PYTHONPATH": str(tmp_path / "ahead")}

    try:
        server.start()
        refused(
            stranger,
            server.folder.authority,
            lambda site: None,
            "does not accept the certificate .*issued by another server, has been revoked",
        )
        admit_here(server.folder, stranger)  # while the server runs, but without registering its key
        refused(stranger, server.folder.authority, lambda site: None, "has not admitted the site's key")
        refused(north, other.authority, lambda site: None, "its ca.pem is not the server's")
        refused(north, server.folder.authority, without_key, "admits only sites with a key")
        refused(north, server.folder.authority, ahead, "the two clocks differ")
        plain = http.client.HTTPConnection("127.0.0.1", server.folder.port, timeout=10)
        plain.request("GET", "/")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
    finally:
        server.stop()
    assert _processes_of(tmp_path) == []


_TWO_HOURS_AHEAD = """
import datetime

class Ahead(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(hours=2)

datetime.datetime = Ahead
"""


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_site_that_is_stopped_leaves_no_process_and_no_socket(
    signum: int, status: int, images: Path, tmp_path: Path
) -> None:
    server = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], free_port())
    site = SiteFolder.create(tmp_path / "north", "north", images)
    admit_here(server, site)
    command = [sys.executable, "-m", "fedgraft", "site", "start", str(site.path), "--server", "127.0.0.1:1"]
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    started = subprocess.Popen(
        [*command, "--ca", str(server.authority)],
        env={**os.environ, "TMPDIR": str(sockets)},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 300
    while len(_processes_of(site.path)) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(_processes_of(site.path)) == 4
    assert list(sockets.iterdir())
    started.send_signal(signum)
    _, said = started.communicate(timeout=300)
    assert started.returncode == status, said.decode()
    assert b"Traceback" not in said
    assert _processes_of(site.path) == []
    assert list(sockets.iterdir()) == []


def test_a_server_and_a_site_that_were_killed_and_restarted_leave_nothing(images: Path, tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], free_port())
    site = SiteFolder.create(tmp_path / "north", "north", images)
    admit_here(server, site)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    commands = (
        (["server", "start", str(server.path)], server.path, "gateway"),
        (
            ["site", "start", str(site.path), "--server", "127.0.0.1:1", "--ca", str(server.authority)],
            site.path,
            "superexec",
        ),
    )
    for words, folder, last in commands:
        _killed_and_restarted(words, folder, last, temporary)
    assert list(temporary.iterdir()) == []
    assert list((server.path / "flwr").glob("*/*")) + list((site.path / "flwr" / "tmp").iterdir()) == list(
        (server.path / "flwr" / "apps").iterdir()
    )
    assert _processes_of(tmp_path) == []
    for folder in (server.path, site.path):
        entries = [json.loads(line) for line in (folder / "logs" / "service.log").read_text().splitlines()]
        assert [entry["message"] for entry in entries].count("Running.") == 2


def _killed_and_restarted(words: list[str], folder: Path, last: str, temporary: Path) -> None:
    """Start a command, kill it, start it again and stop it."""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "fedgraft", *words],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_until_running(started: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and started.poll() is None:
            said = read_status(folder)
            if said.get("pid") == started.pid and last in said["processes"]:
                return
            time.sleep(0.2)
        raise AssertionError(started.communicate())

    first = start()
    wait_until_running(first)
    first.kill()
    first.communicate(timeout=300)
    second = start()
    wait_until_running(second)
    second.terminate()
    second.communicate(timeout=300)
    assert second.returncode == 0


def test_a_server_whose_port_is_taken_is_one_sentence(tmp_path: Path) -> None:
    server = RunningServer(ServerFolder.create(tmp_path / "server", ["127.0.0.1"], free_port()))
    with (
        socket.create_server(("127.0.0.1", server.folder.port)),
        pytest.raises(UserError, match=f"Port {server.folder.port} is already in use"),
    ):
        server.start()


def test_more_sites_than_domains_are_refused(tmp_path: Path, images: Path) -> None:
    for domain in ("one", "two"):
        (tmp_path / "domains" / domain).mkdir(parents=True)
        for folder in images.iterdir():
            (tmp_path / "domains" / domain / folder.name).symlink_to(folder)
    with pytest.raises(UserError, match="2 domains for 3 sites"):
        up(tmp_path / "domains", {**SETTINGS, "sites": 3}, tmp_path / "up")
    assert not (tmp_path / "up").exists()


def _wait_for_refusal(site: RunningSite) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if site.supernode.ended is not None:
            site._reconnect(site.supernode.ended)
        elif "Connection attempt failed" in site.supernode.new_output():
            site._check_connection()
        time.sleep(0.2)


def _commands() -> list[str]:
    return subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def _processes_of(folder: Path) -> list[str]:
    return [command for command in _commands() if str(folder) in command]
