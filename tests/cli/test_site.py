"""`fedgraft site runs`, `approve`, `refuse` and `log`: what an operator sees and decides."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedgraft import RunConfig, UserError
from fedgraft.cli.site import site_app
from fedgraft.core.errors import RunFailed
from fedgraft.runs.asked_runs import configuration_hash
from fedgraft.runs.audit_log import AuditLog
from fedgraft.runs.site_folder import SiteFolder

CONFIG = RunConfig(protocol="own-data", protocol_options={"class_names": ["cat", "dog"]}, rounds=7)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A site that was asked for one run and waits for its operator."""
    site = SiteFolder.create(tmp_path / "site", "north")
    file = site.path / "site.toml"
    file.write_text(file.read_text().replace("approve = false", "approve = true"))
    _ask(site, CONFIG)
    return site


def _ask(site: SiteFolder, config: RunConfig) -> str:
    configuration = configuration_hash(config, "f" * 64)
    content = {
        "run": "first-1a2b", "configuration": configuration, "fingerprint": "f" * 64, "version": "0.2.0",
        "last_round": config.rounds, "settings": config.model_dump(mode="json"),
    }  # fmt: skip
    AuditLog(site.audit_log).append("asked", content)
    return configuration


def _say(*words: Any) -> str:
    return CliRunner().invoke(site_app, [str(word) for word in words], catch_exceptions=False).stdout


def _states(site: SiteFolder) -> list[str]:
    return [run["state"] for run in json.loads(_say("runs", site.path, "--json"))]


def test_a_waiting_run_is_shown_with_all_that_it_asks_and_decided_by_its_name(site: SiteFolder) -> None:
    shown = _say("runs", site.path)
    assert "waiting" in shown
    for key in RunConfig.model_fields:
        assert f"  {key} = " in shown
    assert f"fedgraft site approve {site.path} first-1a2b" in shown.replace("\n", "")
    (facts,) = json.loads(_say("runs", site.path, "--json"))
    assert (facts["run"], facts["state"], facts["rounds"], facts["of"]) == ("first-1a2b", "waiting", 0, 7)
    assert facts["settings"] == CONFIG.model_dump(mode="json")
    assert "rounds = 7" in _say("approve", site.path, "first-1a2b")
    assert _states(site) == ["approved"]
    _say("refuse", site.path, "first-1a2b")
    assert _states(site) == ["refused"]
    decided = [entry for entry in AuditLog(site.audit_log).verified() if "by" in entry]
    assert [entry["event"] for entry in decided] == ["approved", "refused"]


def test_an_approval_is_for_one_configuration(site: SiteFolder) -> None:
    _say("approve", site.path, "first-1a2b")
    other = _ask(site, CONFIG.model_copy(update={"rounds": 8}))
    assert _states(site) == ["approved", "waiting"]
    with pytest.raises(UserError, match="asked with 2 configurations; add --configuration"):
        _say("approve", site.path, "first-1a2b")
    _say("approve", site.path, "first-1a2b", "--configuration", other[:12])
    assert _states(site) == ["approved", "approved"]


def test_a_run_that_nobody_asked_for_cannot_be_approved(site: SiteFolder) -> None:
    with pytest.raises(UserError, match=r"not asked for a run 'second'\. Known: first-1a2b"):
        _say("approve", site.path, "second")


def test_a_site_that_was_not_asked_says_so(tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    assert "No server has asked" in _say("runs", site.path)
    assert _say("runs", site.path, "--json") == "[]\n"
    assert "0 entries" in _say("log", site.path)


def test_the_log_is_printed_and_an_entry_that_was_cut_off_is_missed(site: SiteFolder) -> None:
    _say("approve", site.path, "first-1a2b")
    shown = _say("log", site.path)
    assert "asked" in shown
    assert "2 entries, none changed" in shown
    head = shown.split()[-1].rstrip(".")
    assert "2 entries" in _say("log", site.path, "--known", head)
    assert [json.loads(line)["event"] for line in _say("log", site.path, "--json").splitlines()] == [
        "asked",
        "approved",
    ]
    lines = site.audit_log.read_text().splitlines(keepends=True)
    site.audit_log.write_text(lines[0])
    assert "1 entry, none" in _say("log", site.path)
    with pytest.raises(RunFailed, match="its end was cut, or it was replaced"):
        _say("log", site.path, "--known", head)
    site.audit_log.write_text(lines[0].replace("fedpgp", "fedit"))
    with pytest.raises(RunFailed, match=r"Line 1 of .* was changed"):
        _say("log", site.path)


def test_sites_print_their_keys_for_each_other_and_compare_fingerprints(tmp_path: Path) -> None:
    north, south = (SiteFolder.create(tmp_path / name, name) for name in ("north", "south"))
    assert "is no file" in _say("peers", north.path)
    line = _say("key", south.path)
    assert line == south.public_key.read_text()
    north.peers.write_text(line)
    own = json.loads(_say("peers", south.path, "--json"))["own"]
    shown = json.loads(_say("peers", north.path, "--json"))
    assert (shown["name"], shown["peers"]) == ("north", {"south": own})
    told = subprocess.run(["ssh-keygen", "-lf", south.public_key], capture_output=True, text=True).stdout
    assert told.split()[1:3] == [own[0], "south"]
    assert f"{own[0]}  south\n" in _say("peers", north.path)
