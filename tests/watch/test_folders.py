"""What the page is told of a server's and of a fleet's folder."""

from pathlib import Path

import pytest

from fedgraft.core.errors import UserError
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.watch.found import open_source
from tests.watch.conftest import HOSTILE, WrittenRun, viewed


def test_a_server_shows_its_runs_and_the_sites_that_never_came(tmp_path: Path) -> None:
    server = ServerFolder.create(tmp_path / "server", ["localhost"], 9092)
    source = open_source(tmp_path / "server")
    assert (viewed(source)["kind"], viewed(source)["runs"]) == ("server", [])
    site = SiteFolder.create(tmp_path / "site", "hospital")
    server.admit(site.public_key)
    place = server.queue.enter(tmp_path / "run")
    source = open_source(tmp_path / "server")
    assert [(run["name"], run["state"]) for run in viewed(source)["runs"]] == [("run", "waiting")]
    WrittenRun(tmp_path / "run", sites=2, protocol="own-data", data="folder:own").begin().round(1)
    place.leave()
    view = viewed(source)
    assert view["runs"][0]["round"] == 1
    assert [(line["name"], line.get("state")) for line in view["sites"]["lines"]][-1] == ("hospital", "never seen")
    assert "It is not running." in view["problems"]


def test_a_fleet_shows_its_devices_by_version_and_group(tmp_path: Path) -> None:
    folder = FleetFolder.create(tmp_path / "fleet", ["localhost"], 9093, bytes(32))
    columns = "id, key, grp, tags, channel, enrolled, last_seen, health, problem"
    with folder.database() as database:
        device = ("d-1", "ab", "<b>north</b>", "[]", "stable", 0.0, 0.0, "failed", HOSTILE)
        database.execute(f"INSERT INTO devices ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *device)
    view = viewed(open_source(tmp_path / "fleet"))
    assert (view["kind"], view["fleet"]["devices"], view["fleet"]["health"]) == ("fleet", 1, {"failed": 1})
    assert view["fleet"]["versions"] == [{"version": None, "group": "(b)north(/b)", "devices": 1}]
    (tmp_path / "fleet" / "fleet.toml").write_text('format = 9\nfleet = "ab"\nport = 1\n')
    with pytest.raises(UserError, match="newer fedgraft"):
        open_source(tmp_path / "fleet")
