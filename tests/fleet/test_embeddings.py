"""Embeddings of unknown images leave a device only where its owner says so, few of them, and none of a known one."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fedgraft import UserError
from fedgraft.device.agent import report
from fedgraft.device.agent.embedding_sample import SHARED_EMBEDDINGS, entry_of, smallest
from fedgraft.device.agent.live import LivePredictor
from fedgraft.device.agent.service import share
from fedgraft.device.errors import DeviceError
from fedgraft.device.predictor import Predictor
from fedgraft.fleet.shared_embeddings import KEPT, Written, write_embeddings
from fedgraft.fleet.status import fleet_status
from tests.fleet.conftest import Device, Fleet

RED = Image.new("RGB", (8, 8), (220, 0, 0))
GREY = Image.new("RGB", (8, 8), (85, 90, 95))


@pytest.fixture
def device(fleet: Fleet) -> Device:
    """A device with version 1 whose owner shares embeddings."""
    device = fleet.device(group="gate")
    fleet.publish(1)
    share(device.folder, embeddings=True)
    device.cycle()
    return device


def _predict(device: Device, *images: Image.Image) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    for image in images:
        live.predict(image)
    live.close()


def _stored(fleet: Fleet, out: Path, **which: Any) -> np.ndarray:
    write_embeddings(fleet.folder, out, **which)
    with safe_open(out, "np") as file:
        found: np.ndarray = file.get_tensor("embeddings")
    return found


def test_the_embedding_of_an_unknown_image_arrives_as_the_device_computed_it(
    fleet: Fleet, device: Device, tmp_path: Path
) -> None:
    _predict(device, RED, GREY, RED)
    device.cycle()
    assert write_embeddings(fleet.folder, tmp_path / "all.safetensors") == Written(version=1, devices=1, embeddings=1)
    predictor = Predictor(device.folder.bundle(device.folder.state().current), threads=1, remember=False)
    answer, expected = predictor.predict_embedded(GREY)
    assert answer.is_unknown
    with pytest.raises(UserError, match="No device has shared"):
        write_embeddings(fleet.folder, tmp_path / "none.safetensors", group="elsewhere")
    found = _stored(fleet, tmp_path / "all.safetensors", version=1, group="gate")
    assert found.dtype == np.float16
    assert np.allclose(found, expected[None], atol=1e-3)


def test_without_the_owners_word_there_is_none(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    """Not from a device whose owner never said so, nor what was kept before the word was taken back."""
    other = fleet.device("other")
    other.cycle()
    _predict(other, GREY)
    assert '"unknown": 1' in (other.folder.path / "tally.json").read_text()
    assert '"embeddings": []' in (other.folder.path / "tally.json").read_text()
    other.cycle()
    _predict(device, GREY)
    share(device.folder, embeddings=False)
    _predict(device, GREY)
    assert '"embeddings": [[' in (device.folder.path / "tally.json").read_text()
    device.cycle()
    with pytest.raises(UserError, match="--share-embeddings"):
        write_embeddings(fleet.folder, tmp_path / "none.safetensors")


def test_a_report_that_waits_loses_them_when_the_word_is_taken_back(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _predict(device, GREY, RED)
    with monkeypatch.context() as patch:
        patch.setattr(device.client, "report", lambda _: (_ for _ in ()).throw(DeviceError("cut")))
        with pytest.raises(DeviceError, match="cut"):
            device.cycle()
    assert '"embeddings": ["' in (device.folder.path / "report.json").read_text()
    share(device.folder, embeddings=False)
    device.cycle()
    assert fleet_status(fleet.folder, 1).telemetry[0].predictions == 2
    with pytest.raises(UserError, match="No device has shared"):
        write_embeddings(fleet.folder, tmp_path / "none.safetensors")


def test_a_program_that_predicts_hears_of_the_owners_word(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    share(device.folder, embeddings=False)
    live = LivePredictor(device.folder.path, threads=1)
    live.predict(GREY)
    share(device.folder, embeddings=True)
    live.predict(GREY)
    live.close()
    device.cycle()
    assert len(_stored(fleet, tmp_path / "one.safetensors")) == 1


def test_what_is_kept_is_bounded_on_the_device_and_at_the_registry(
    fleet: Fleet, device: Device, tmp_path: Path
) -> None:
    for _ in range(KEPT // SHARED_EMBEDDINGS + 1):
        _predict(device, *[GREY] * (2 * SHARED_EMBEDDINGS))
        device.cycle()
    assert len(_stored(fleet, tmp_path / "many.safetensors")) == KEPT


def test_a_sample_is_uniform_and_its_bytes_are_bounded() -> None:
    """Whatever order embeddings come in, and in however many parts, each is as likely to stay."""
    hits = np.zeros(64)
    rows = np.eye(64, dtype=np.float32)
    texts = {entry_of(row)[1]: place for place, row in enumerate(rows)}
    for _ in range(400):
        early = smallest(entry_of(row) for row in rows[:48])
        for _, text in smallest([*early, *(entry_of(row) for row in rows[48:])]):
            hits[texts[text]] += 1
    assert hits.sum() == 400 * SHARED_EMBEDDINGS
    assert 50 < hits.min() <= hits.max() < 160  # 100 are expected, with a deviation of 8.7
    large = smallest(entry_of(np.ones(8192, np.float32)) for _ in range(SHARED_EMBEDDINGS))
    assert len(large) == 2


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        ("none", "not a list"),
        ([base64.b64encode(bytes(6)).decode()] * 17, "at most 16"),
        (["%%"], "not base64"),
        ([7], "not a text"),
        (["A" * 10**5], "not a text"),
        ([base64.b64encode(np.array([1, 0], "<f2").tobytes()).decode()], "3 numbers and unit norm"),
        ([base64.b64encode(np.array([9, 0, 0], "<f2").tobytes()).decode()], "3 numbers and unit norm"),
        ([base64.b64encode(np.array([np.nan, 0, 0], "<f2").tobytes()).decode()], "3 numbers and unit norm"),
    ],
)
def test_what_is_no_embedding_is_refused_with_its_report(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: object, said: str
) -> None:
    _predict(device, GREY)
    with monkeypatch.context() as patch:
        told = report._shared
        patch.setattr(report, "_shared", lambda *tally: {**told(*tally), "embeddings": shared})
        with pytest.raises(Exception, match=said):
            device.cycle()
    with pytest.raises(UserError, match="No device has shared"):
        write_embeddings(fleet.folder, tmp_path / "none.safetensors")
