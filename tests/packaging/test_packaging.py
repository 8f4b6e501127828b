"""What is installed on a machine: hardened units, proxies that pass TLS through, containers that do not run as root."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from fedgraft.core.files import free_port
from fedgraft.deployment.connection_check import find_obstacle
from fedgraft.deployment.local import admit_here
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))
CONTAINERS = sorted((PACKAGING / "container").glob("*.Containerfile"))
_LARGEST_EXPOSURE = 3.0


def _needs(command: str) -> str:
    """The path of a command; CI installs it, elsewhere the test is skipped without it."""
    path = shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None and "CI" not in os.environ:
        pytest.skip(f"needs {command}")
    assert path is not None
    return path


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_hardened_and_has_no_unknown_setting(unit: Path) -> None:
    command = _needs("systemd-analyze")
    shown = subprocess.run([command, "security", "--offline=yes", unit], capture_output=True, text=True, timeout=120)
    if "--offline" in shown.stderr:
        pytest.skip("this systemd-analyze is older than 250")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", shown.stdout)
    assert found, shown
    assert float(found[1]) < _LARGEST_EXPOSURE
    verified = subprocess.run([command, "verify", unit], capture_output=True, text=True, timeout=120)
    complaints = [line for line in verified.stderr.splitlines() if unit.name in line]
    assert all(re.search(r"fedgraft(-device)? is not executable", line) for line in complaints), complaints


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[ServerFolder, SiteFolder, int]]:
    """A server for the name "localhost" and an admitted site, and the port of what speaks TLS as the gateway does."""
    server = ServerFolder.create(tmp_path / "server", ["localhost"], 1)
    site = SiteFolder.create(tmp_path / "north", "north")
    admit_here(server, site)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(server.authority))
    context.load_cert_chain(server.certificate, server.private_key)
    context.verify_mode = ssl.CERT_REQUIRED
    plain = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = plain.accept()
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as heard:
                    heard.recv(1)
                    heard.sendall(b"HTTP/1.0 404 Not Found\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield server, site, int(plain.getsockname()[1])
    plain.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nginx", "haproxy"])
def test_a_proxy_passes_a_sites_certificate_on_by_the_name_asked_for(
    name: str, gateway: tuple[ServerFolder, SiteFolder, int], tmp_path: Path
) -> None:
    command = _needs(name)
    (shipped,) = (PACKAGING / "proxy").glob(f"{name}.c*")
    server, site, port = gateway
    exposed = free_port()
    text = shipped.read_text().replace("fed.example.org", "localhost").replace("127.0.0.1:9092", f"127.0.0.1:{port}")
    text = re.sub(r"(listen |bind :)443", rf"\g<1>{exposed}", text).replace("127.0.0.1:8443", "127.0.0.1:1")
    config = tmp_path / shipped.name
    config.write_text(text)
    words = ["-p", tmp_path, "-g", f"daemon off; pid {tmp_path}/pid; error_log stderr;"] if name == "nginx" else []
    option = "-c" if name == "nginx" else "-f"
    proxy = subprocess.Popen([command, *words, option, config], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while (found := _obstacle(server, site, "localhost", exposed)) and time.monotonic() < deadline:
            assert proxy.poll() is None, proxy.communicate()
            time.sleep(0.1)
        assert found is None
        assert _obstacle(server, site, "127.0.0.1", exposed) is not None  # another name goes to the web server
    finally:
        proxy.terminate()
        proxy.communicate(timeout=60)


def _obstacle(server: ServerFolder, site: SiteFolder, host: str, port: int) -> object:
    return find_obstacle(f"{host}:{port}", server.authority, site.certificate, site.tls_key)


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda path: path.stem)
def test_a_container_is_built_in_stages_and_does_not_run_as_root(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER fedgraft" in last
    assert any(re.search(r"useradd --uid 10001 .* fedgraft", line) for line in last)
    assert not [line for line in last if line.startswith("RUN") and last.index(line) > last.index("USER fedgraft")]


def test_the_compose_file_names_what_exists_and_drops_all_rights() -> None:
    compose = yaml.safe_load((PACKAGING / "container" / "compose.yaml").read_text())
    assert set(compose["services"]) == {"server", "site"}
    for service in compose["services"].values():
        assert (PACKAGING.parent / service["build"]["dockerfile"]) in CONTAINERS
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)
        assert service["security_opt"] == ["no-new-privileges:true"]
