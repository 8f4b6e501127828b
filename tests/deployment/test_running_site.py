"""What looks after a site's processes: the ended start again, the hung are ended, a refusal is told from bad luck."""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from fedgraft.client.worker_status import clear_status, last_pulse, report_task, running_task, start_pulse
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.connection_check import Obstacle
from fedgraft.deployment.local import admit_here
from fedgraft.deployment.processes import _group_lives
from fedgraft.deployment.running_site import RunningSite
from fedgraft.deployment.site_status import site_status
from fedgraft.flower.node_status import NodeStatusFile
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

pytestmark = pytest.mark.slow
SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[RunningSite]:
    """A site all of whose processes only sleep."""
    server = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], 1)
    folder = SiteFolder.create(tmp_path / "north", "north")
    admit_here(server, folder)
    running = RunningSite(folder, "127.0.0.1:1", server.authority)
    for process in running.processes.values():
        process.command = SLEEPS
    running.start()
    yield running
    running.stop()


def _says(site: RunningSite, text: str, status: int) -> None:
    site.supernode.command = [sys.executable, "-c", f"print({text!r}); raise SystemExit({status})"]
    site.supernode.kill()
    site.supernode.start()
    assert site.supernode._process is not None
    site.supernode._process.wait(30)


def test_a_worker_and_a_starter_that_end_are_started_again(site: RunningSite, caplog: pytest.LogCaptureFixture) -> None:
    before = [site.worker.pid, site.superexec.pid]
    site.worker.kill()
    site.superexec.kill()
    site.supervise()
    assert [site.worker.ended, site.superexec.ended] == [None, None]
    assert not {site.worker.pid, site.superexec.pid} & set(before)
    assert "The worker of 'north' ended with status -9 and is restarted" in caplog.text


def test_what_an_ended_process_had_started_ends_before_it_is_started_again(site: RunningSite) -> None:
    starts_another = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    site.superexec.command = [sys.executable, "-c", starts_another]
    site.superexec.kill()
    site.superexec.start()
    assert site.superexec._process is not None
    site.superexec._process.wait(30)
    group = site.superexec.pid
    os.killpg(group, 0)  # the grandchild is there
    site.superexec.command = SLEEPS
    site.supervise()
    assert site.superexec.ended is None
    deadline = time.monotonic() + 30
    while _group_lives(group) and time.monotonic() < deadline:
        pass
    assert not _group_lives(group)


def test_a_worker_that_hangs_over_a_message_is_ended_and_named(
    site: RunningSite, caplog: pytest.LogCaptureFixture
) -> None:
    with report_task(site._sockets, "train"):
        site.supervise()
        assert "task_seconds" not in caplog.text
        task = {"kind": "train", "began": time.monotonic() - 3601}
        (site._sockets / "task.json").write_text(json.dumps(task))
        before = site.worker.pid
        site.supervise()
        assert site.worker.pid != before
        assert re.search(r"has been handling one message \(train\) for 36\d\d seconds", caplog.text)
        assert running_task(site._sockets) is None
        again = site.worker.pid
        site.supervise()
        assert site.worker.pid == again


def test_a_worker_that_is_stopped_between_two_messages_is_ended_and_named(
    site: RunningSite, caplog: pytest.LogCaptureFixture
) -> None:
    (site._sockets / "pulse").write_text(str(time.monotonic() - 20))
    before = site.worker.pid
    site.supervise()
    assert site.worker.pid == before
    (site._sockets / "pulse").write_text(str(time.monotonic() - 50))
    site.supervise()
    assert site.worker.pid != before
    assert re.search(r"The worker of 'north' has given no sign of life for 5\d s", caplog.text)
    again = site.worker.pid
    site.supervise()
    assert site.worker.pid == again


def test_a_worker_gives_signs_of_life(tmp_path: Path) -> None:
    began = time.monotonic()
    assert last_pulse(tmp_path) is None
    start_pulse(tmp_path)
    pulse = None
    while pulse is None:
        pulse = last_pulse(tmp_path)
    assert pulse is not None
    assert began <= pulse <= time.monotonic()
    clear_status(tmp_path)


def test_a_site_that_was_never_taken_ends_with_the_reason(site: RunningSite) -> None:
    _says(site, "[code: 2004] Failed to activate SuperNode.", 1)
    with pytest.raises(RunFailed, match="the server has not admitted the site's key"):
        site.supervise()


def test_a_site_that_was_taken_before_tries_again_and_ends_after_a_while(
    site: RunningSite, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    NodeStatusFile(site._node_status).on_connected()
    _says(site, "[code: 2004] Failed to activate SuperNode.", 1)
    before = site.supernode.pid
    site.supervise()
    assert site.supernode.pid != before
    assert caplog.text.count("is restarted until it connects") == 1
    now = time.monotonic()
    monkeypatch.setattr("fedgraft.deployment.running_site.time.monotonic", lambda: now + 1000)
    _says(site, "[code: 2004] Failed to activate SuperNode.", 1)
    with pytest.raises(RunFailed, match="still considers the site connected"):
        site.supervise()


def test_a_refused_site_tries_again_less_and_less_often_and_starts_its_superexec_once_it_has_connected(
    site: RunningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    NodeStatusFile(site._node_status).on_connected()
    _says(site, "[code: 2004] Failed to activate SuperNode.", 1)
    began, starts, seconds, attempts = time.monotonic(), site.supernode.starts, 0.0, list[float]()
    monkeypatch.setattr("fedgraft.deployment.running_site.time.monotonic", lambda: began + seconds)
    for seconds in range(100):
        site.supervise()
        if site.supernode.starts > starts:
            attempts.append(seconds)
            starts = site.supernode.starts
            assert site.supernode._process is not None
            site.supernode._process.wait(30)
    assert attempts == [0, 5, 15, 35, 55, 75, 95]
    assert site.superexec.ended is not None
    site.supernode.command = SLEEPS
    seconds = 115
    site.supervise()
    assert site.superexec.ended is not None
    NodeStatusFile(site._node_status).on_connected()
    site.supervise()
    assert site.superexec.ended is None


def test_a_supernode_that_has_lost_its_server_for_good_is_started_again(
    site: RunningSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower's process stays when a connection breaks in the middle of a TLS handshake, and asks no more."""
    lost = (
        "print('SuperNode ID: 7'); print('SSL/TLS handshake error detected.', flush=True); import time; time.sleep(600)"
    )
    site.supernode.command = [sys.executable, "-c", lost]
    site.supernode.kill()
    site.supernode.start()
    before = site.supernode.pid
    site.supernode.wait_until(lambda: "handshake" in site.supernode.output(), 30)
    site.supernode.command = SLEEPS
    site.supervise()
    assert site.supernode.ended is None
    assert site.supernode.pid != before
    assert "The SuperNode of 'north' has lost the server" in caplog.text


def test_another_servers_certificate_is_no_matter_of_time(site: RunningSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    NodeStatusFile(site._node_status).on_connected()
    _says(site, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", 1)
    with pytest.raises(RunFailed, match=r"its ca\.pem is not the server's"):
        site.supervise()


# --- a message that nobody answers --------------------------------------------------------------------------------


def test_a_supernode_that_waits_for_an_answer_that_nobody_gives_is_started_again(
    site: RunningSite, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its app's process was killed before it fetched the message, or somebody else used its token."""
    NodeStatusFile(site._node_status).on_received("train")
    before = site.supernode.pid
    site.supervise()
    now = time.monotonic()
    monkeypatch.setattr("fedgraft.deployment.running_site.time.monotonic", lambda: now + 16)
    site.supervise()
    assert site.supernode.pid != before
    assert "has been waiting for an answer for 15 seconds, but no process works on one" in caplog.text
    again = site.supernode.pid
    site.supervise()
    assert site.supernode.pid == again


@pytest.mark.parametrize("busy", ["worker", "app", "sending"])
def test_a_supernode_whose_message_is_being_answered_is_left_alone(
    busy: str, site: RunningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = NodeStatusFile(site._node_status)
    node.on_received("train")
    if busy == "sending":
        node.on_sending()
    if busy == "app":
        zygote = f"import subprocess, time; subprocess.Popen({SLEEPS!r}); time.sleep(600)"
        starts_it = (
            f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {zygote!r}]); time.sleep(600)"
        )
        site.superexec.command = [sys.executable, "-c", starts_it]
        site.superexec.start()
        site.superexec.wait_until(lambda: bool(site.superexec.grandchildren()), 60)
    before = site.supernode.pid
    now = time.monotonic()
    with report_task(site._sockets, "train") if busy == "worker" else nullcontext():
        for later in (0, 16, 32):
            monkeypatch.setattr("fedgraft.deployment.running_site.time.monotonic", lambda later=later: now + later)
            site.supervise()
    assert site.supernode.pid == before


# --- starting twice, what is said at the start, logs --------------------------------------------------------------


def test_a_site_that_runs_is_not_started_again(site: RunningSite) -> None:
    with pytest.raises(UserError, match=r"north is already running, as process \d+"):
        RunningSite(site.folder, "127.0.0.1:1", site._authority)


def test_a_clock_that_is_hours_off_ends_the_site_with_a_line_that_its_status_shows(
    site: RunningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "This machine's clock is 2 hours ahead of the server's; set the wrong one right."
    monkeypatch.setattr("fedgraft.deployment.running_site.find_obstacle", lambda *given: Obstacle(line))
    with pytest.raises(RunFailed, match="clock is 2 hours ahead"):
        site.start()
    assert line in site_status(site.folder).folder.problems
    site.stop()
    assert f"Before it ended: {line}" in site_status(site.folder).folder.problems


def test_a_signature_that_the_server_rejects_for_the_clock_is_told_as_the_clock(
    site: RunningSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    NodeStatusFile(site._node_status).on_connected()
    site.supervise()
    found = Obstacle("This machine's clock is 2 hours ahead of the server's; set the wrong one right.")
    monkeypatch.setattr("fedgraft.deployment.running_site.find_obstacle", lambda *given: found)
    _says(site, "gRPC stream terminated gracefully", 1)
    site.supervise()
    assert "ended (this machine's clock is 2 hours ahead of the server's; set the wrong one right)" in caplog.text
    assert "this machine's clock is 2 hours ahead" in site_status(site.folder).obstacle


def test_a_site_says_that_nothing_listens_and_goes_on(site: RunningSite, caplog: pytest.LogCaptureFixture) -> None:
    site._status.obstacle = ""
    site._check_connection()
    site._check_connection()
    assert caplog.text.count("Nothing listens at port 1 of 127.0.0.1 (connection refused). The site keeps trying.") == 1
    site.supervise()
    status = site_status(site.folder)
    assert status.obstacle.startswith("Nothing listens at port 1")
    assert status.obstacle in status.folder.problems
    assert [process.name for process in status.folder.processes] == ["worker", "supernode", "superexec"]


def test_a_kernel_that_cannot_confine_is_said_at_the_start(
    site: RunningSite, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = site._authority
    site.stop()
    monkeypatch.setattr("fedgraft.flower.confinement.landlock_version", lambda: 0)
    unconfined = RunningSite(site.folder, "127.0.0.1:1", authority)
    for process in unconfined.processes.values():
        process.command = SLEEPS
    unconfined.start()
    unconfined.stop()
    assert caplog.text.count("This kernel has no Landlock, so the process that handles a message is not confined") == 1


def test_a_log_that_has_become_large_is_rotated_and_no_new_output_is_missed(
    site: RunningSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = site.supernode
    with process.log.open("a") as log:
        log.write("before\n")
    monkeypatch.setattr("fedgraft.deployment.processes.LARGEST_BYTES", 3)
    process.rotate_log()
    with process.log.open("a") as log:
        log.write("after\n")
    assert process.new_output() == "before\nafter\n"
    assert process.output() == "after\n"
    assert process.log.with_name("supernode.log.1").read_text() == "before\n"
