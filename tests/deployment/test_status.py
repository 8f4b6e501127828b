"""What an operator sees of a server and a site, and what monitoring is told."""

import json
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedgraft.cli.main import app
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.files import free_port
from fedgraft.deployment.contacts import Contact, Contacts, read_contacts
from fedgraft.deployment.folder_lock import FolderLock
from fedgraft.deployment.local import admit_here
from fedgraft.deployment.prometheus import serve_metrics
from fedgraft.deployment.server_status import server_status
from fedgraft.deployment.site_status import site_status
from fedgraft.deployment.status_file import StatusFile
from fedgraft.flower.node_status import NodeStatus
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

NAMES = ("ill", "late", "new", "quick", "slow")


@pytest.fixture
def server(tmp_path: Path) -> ServerFolder:
    """A server with five sites, none of which has been seen."""
    folder = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], 1)
    for name in NAMES:
        admit_here(folder, SiteFolder.create(tmp_path / name, name))
    return folder


@pytest.fixture
def run(server: ServerFolder, tmp_path: Path) -> RunDirectory:
    """A run at work in the second of three rounds, in the first of which the site "ill" was left out."""
    directory = RunDirectory(tmp_path / "run")
    config = RunConfig(data="folder:own", protocol="own-data", sites=4, rounds=3)
    directory.lock()
    directory.create(config)
    server.queue.enter(directory.path).leave()
    directory.begin_attempt()
    directory.write_json("sites.json", {name: {"number": n} for n, name in enumerate(("ill", "late", "quick", "slow"))})
    checkpoints = directory.path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "fold-000-round-000001.safetensors").write_bytes(b"")
    left_out = {"round": 1, "fold": None, "scope": "left_out", "site": 0, "reason": "a\x1b[2J[b]bad[/b] update"}
    directory.append([{"round": 1, "fold": None, "scope": "train", "sites": [1, 2, 3], "seconds": 2.0}, left_out])
    return directory


def _contacts(server: ServerFolder) -> None:
    """Seen from now: "quick" has answered, "slow" and "ill" have had the message for two minutes and a moment."""
    now = time.time()
    contacts = {
        "ill": Contact(now, now + 1, now - 50),
        "late": Contact(now - 200, now - 400, now - 390),
        "quick": Contact(now, now + 1, now + 2),
        "slow": Contact(now, now - 120, now - 130),
    }
    (server.path / "contacts.json").write_text(json.dumps({name: vars(contact) for name, contact in contacts.items()}))


def test_the_state_of_every_site_and_why(server: ServerFolder, run: RunDirectory) -> None:
    _contacts(server)
    status = server_status(server)
    assert status.run is not None
    assert (status.run.state, status.run.round, status.run.rounds) == ("running", 1, 3)
    lines = {line.name: line for line in status.sites}
    assert {name: line.state for name, line in lines.items()} == {
        "ill": "working", "late": "gone", "new": "never seen", "quick": "answered", "slow": "slow",
    }  # fmt: skip
    assert {name: line.last_round for name, line in lines.items()} == {
        "ill": None, "late": 1, "new": None, "quick": 1, "slow": 1,
    }  # fmt: skip
    assert lines["ill"].reason == "left out of round 1: a(2J(b)bad(/b) update"
    assert lines["late"].reason.startswith("it has not been heard for 20")
    assert lines["slow"].reason == "it has had the message for 120 seconds."
    assert [problem.partition(":")[0] for problem in status.folder.problems] == [
        "It is not running.", "The site 'late' is gone", "The site 'slow' is slow",
    ]  # fmt: skip


def test_without_a_run_at_work_a_site_that_is_gone_is_no_problem(server: ServerFolder, run: RunDirectory) -> None:
    _contacts(server)
    run.unlock()
    status = server_status(server)
    assert status.run is not None
    assert status.run.state == "interrupted"
    assert status.folder.problems == ["It is not running."]


def test_a_run_that_waits_is_listed_behind_the_one_at_work(
    server: ServerFolder, run: RunDirectory, tmp_path: Path
) -> None:
    place = server.queue.enter(tmp_path / "next")
    status = server_status(server)
    place.leave()
    assert status.run is not None
    assert status.run.path == str(run.path)
    assert status.unfinished == [str(tmp_path / "next")]


def test_monitoring_is_told_by_the_exit_code(server: ServerFolder, run: RunDirectory, tmp_path: Path) -> None:
    def ask(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, words)
        return result.exit_code, result.output

    code, shown = ask("server", "status", str(server.path))
    assert code == 1
    assert "Problem: It is not running." in shown
    assert "running, 1 of 3 rounds complete" in shown
    assert "(b)bad(/b) update" in shown
    assert "\x1b" not in shown
    lock = FolderLock(server.path)
    StatusFile(server.path, {}, "", "").write()
    code, shown = ask("server", "status", str(server.path), "--json")
    assert (code, json.loads(shown)["folder"]["problems"]) == (0, [])
    lock.release()
    code, shown = ask("site", "status", str(tmp_path / "new"), "--json")
    assert (code, json.loads(shown)["folder"]["problems"]) == (1, ["It is not running."])


def test_a_sites_connection_message_and_runs(server: ServerFolder, tmp_path: Path) -> None:
    site = SiteFolder.open(tmp_path / "new")
    lock, status_file = FolderLock(site.path), StatusFile(site.path, {}, "fed.example.org:9092", "")
    assert site_status(site).folder.problems == ["It is starting."]
    status_file.write()
    assert site_status(site).folder.problems == ["It has not reached its server yet."]
    (site.state / "first" / "000").mkdir(parents=True)
    (site.state / "first" / "000" / "round-000007.safetensors").write_bytes(b"")
    status_file.write(NodeStatus(connected=5.0, doing="waiting", kind="train", received=6.0))
    status = site_status(site)
    assert (status.server, status.connected, status.doing, status.message) == (
        "fed.example.org:9092", 5.0, "waiting", "train",
    )  # fmt: skip
    assert status.runs == {"first": 7}
    assert status.folder.problems == []
    lock.release()


def test_a_certificate_that_expires_soon_and_a_full_disk_are_problems(
    server: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedgraft.deployment.folder_status._LEAST_DAYS", 1000)
    monkeypatch.setattr("fedgraft.deployment.folder_status._LEAST_BYTES", 1 << 60)
    problems = server_status(server).folder.problems
    assert "The certificate server.pem expires in 824 days." in problems
    assert any(problem.startswith("Only ") and "MB are free" in problem for problem in problems)


def test_a_contact_outlives_the_gateway(tmp_path: Path) -> None:
    contacts = Contacts(tmp_path)
    for method in ("pull-messages", "confirm-message-received", "push-messages"):
        contacts.heard("north", method)
    contacts.write()
    (name, contact), *others = read_contacts(tmp_path).items()
    assert (name, contact.requests, others) == ("north", 3, [])
    assert 0 < contact.received <= contact.answered == contact.seen
    (tmp_path / "contacts.json").write_text("[]")
    assert read_contacts(tmp_path) == {}


def test_metrics_are_served_on_loopback(server: ServerFolder, run: RunDirectory) -> None:
    pytest.importorskip("prometheus_client")
    _contacts(server)
    port = free_port()
    serve_metrics(server, port)
    lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode().splitlines()
    assert "fedgraft_run_round 1.0" in lines
    assert 'fedgraft_site_state{site="slow",state="slow"} 1.0' in lines
    assert 'fedgraft_site_last_round{site="quick"} 1.0' in lines
    with pytest.raises(UserError, match=f"Metrics cannot be served on port {port}"):
        serve_metrics(server, port)


def test_metrics_without_their_package_are_one_sentence(server: ServerFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UserError, match=r"pip install 'fedgraft\[metrics\]'"):
        serve_metrics(server, free_port())
