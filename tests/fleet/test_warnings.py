"""What a self test warns of reaches whoever looks after the fleet, for as long as that release runs."""

from dataclasses import replace

import pytest

from fedgraft.device.predictor import Predictor
from fedgraft.device.self_test import SelfTest
from fedgraft.fleet.status import fleet_status
from tests.fleet.conftest import Fleet

SAID = "87.5 % of 8 golden images have the exporter's class on this machine."


@pytest.fixture
def warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 computes something a little different on this machine."""
    tested = Predictor.tested

    def warned(self: Predictor) -> SelfTest:
        found = tested(self)
        return replace(found, warning=SAID) if self.bundle.manifest.version == 2 else found

    monkeypatch.setattr(Predictor, "tested", warned)


@pytest.mark.usefixtures("warning")
def test_a_warning_is_reported_while_its_release_runs(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    assert [line.problem for line in fleet_status(fleet.folder).devices] == [""]
    fleet.publish(2)
    device.cycle()
    device.cycle()
    status = fleet_status(fleet.folder)
    assert [(line.version, line.health, line.problem) for line in status.devices] == [(2, "ok", SAID)]
    assert f"A problem is reported by 1 device, such as: {SAID}" in status.problems
    fleet.publish(3)
    device.cycle()
    status = fleet_status(fleet.folder)
    assert [(line.version, line.problem) for line in status.devices] == [(3, "")]
    assert not [said for said in status.problems if "A problem is reported" in said]
