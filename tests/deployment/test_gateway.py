"""What a stranger at the exposed port would gain: the control interface, a fleet of one's own, an app of one's own."""

import http.client
import json
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509

from fedgraft.core.errors import UserError
from fedgraft.core.files import free_port
from fedgraft.deployment.local import admit_here
from fedgraft.deployment.processes import guarded
from fedgraft.deployment.running_server import RunningServer, _operator
from fedgraft.flower.run_state import Outcome, RunState
from fedgraft.runs.flower_app_folder import write_app
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

CONTROL, FLEET = "/v1/control/list-runs", "/v1/fleet/activate-node"
_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("gateway")
    running = RunningServer(ServerFolder.create(root / "server", ["127.0.0.1"], free_port()))
    running.start()
    yield running
    running.stop()


def _connect(port: int, authority: Path, site: SiteFolder | None = None) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(authority))
    if site is not None:
        context.load_cert_chain(site.certificate, site.tls_key)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=_SECONDS, context=context)


def _status(connection: http.client.HTTPSConnection, path: str, **headers: str) -> int:
    connection.request("POST", path, b"", {"content-type": "application/x-protobuf", **headers})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def _site(tmp_path: Path, server: ServerFolder, name: str) -> SiteFolder:
    site = SiteFolder.create(tmp_path / name, name)
    admit_here(server, site)
    return site


@pytest.mark.slow
def test_nobody_without_a_certificate_of_this_server_is_heard(server: RunningServer, tmp_path: Path) -> None:
    folder = server.folder
    other = ServerFolder.create(tmp_path / "other", ["127.0.0.1"], 1)
    for site in (None, _site(tmp_path, other, "stranger")):
        with pytest.raises((OSError, http.client.HTTPException)):
            _status(_connect(folder.port, folder.authority, site), FLEET)


@pytest.mark.slow
def test_an_admitted_site_reaches_the_fleet_interface_and_nothing_else(server: RunningServer, tmp_path: Path) -> None:
    site = _site(tmp_path, server.folder, "curious")
    connection = _connect(server.folder.port, server.folder.authority, site)
    assert _status(connection, FLEET) not in (403, 404)  # the SuperLink's own answer to an empty request
    for path in (CONTROL, "/v1/runtime/request-token", "/", "/v1/fleet/../control/list-runs"):
        assert _status(connection, path) == 404


@pytest.mark.slow
def test_a_message_that_is_too_large_is_refused_unread(server: RunningServer, tmp_path: Path) -> None:
    site = _site(tmp_path, server.folder, "generous")
    for headers, status in (({"content-length": str(1 << 40)}, 413), ({"transfer-encoding": "chunked"}, 411)):
        connection = _connect(server.folder.port, server.folder.authority, site)
        connection.putrequest("POST", FLEET)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == status


@pytest.mark.slow
def test_the_superlink_answers_the_operator_and_the_gateway_only(server: RunningServer) -> None:
    connection = _connect(server.folder.superlink_port, server.folder.authority)
    for path in (CONTROL, FLEET):
        assert _status(connection, path) == 403
        assert _status(connection, path, **{"x-fedgraft-operator": "0" * 64, "x-fedgraft-gateway": "0" * 64}) == 403
    with pytest.raises(OSError, match="refused"):
        _connect_elsewhere(server.folder.superlink_port)


def _connect_elsewhere(port: int) -> None:
    """Connect by another address of this machine than the loopback's first."""
    http.client.HTTPConnection("127.0.0.2", port, timeout=_SECONDS).connect()


@pytest.mark.slow
def test_a_revoked_site_is_cut_off(server: RunningServer, tmp_path: Path) -> None:
    site, faithful = (_site(tmp_path, server.folder, name) for name in ("revoked", "faithful"))
    connection = _connect(server.folder.port, server.folder.authority, site)
    assert _status(connection, FLEET) not in (403, 404)
    server.folder.revoke("revoked")
    with suppress(OSError, http.client.HTTPException):
        while True:  # until the gateway has read the list and closed the connection
            _status(connection, FLEET)
    with pytest.raises((OSError, http.client.HTTPException)):
        _status(_connect(server.folder.port, server.folder.authority, site), FLEET)
    assert _status(_connect(server.folder.port, server.folder.authority, faithful), FLEET) not in (403, 404)


@pytest.mark.slow
def test_a_server_renews_its_revocation_list_before_that_shuts_out_every_site(
    server: RunningServer, tmp_path: Path
) -> None:
    site, folder = _site(tmp_path, server.folder, "constant"), server.folder
    folder.write_revocation_list(datetime.now(UTC) - timedelta(days=900))
    server._look_again = 0.0
    server.supervise()
    ends = x509.load_pem_x509_crl(folder.revocation_list.read_bytes()).next_update_utc
    assert ends is not None
    assert ends > datetime.now(UTC) + timedelta(days=800)
    os.kill(server._gateway.pid, signal.SIGKILL)  # the next one has this list only
    while server._gateway.ended is None:
        pass
    server.supervise()
    server._gateway.wait_until(lambda: _answers(folder, site), _SECONDS)


@pytest.mark.slow
def test_an_app_of_ones_own_is_not_run_even_for_the_operator(server: RunningServer, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app")
    module, mark = app / "graft" / "server_app.py", tmp_path / "was-run"
    module.write_text(f"open({str(mark)!r}, 'w').close()\n{module.read_text()}")
    folder, out = server.folder, tmp_path / "out"
    run = {"config": {"backbone": "mini"}, "admitted": str(folder.path / "admitted"), "submission": "abc"}
    settings = folder.path / "app" / "settings-own.toml"
    settings.write_text(tomli_w.dumps({"out": str(out), "settings": json.dumps(run)}))
    command = [*guarded("flwr"), "run", str(app), folder.write_connection(), "--stream", "--run-config", str(settings)]
    done = subprocess.run(command, env=_operator(folder), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "is not the app of the installed fedgraft" in done.stdout + done.stderr
    assert not mark.exists()
    ended = RunState(out).ended
    assert ended is not None
    assert (ended.outcome, ended.submission) == (Outcome.FAILED, "abc")
    assert ended.reason.startswith("The app of this run is not the app of the installed fedgraft")


@pytest.mark.slow
def test_a_gateway_that_ends_is_started_again(server: RunningServer, tmp_path: Path) -> None:
    site = _site(tmp_path, server.folder, "patient")
    os.kill(server._gateway.pid, signal.SIGKILL)
    while server._gateway.ended is None:
        pass
    server.supervise()
    server._gateway.wait_until(lambda: _answers(server.folder, site), _SECONDS)


def _answers(folder: ServerFolder, site: SiteFolder) -> bool:
    try:
        return _status(_connect(folder.port, folder.authority, site), FLEET) not in (403, 404)
    except OSError:
        return False


def test_a_folder_of_the_first_version_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("port = 9092\n")
    with pytest.raises(UserError, match="issued no certificates to sites; make a new folder"):
        ServerFolder.open(tmp_path)
