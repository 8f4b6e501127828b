"""What the process for a message could take: the site's images, state and keys, or the server's keys."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from fedgraft.config.run_config import RunConfig
from fedgraft.core.files import free_port
from fedgraft.deployment.processes import app_environment, clean_home, flower_environment
from fedgraft.deployment.running_server import _app_environment
from fedgraft.flower import confinement
from fedgraft.flower.zygote import Zygote
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

needs_landlock = pytest.mark.skipif(confinement.landlock_version() == 0, reason="this kernel has no Landlock")
_TRIES = """
import json, os, socket, sys, tempfile
from pathlib import Path
from fedgraft.flower import guarded

command, tried = sys.argv[1], json.loads(sys.argv[2])
guarded._confine(command)

def outcome(act):
    try:
        return str(act())
    except OSError as error:
        return type(error).__name__

def listens(port):
    socket.create_connection(("127.0.0.1", port), 5)

found = {path: outcome(lambda: os.listdir(path) if os.path.isdir(path) else Path(path).read_bytes()) for path in tried}
found["temporary"] = outcome(lambda: tempfile.TemporaryFile().write(b"x"))
found["environment of the parent"] = outcome(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes())
found["signal to the parent"] = outcome(lambda: os.kill(os.getppid(), 0))
found["own port"] = outcome(lambda: listens(int(sys.argv[4].rpartition(":")[2])))
found["other port"] = outcome(lambda: listens(1))
import fedgraft.client.app
print(json.dumps(found))
"""


_FORKED = """
import sys
from fedgraft.flower import internals
from fedgraft.flower.zygote import serve

internals.flower_command("flwr-clientapp")
sys.argv[1:] = serve()
"""


def _confined(command: str, environment: dict[str, str], tried: list[Path]) -> dict[str, str]:
    """What a confined process got when it tried to read some paths, and to do some other things."""
    words = [command, json.dumps([str(path) for path in tried]), "--runtime-api-address", f"127.0.0.1:{free_port()}"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRIES, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@needs_landlock
def test_the_process_for_a_message_reads_no_image_no_state_and_no_key(images: Path, tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north", images)
    (site.state / "run").mkdir()
    home = clean_home(site.path / "flwr")
    environment = {**flower_environment(home), **app_environment(site.app, home)}
    secrets = [site.private_key, site.tls_key, site.write_secret(), site.state, site.cache, site.path / "site.toml"]
    image = next(images.glob("*/*.png"))
    (app,) = (home / "apps").iterdir()
    found = _confined("flwr-clientapp", environment, [*secrets, images, image, Path.home(), tmp_path, app])
    refused = [*secrets, images, image, Path.home(), tmp_path]
    assert {str(path): found[str(path)] for path in refused} == {str(path): "PermissionError" for path in refused}
    assert "pyproject.toml" in found[str(app)]
    assert found["temporary"] == "1"
    assert found["environment of the parent"] == "PermissionError"
    assert found["own port"] == "ConnectionRefusedError"  # nothing listens; it was let through
    if confinement.landlock_version() >= confinement.NETWORK_SINCE:
        assert found["other port"] == "PermissionError"
    if confinement.landlock_version() >= confinement.SIGNALS_SINCE:
        assert found["signal to the parent"] == "PermissionError"


@pytest.mark.slow
@needs_landlock
def test_a_forked_process_for_a_message_is_confined_too_and_cannot_reach_its_zygote(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = SiteFolder.create(tmp_path / "site", "north", images)
    home = clean_home(site.path / "flwr")
    for name, value in {**flower_environment(home), **app_environment(site.app, home)}.items():
        monkeypatch.setenv(name, value)
    refused = [site.private_key, site.state, next(images.glob("*/*.png")), Path.home()]
    words = [json.dumps([str(path) for path in refused]), "--runtime-api-address", f"127.0.0.1:{free_port()}"]
    out = tmp_path / "out"
    zygote = Zygote(["sh", "-c", 'exec "$0" -P -c "$1" > "$2"', sys.executable, _FORKED + _TRIES, str(out)])
    zygote.start(["flwr-clientapp", *words], "token")
    deadline = time.monotonic() + 120
    while not out.read_text().endswith("}\n"):
        assert time.monotonic() < deadline, "it has not answered; this only ends a test that would hang"
        time.sleep(0.05)
    zygote._end()
    found = json.loads(out.read_text().splitlines()[-1])
    assert {found[str(path)] for path in refused} == {"PermissionError"}
    assert found["temporary"] == "1"
    assert found["environment of the parent"] == "PermissionError"
    if confinement.landlock_version() >= confinement.SIGNALS_SINCE:
        assert found["signal to the parent"] == "PermissionError"


@pytest.mark.slow
@needs_landlock
def test_a_server_app_writes_its_run_directory_and_reads_no_key(tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", ["127.0.0.1"], 1)
    other = tmp_path / "other"
    other.mkdir()
    run = {"config": RunConfig(protocol="own-data").model_dump(), "admitted": str(server.path / "admitted")}
    settings = {"out": str(tmp_path / "run"), "settings": json.dumps(run)}
    (server.app / "settings-0.toml").write_text(tomli_w.dumps(settings))
    home = clean_home(server.path / "flwr")
    environment = {**flower_environment(home), **_app_environment(server, home)}
    keys = [server.path / "keys", server.private_key, server.path / "keys" / "ca.key", server.operator_secret]
    found = _confined(
        "flwr-serverapp", environment, [*keys, other, server.authority, server.path / "admitted", tmp_path / "run"]
    )
    assert {found[str(path)] for path in (*keys, other)} == {"PermissionError"}
    assert found[str(tmp_path / "run")] == found[str(server.path / "admitted")] == "[]"
    assert "BEGIN CERTIFICATE" in found[str(server.authority)]


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        (0, "This kernel has no Landlock, so the process that handles a message is not confined"),
        (2, "confines the process that handles a message to its files, but not its TCP connections"),
        (4, ""),
    ],
)
def test_what_is_not_confined_is_said(version: int, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "landlock_version", lambda: version)
    said = confinement.shortcoming()
    assert said.startswith(sentence) if sentence.startswith("This kernel has") else sentence in said
    assert bool(said) == bool(sentence)


def test_images_among_pythons_libraries_are_said() -> None:
    inside = Path(sys.prefix) / "images"
    assert confinement.landlock_version() == 0 or f"{inside} lies in " in confinement.shortcoming([inside])
