"""A real export through a registry to a device: the bundle, then its class bank alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgraft.data.examples import Examples
from fedgraft.device import Predictor
from fedgraft.device.agent.live import LivePredictor
from fedgraft.edge_export.export import export_class_bank
from fedgraft.edge_export.options import ClassBankOptions
from fedgraft.edge_export.signing import public_bytes, signing_key
from fedgraft.fleet.publishing import publish
from tests.fleet.conftest import Fleet


@pytest.fixture
def fleet(key: Path, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose publisher is the exporter."""
    fleet = Fleet(tmp_path, public_bytes(signing_key(key)))
    fleet.start()
    yield fleet
    for client in fleet.clients:
        client.close()
    fleet.stop()


def test_an_export_and_its_class_bank_reach_a_device(
    fleet: Fleet, run: Path, exported: Path, key: Path, digits: Examples, tmp_path: Path
) -> None:
    device = fleet.device()
    publish(fleet.folder, exported, "stable", signing_key(key))
    assert device.cycle().installed == 1
    live = LivePredictor(device.folder.path, threads=1)
    expected = Predictor(exported, threads=1, remember=False).predict(digits.load(0))
    assert live.predict(digits.load(0)) == expected
    options = ClassBankOptions(site="2", labels=("seven", "three", "a cat"), key=key, most_images=32, force=True)
    export_class_bank(run, exported, tmp_path / "classes", options)
    publish(fleet.folder, tmp_path / "classes", "stable", signing_key(key))
    looked = device.cycle()
    assert looked.installed == 2
    assert looked.moved < 20_000
    assert set(live.predict(digits.load(0)).probabilities) == {"seven", "three", "a cat"}
