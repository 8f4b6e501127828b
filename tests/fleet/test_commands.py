"""The fleet's commands as a user types them: one folder from serve to rollback, and one line for each mistake."""

import json
import os
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from fedgraft.cli.main import main
from fedgraft.device.agent.tally import Tally, add_tally
from fedgraft.device.commands import main as device_main
from fedgraft.device.predictor import Prediction
from fedgraft.edge_export.signing import signing_key
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.metrics import fleet_figures
from fedgraft.fleet.page import serve_page, status_page
from fedgraft.fleet.simulated_bundle import bundle_contents, signed, write_files
from fedgraft.fleet.simulation import FleetSimulation, simulate_fleet
from fedgraft.fleet.status import fleet_status
from fedgraft.runs.site_folder import SiteFolder
from tests.fleet.conftest import KEY, Fleet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: its exit code, output and errors."""

    def call(*words: object, command: Callable[[], None] = main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedgraft", *map(str, words)])
        try:
            command()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def key(fleet: Fleet, tmp_path: Path) -> Path:
    """The file of the publisher's key."""
    from cryptography.hazmat.primitives import serialization

    from fedgraft.core.files import write_private

    path = tmp_path / "publisher.key"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    write_private(path, KEY.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return path


def _agent(fleet: Fleet, run: Run, folder: Path, *words: object) -> tuple[int, str, str]:
    assert fleet.registry is not None
    server = f"localhost:{fleet.registry.port}"
    return run("agent", "--server", server, "--dir", folder, "--once", *words, command=device_main)


def test_from_a_token_to_a_rollback(fleet: Fleet, key: Path, run: Run, tmp_path: Path) -> None:
    device = tmp_path / "camera"
    code, token, _ = run("fleet", "token", fleet.folder.path, "--group", "gate")
    assert code == 0
    enrolling = ("--ca", fleet.folder.authority, "--token", token.strip())
    code, out, err = _agent(fleet, run, device, *enrolling)
    assert (code, err) == (0, "")
    assert "has nothing for this device yet" in out
    for version in (1, 2):
        bundle = fleet.bundle(version)
        code, out, _ = run("fleet", "publish", fleet.folder.path, bundle, "--channel", "stable", "--key", key)
        assert code == 0
        assert f"Published version {version} in 'stable' for 100 % of its devices" in out
        code, out, _ = _agent(fleet, run, device)
        assert (code, out.startswith(f"Version {version} runs now;")) == (0, True)
    Image.new("RGB", (8, 8), (0, 0, 200)).save(tmp_path / "blue.png")
    code, out, _ = run("predict", device, tmp_path / "blue.png", "--json", command=device_main)
    assert json.loads(out)[str(tmp_path / "blue.png")]["label"] == "blue"
    code, out, _ = run("fleet", "rollback", fleet.folder.path, "--channel", "stable", "--key", key, "--json")
    assert json.loads(out)["version"] == 1
    assert _agent(fleet, run, device)[0] == 0
    code, out, _ = run("fleet", "status", fleet.folder.path, "--json")
    assert code == 0
    (line,) = json.loads(out)["devices"]
    assert {"id", "group", "version", "health", "last_seen"} <= set(line)
    assert (line["group"], line["version"], line["health"]) == ("gate", 1, "ok")
    assert time.time() - line["last_seen"] < 60
    code, out, _ = run("fleet", "status", fleet.folder.path)
    assert line["id"] in out


def test_a_token_that_was_used_is_one_line_and_exit_code_2(fleet: Fleet, run: Run, tmp_path: Path) -> None:
    enrolling = ("--ca", fleet.folder.authority, "--token", fleet.token())
    assert _agent(fleet, run, tmp_path / "a", *enrolling)[0] == 0
    code, _, err = _agent(fleet, run, tmp_path / "b", *enrolling)
    assert (code, err.count("\n")) == (2, 1)
    assert "the token was used already" in err


def test_no_registry_is_one_line_and_exit_code_1(fleet: Fleet, run: Run, tmp_path: Path) -> None:
    enrolling = ("--ca", fleet.folder.authority, "--token", fleet.token())
    fleet.publish(1)
    assert _agent(fleet, run, tmp_path / "a", *enrolling)[0] == 0
    fleet.stop()
    code, _, err = _agent(fleet, run, tmp_path / "a")
    assert (code, err.count("\n")) == (1, 1)
    assert "does not answer" in err
    Image.new("RGB", (8, 8), (0, 200, 0)).save(tmp_path / "green.png")
    code, out, _ = run("predict", tmp_path / "a", tmp_path / "green.png", command=device_main)
    assert (code, "green" in out) == (0, True)
    fleet.start()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["token", "{missing}"], "is not a fleet's folder"),
        (["token", "{fleet}", "--group", "<b>x</b>"], "is not the name of a group"),
        (["status", "{missing}"], "is not a fleet's folder"),
        (["publish", "{fleet}", "{bundle}", "--channel", "stable", "--percent", "0"], "is out of range"),
        (["publish", "{fleet}", "{bundle}", "--channel", "stable", "--percent", "120"], "is out of range"),
        (["publish", "{fleet}", "{bundle}", "--channel", "stable", "--halt-if", "failed"], "is not a condition"),
        (["publish", "{fleet}", "{bundle}", "--channel", "../x"], "is not the name of a channel"),
        (["publish", "{fleet}", "{missing}", "--channel", "stable"], "There is no bundle"),
        (["publish", "{fleet}", "{foreign}", "--channel", "stable"], "no publisher of this fleet"),
        (["publish", "{fleet}", "{bundle}", "--channel", "stable", "--key", "{missing}"], "There is no signing key"),
        (["rollback", "{fleet}", "--channel", "stable"], "Nothing was published"),
        (["renew", "{fleet}", "--channel", "stable"], "Nothing was published"),
        (["revoke", "{fleet}", "d-0"], "There is no device"),
        (["move", "{fleet}", "--channel", "canary"], "Give either --device or --group"),
        (["backup", "{fleet}", "{fleet}"], "is not empty"),
        (["serve", "{bundle}"], "is not a fleet's folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], said: str, fleet: Fleet, key: Path, run: Run, tmp_path: Path
) -> None:
    paths = {"fleet": fleet.folder.path, "missing": tmp_path / "missing"}
    if "{bundle}" in words:
        paths["bundle"] = fleet.bundle(1)
    if "{foreign}" in words:
        other = signing_key(tmp_path / "other.key")
        paths["foreign"] = write_files(tmp_path / "foreign", signed(bundle_contents(), 1, other))
    given = [word.format(**{name: str(path) for name, path in paths.items()}) for word in words]
    if words[0] in ("publish", "rollback", "renew") and "--key" not in words:
        given += ["--key", str(key)]
    code, out, err = run("fleet", *given)
    assert (code, err.count("\n")) == (2, 1), err
    assert said in err
    assert not out


@pytest.mark.parametrize("words", [["--server", "nowhere"], ["--ca", "/no/such/file"]])
def test_an_agent_that_cannot_begin(words: list[str], fleet: Fleet, run: Run, tmp_path: Path) -> None:
    given = {"--server": "localhost:1", "--ca": str(fleet.folder.authority), "--dir": str(tmp_path / "d")}
    given[words[0]] = words[1]
    code, _, err = run("agent", "--once", *[part for pair in given.items() for part in pair], command=device_main)
    assert (code, err.count("\n")) == (2, 1)


def test_a_device_that_never_enrolled_says_what_it_needs(fleet: Fleet, run: Run, tmp_path: Path) -> None:
    code, _, err = _agent(fleet, run, tmp_path / "d", "--ca", fleet.folder.authority)
    assert code == 2
    assert "is not enrolled; give --token" in err


def test_a_folder_of_a_newer_version_is_refused(fleet: Fleet, run: Run) -> None:
    file = fleet.folder.path / "fleet.toml"
    file.write_text(file.read_text().replace("format = 1", "format = 2"))
    code, _, err = run("fleet", "status", fleet.folder.path)
    assert (code, err.count("\n")) == (2, 1)
    assert "was written by a newer fedgraft (format 2" in err
    file.write_text(file.read_text().replace("format = 2", "format = 1"))
    with fleet.folder.database() as database:
        database.execute("PRAGMA user_version = 9")
    code, _, err = run("fleet", "status", fleet.folder.path)
    assert (code, "newer fedgraft (version 9" in err) == (2, True)


def test_a_port_that_is_taken_and_a_folder_that_is_served(fleet: Fleet, run: Run) -> None:
    assert fleet.registry is not None
    code, _, err = run("fleet", "serve", fleet.folder.path, "--port", fleet.registry.port)
    assert (code, err.count("\n")) == (2, 1)
    assert "is taken" in err


def test_a_new_certificate_is_shown_without_a_restart(fleet: Fleet, run: Run, tmp_path: Path) -> None:
    import ssl

    assert fleet.registry is not None
    before = ssl.get_server_certificate(("localhost", fleet.registry.port))
    code, out, _ = run("fleet", "certificate", fleet.folder.path)
    assert (code, "for localhost" in out) == (0, True)
    after = ssl.get_server_certificate(("localhost", fleet.registry.port))
    assert before != after
    assert after.split() == fleet.folder.certificate.read_text().split()
    assert _agent(fleet, run, tmp_path / "d", "--ca", fleet.folder.authority, "--token", fleet.token())[0] == 0


# --- what comes back ------------------------------------------------------------------------------


@pytest.fixture
def told(fleet: Fleet) -> Fleet:
    """A fleet of six devices of which one group sees unknown things, with a group name and labels that are plain."""
    devices = [fleet.device(f"d{number}", group="gate" if number < 5 else "hall") for number in range(6)]
    fleet.publish(1)
    for device in devices:
        device.cycle()
        tally = Tally()
        for number in range(10):
            tally.add(Prediction("red", 0.5, {}, is_unknown=number < 4), 0, 12.0)
        add_tally(device.folder, device.folder.state().current, tally)
        device.cycle()
    return fleet


def test_a_report_says_whether_to_federate_again_and_hides_small_groups(told: Fleet, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.toml"
    code, said, _ = run("fleet", "export-report", told.folder.path, "--out", out)
    assert code == 0
    report = tomllib.loads(out.read_text())
    assert report["federate"] is True
    assert "group 'gate', version 1: 40.0 % of the predictions are unknown" in report["reasons"][0]
    assert report["reasons"][0] in said
    (line,) = report["telemetry"]
    assert (line["group"], line["devices"], line["predictions"]) == ("gate", 5, 50)
    assert line["classes"] == {"red": 30}
    code, said, _ = run("fleet", "export-report", told.folder.path, "--unknown", "50", "--json")
    assert json.loads(said)["federate"] is False


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_site_reads_what_export_report_writes(told: Fleet, run: Run, tmp_path: Path, words: list[str]) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    for least, due in (("20", 0), ("50", 1)):
        run("fleet", "export-report", told.folder.path, "--out", site.path / "report", "--unknown", least, *words)
        (site.path / "site.toml").write_text('name = "north"\n[fleet]\nreport = "report"\n')
        code, said, _ = run("site", "due", site.path)
        assert code == due
        assert ("group 'gate', version 1: 40.0 % of the predictions are unknown, more than 20 %" in said) is (due == 0)
    (site.path / "site.toml").write_text('name = "north"\n[fleet]\nreport = "report"\nretrain_if = "unknown>39%"\n')
    assert run("site", "due", site.path)[0] == 0


def test_metrics_tell_figures_and_no_device(told: Fleet) -> None:
    figures = {name: values for (name, _), values in fleet_figures(told.folder)().items()}
    assert figures["fleet_devices"] == [({"channel": "stable", "version": "1", "health": "ok"}, 6)]
    assert figures["fleet_unknown_percent"] == [({"version": "1", "group": "gate"}, pytest.approx(40.0))]
    ids = {line.id for line in fleet_status(told.folder).devices}
    assert not any(device in str(figures) for device in ids)


def test_the_page_shows_the_fleet_and_no_markup_of_others(told: Fleet) -> None:
    with told.folder.database() as database:
        database.execute("UPDATE devices SET problem = ?, health = 'failed'", "<script>alert(1)</script>")
        database.execute("UPDATE releases SET labels = ?", json.dumps(["<img src=x>", "green", "blue"]))
    page = status_page(fleet_status(told.folder))
    assert "<script" not in page
    assert "<img" not in page
    assert "img src=x" in page
    port = serve_page(told.folder, 0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "6 devices" in answer.read().decode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=20)


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str], int]]:
    """A registry that the command has made and serves, in a process."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}
    words = [sys.executable, "-m", "fedgraft", "fleet", "serve", str(tmp_path / "made"), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    line = ""
    while not line.startswith("Ready"):
        line = process.stdout.readline()
        assert line, process.wait()
    yield tmp_path / "made", process, int(line.split()[-1].rstrip("."))
    process.terminate()
    assert process.wait(60) == 0


@pytest.mark.slow
def test_serve_makes_a_folder_and_ends_cleanly(
    served: tuple[Path, subprocess.Popen[str], int], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, port = served
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    bundle = write_files(
        tmp_path / "b", signed(bundle_contents(), 1, signing_key(tmp_path / "config" / "fedgraft" / "signing.key"))
    )
    _, token, _ = run("fleet", "token", folder)
    assert run("fleet", "publish", folder, bundle, "--channel", "stable")[0] == 0
    words = ("agent", "--server", f"localhost:{port}", "--ca", folder / "ca.pem", "--token", token.strip())
    code, out, err = run(*words, "--dir", tmp_path / "d", "--once", command=device_main)
    assert (code, out[:19], err) == (0, "Version 1 runs now;", "")
    assert fleet_status(FleetFolder.open(folder)).pid is not None
    code, _, err = run("fleet", "serve", folder)
    assert (code, "is already running" in err) == (2, True)


@pytest.mark.slow
def test_an_agent_follows_its_channel_until_it_is_told_to_stop(fleet: Fleet, tmp_path: Path) -> None:
    """It goes on where the registry is away for a while, and a second agent in the same folder does not begin."""
    assert fleet.registry is not None
    fleet.publish(1)
    words = [sys.executable, "-m", "fedgraft.device", "agent", "--server", f"localhost:{fleet.registry.port}"]
    words += ["--ca", str(fleet.folder.authority), "--dir", str(tmp_path / "d"), "--interval", "1"]
    environment = {**os.environ, "FEDGRAFT_TOKEN": fleet.token()}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Version 1 runs now;")
    second = subprocess.run([*words, "--once"], capture_output=True, text=True, timeout=100, check=False)
    assert (second.returncode, "Another agent runs in" in second.stderr) == (2, True)
    fleet.stop()
    time.sleep(2)
    fleet.start()
    fleet.publish(2)
    assert process.stdout.readline().startswith("Version 2 runs now;")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_small_fleet_with_faults_and_a_registry_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    settings = FleetSimulation(devices=20, seed=1, processes=2, fault_rate=0.2, kills=2, timeout=500)
    done = simulate_fleet(tmp_path / "out", settings)
    assert done.kills == 2
    assert sum(done.faults.values()) > 10
    assert done.versions == {"3": 20}
    assert (done.astray, done.lost) == ([], 0)
    assert 0 < done.registry_mb < 500
