"""What a site makes of its devices' report: whether the next federation is due, and why not."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from fedgraft.cli.main import app
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.site_status import site_status
from fedgraft.runs.audit_log import AuditLog
from fedgraft.runs.fleet_report import MOST_BYTES
from fedgraft.runs.fleet_request import FleetRequest, fleet_request
from fedgraft.runs.site_folder import SiteFolder

NOW = datetime.now(UTC)
GATE = {"version": 2, "group": "gate", "devices": 9, "predictions": 90, "unknown": 12.5, "drift": -0.2}
OLD = {"version": 1, "group": "gate", "devices": 9, "predictions": 90, "unknown": 99.0, "drift": -0.9}


def _report(**changed: Any) -> dict[str, Any]:
    made = (NOW - timedelta(hours=1)).isoformat(timespec="seconds")
    report = {"fleet": "f1", "made": made, "smallest_group": 5, "federate": True, "reasons": ["gate: 40 % unknown"]}
    return {**report, "telemetry": [OLD, GATE], **changed}


def _site(path: Path, report: dict[str, Any] | bytes | None = None, **settings: Any) -> SiteFolder:
    """A site whose folder holds the report that its site.toml names."""
    site = SiteFolder.create(path / "site", "north")
    content = report if isinstance(report, bytes) else tomli_w.dumps(report or _report()).encode()
    (site.path / "report.toml").write_bytes(content)
    return _with(site, report="report.toml", **settings)


def _with(site: SiteFolder, **settings: Any) -> SiteFolder:
    (site.path / "site.toml").write_text(tomli_w.dumps({"name": "north", "fleet": settings}))
    return SiteFolder.open(site.path)


def _asked(site: SiteFolder) -> FleetRequest:
    request = fleet_request(site)
    assert request is not None
    return request


def _due(site: SiteFolder, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["site", "due", str(site.path), *words])
    return done.exit_code, done.stdout


def test_a_site_without_devices_is_asked_for_nothing(tmp_path: Path) -> None:
    site = SiteFolder.create(tmp_path / "site", "north")
    assert fleet_request(SiteFolder.open(site.path)) is None
    assert site_status(site).fleet is None


def test_the_reports_own_verdict_counts_where_a_site_has_no_rule(tmp_path: Path) -> None:
    asks = _asked(_site(tmp_path / "a"))
    assert (asks.asks, asks.why, asks.stale) == (True, ["gate: 40 % unknown"], False)
    calm = _asked(_site(tmp_path / "b", _report(federate=False, reasons=[])))
    assert (calm.asks, calm.stale) == (False, False)


def test_a_sites_own_rule_judges_the_newest_version_of_each_group(tmp_path: Path) -> None:
    site = _site(tmp_path, _report(federate=False, reasons=[]), retrain_if="unknown>20% or drift>0.1")
    asks = _asked(site)
    assert asks.asks
    assert asks.why == ["group 'gate', version 2: the mean confidence fell by 0.200, more than 0.1"]
    assert not _asked(_with(site, report="report.toml", retrain_if="unknown>20% or drift>0.3")).asks
    assert _asked(_with(site, report="report.toml", retrain_if="unknown>12%")).asks
    (site.path / "report.toml").write_text(tomli_w.dumps(_report(telemetry=[])))
    assert _asked(site).why == ["no group of enough devices has reported predictions"]


def test_a_report_as_json_says_the_same(tmp_path: Path) -> None:
    assert _asked(_site(tmp_path, json.dumps(_report()).encode())) == _asked(_site(tmp_path / "toml"))


def test_a_stale_report_asks_for_nothing_and_is_a_problem(tmp_path: Path) -> None:
    site = _site(tmp_path, _report(made=(NOW - timedelta(days=3)).isoformat()), report_days=2.0)
    request = _asked(site)
    assert (request.asks, request.stale) == (False, True)
    assert "is stale, older than 2 days" in request.why[0]
    assert request.in_words in site_status(site).folder.problems
    assert _due(site)[0] == 1
    assert _asked(_with(site, report="report.toml", report_days=4.0)).asks


def test_a_run_answers_the_reports_that_were_made_before_and_shortly_after_it(tmp_path: Path) -> None:
    site = _site(tmp_path, pause_days=2.0)
    AuditLog(site.audit_log).append("sent", {"kind": "hello"})
    assert _asked(site).asks
    AuditLog(site.audit_log).append("sent", {"kind": "train"})
    request = _asked(site)
    assert not request.asks
    assert "the site trained on" in request.why[0]
    for days, asks in ((1, False), (3, True)):
        later = datetime.now(UTC) + timedelta(days=days)
        (site.path / "report.toml").write_text(tomli_w.dumps(_report(made=later.isoformat())))
        found = fleet_request(site, later + timedelta(hours=1))
        assert found is not None
        assert found.asks is asks


def test_a_damaged_audit_log_is_one_line_and_no_yes(tmp_path: Path) -> None:
    site = _site(tmp_path)
    AuditLog(site.audit_log).append("sent", {"round": 1})
    with pytest.raises(RunFailed, match="An entry of the audit log cannot be read"):
        fleet_request(site)
    status = site_status(site)
    assert status.fleet is None
    assert any("audit log cannot be read" in problem for problem in status.folder.problems)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (b"\x00\xff", "neither TOML nor JSON"),
        (b'{"fleet": ', "neither TOML nor JSON"),
        (b"[" * 100_000, "neither TOML nor JSON"),
        (b'{"a": ' * 100_000, "neither TOML nor JSON"),
        (b"#" * (MOST_BYTES + 1), "more than 1,048,576 bytes"),
        (b'fleet = "f1"', "'made'"),
        (_report(made="today"), "'made' has the value 'today'"),
        (_report(made="2026-01-01T00:00:00"), "offset from UTC"),
        (_report(made="0001-01-01T00:00:00+14:00"), "out of range"),
        (_report(made=(NOW + timedelta(days=1)).isoformat()), "still to come"),
        (_report(federate="yes"), "'federate' has the value 'yes'"),
        (_report(telemetry=[{**GATE, "unknown": float("nan")}]), "'telemetry.0.unknown' has the value nan"),
        (_report(telemetry=[{**GATE, "unknown": 101}]), "'telemetry.0.unknown' has the value 101"),
        (_report(telemetry=[{**GATE, "drift": float("-inf")}]), "'telemetry.0.drift' has the value -inf"),
        (_report(telemetry=[{**GATE, "version": True}]), "'telemetry.0.version' has the value True"),
        (json.dumps(_report(telemetry={"\x1b[31m": 1})).encode(), "'telemetry' has the value"),
    ],
)
def test_what_is_no_report_is_one_line_and_asks_for_nothing(
    tmp_path: Path, report: dict[str, Any] | bytes, said: str
) -> None:
    site = _site(tmp_path, report)
    with pytest.raises(UserError) as raised:
        fleet_request(site)
    line = str(raised.value)
    assert said in line
    assert str(site.path / "report.toml") in line
    assert line.isprintable()
    status = site_status(site)
    assert status.fleet is None
    assert line in status.folder.problems


def test_a_report_that_is_missing_or_no_file_is_one_line(tmp_path: Path) -> None:
    site = _site(tmp_path)
    (site.path / "report.toml").unlink()
    with pytest.raises(UserError, match=r"report\.toml cannot be read \(No such file"):
        fleet_request(site)
    (site.path / "report.toml").mkdir()
    with pytest.raises(UserError, match="it is not a file"):
        fleet_request(site)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"report": "r", "retrain_if": "unknown>20"}, "'unknown>20' in retrain_if is not a condition"),
        ({"report": "r", "retrain_if": "drift>10%"}, "'drift>10%' in retrain_if is not a condition"),
        ({"report": "r", "retrain_if": "drift>2"}, "drift from 0 to 1"),
        (
            {"report": "r", "retrain_if": "failed>2%"},
            'write one as unknown>20%, or several as "unknown>20% or drift>0.1"',
        ),
        ({"retrain_if": "drift>0.1"}, "retrain_if needs a report"),
        ({"report": "r", "report_days": 0}, "'fleet.report_days' has the value 0"),
        ({"report": "r", "pause_days": float("inf")}, "'fleet.pause_days' has the value inf"),
        ({"raport": "r"}, "'fleet.raport'"),
    ],
)
def test_a_wrong_table_is_one_line_that_names_the_file(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        _with(SiteFolder.create(tmp_path / "site", "north"), **settings)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path / 'site' / 'site.toml'}: ")
    assert "\n" not in str(raised.value)


def test_a_scheduler_is_told_by_the_exit_code_and_no_more_than_that(tmp_path: Path) -> None:
    site = _site(tmp_path)
    assert _due(site) == (0, "The devices ask for the next federation: gate: 40 % unknown.\n")
    assert _due(site, "--quiet") == (0, "")
    code, said = _due(site, "--json")
    assert (code, json.loads(said)["asks"], json.loads(said)["fleet"]) == (0, True, "f1")
    (site.path / "report.toml").write_text(tomli_w.dumps(_report(federate=False, reasons=[])))
    assert _due(site, "--quiet") == (1, "")
    done = CliRunner().invoke(app, ["site", "due", str(_with(site).path)])
    assert isinstance(done.exception, UserError)
    assert "names no report of devices" in str(done.exception)


def test_status_says_what_the_devices_ask_for(tmp_path: Path) -> None:
    site = _site(tmp_path, _report(reasons=["\x1b[31mgate <b>"]))
    shown = CliRunner().invoke(app, ["site", "status", str(site.path)]).stdout
    assert "The devices ask for the next federation: (31mgate (b)." in shown
    status = json.loads(CliRunner().invoke(app, ["site", "status", str(site.path), "--json"]).stdout)
    assert status["fleet"]["asks"] is True
