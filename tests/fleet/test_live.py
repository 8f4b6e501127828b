"""Predicting with what the agent switched to: a new release that fails is left by itself, and everything is counted."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedgraft.device import ImageError
from fedgraft.device.agent.device_folder import PROVING_PREDICTIONS, DeviceFolder
from fedgraft.device.agent.live import STARTS, LivePredictor
from fedgraft.device.agent.report import send_report
from fedgraft.device.agent.tally import REFERENCE_PREDICTIONS, Tally, add_tally, taken_tallies
from fedgraft.device.agent.update import self_test
from fedgraft.device.errors import DeviceError
from fedgraft.device.predictor import Prediction, Predictor
from fedgraft.fleet.status import fleet_status, quantile
from tests.fleet.conftest import Device, Fleet

RED = Image.new("RGB", (8, 8), (220, 0, 0))
GREEN = Image.new("RGB", (8, 8), (0, 220, 0))
Embedded = tuple[Prediction, NDArray[np.float32]]


@pytest.fixture
def device(fleet: Fleet) -> Device:
    """A device whose version 1 has proved itself, and that has just switched to version 2."""
    device = fleet.device(group="gate")
    fleet.publish(1)
    device.cycle()
    live = LivePredictor(device.folder.path, threads=1)
    for _ in range(PROVING_PREDICTIONS):
        live.predict(RED)
    live.close()
    assert not device.folder.state().proving
    fleet.publish(2)
    device.cycle()
    return device


def test_a_release_whose_predictions_fail_is_left_and_the_last_good_one_answers(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    bad = live.release
    predict = Predictor.predict_embedded

    def fail(self: Predictor, image: object) -> Embedded:
        if self.bundle.manifest.version == 2:
            raise RuntimeError("the kernel is broken\nhere")
        return predict(self, image)

    monkeypatch.setattr(Predictor, "predict_embedded", fail)
    assert live.predict(RED).label == "red"
    assert live.release != bad
    assert device.version == 1
    state = device.folder.state()
    assert (state.health, state.refused[bad]) == ("failed", "a prediction failed: the kernel is broken here")
    assert device.cycle().installed is None


def test_probabilities_that_are_no_numbers_are_a_failure(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    predict = Predictor.predict_embedded

    def spoil(self: Predictor, image: object) -> Embedded:
        answer, embedding = predict(self, image)
        spoilt = self.bundle.manifest.version == 2
        return replace(answer, probability=float("nan")) if spoilt else answer, embedding

    monkeypatch.setattr(Predictor, "predict_embedded", spoil)
    assert live.predict(RED).probability > 0
    assert device.version == 1


def test_a_bad_image_is_no_fault_of_the_release(device: Device, tmp_path: Path) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    with pytest.raises(ImageError):
        live.predict(tmp_path / "missing.png")
    assert device.version == 2


def test_a_release_that_has_proved_itself_stays_when_a_prediction_fails(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    for _ in range(PROVING_PREDICTIONS):
        live.predict(RED)
    assert device.folder.state().good == device.folder.state().current

    def fail(self: Predictor, image: object) -> Embedded:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Predictor, "predict_embedded", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        live.predict(RED)
    assert device.version == 2


def test_a_release_that_kills_the_program_is_left_after_some_starts(device: Device) -> None:
    for _ in range(STARTS):
        LivePredictor(device.folder.path, threads=1)  # and no prediction: the process is gone
    live = LivePredictor(device.folder.path, threads=1)
    assert live.predict(RED).label == "red"
    assert device.version == 1
    assert "did not predict anything" in next(iter(device.folder.state().refused.values()))


def test_a_release_whose_self_test_kills_the_agent_is_not_tried_for_ever(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(3)

    def die(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedgraft.device.agent.update.self_test", die)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                device.cycle()
    assert "never ended" in device.cycle().problem
    assert device.version == 2
    assert self_test is not None


def test_a_release_that_was_damaged_on_the_disk_is_left_while_it_is_on_trial(device: Device) -> None:
    state = device.folder.state()
    labels = device.folder.bundle(state.current) / "labels.json"
    labels.unlink()  # a link to what other releases have as well
    labels.write_text("{}")
    live = LivePredictor(device.folder.path, threads=1)
    assert live.predict(RED).label == "red"
    assert device.version == 1


def test_threads_see_one_release_or_the_other(fleet: Fleet, device: Device) -> None:
    live = LivePredictor(device.folder.path, threads=1, spinning=False)
    failed: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                assert live.predict(GREEN).label == "green"
        except BaseException as error:  # a thread's failure is the test's
            failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    fleet.publish(3)
    device.cycle()
    deadline = time.monotonic() + 60
    while live.release != device.folder.state().current and not failed and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    for reader in readers:
        reader.join(30)
    assert not failed
    assert live.release == device.folder.state().current


def test_a_full_disk_stops_no_prediction_and_loses_no_count(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise DeviceError(f"{path} cannot be written: No space left on device.")

    live = LivePredictor(device.folder.path, threads=1)
    with monkeypatch.context() as patch:
        patch.setattr("fedgraft.device.agent.device_folder.write_whole", full)
        for _ in range(150):
            assert live.predict(RED).label == "red"
        LivePredictor(device.folder.path, threads=1).predict(RED)
    live.close()
    device.cycle()
    lines = {line.version: line for line in fleet_status(fleet.folder, 1).telemetry}
    assert lines[2].predictions == 150


def test_a_release_that_fails_is_left_also_on_a_full_disk(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    predict = Predictor.predict_embedded

    def fail(self: Predictor, image: object) -> Embedded:
        if self.bundle.manifest.version == 2:
            raise RuntimeError("broken")
        return predict(self, image)

    def full(path: Path, content: bytes) -> None:
        raise DeviceError(f"{path} cannot be written: No space left on device.")

    monkeypatch.setattr(Predictor, "predict_embedded", fail)
    monkeypatch.setattr("fedgraft.device.agent.device_folder.write_whole", full)
    assert live.predict(RED).label == "red"
    assert live.predict(RED).label == "red"


def test_a_state_that_was_damaged_stops_no_prediction(device: Device) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    (device.folder.path / "state.json").write_text("{")
    assert live.predict(RED).label == "red"


# --- counts ---------------------------------------------------------------------------------------


def test_what_was_predicted_is_told_once_and_by_class(fleet: Fleet, device: Device) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    for image in (RED, RED, RED, GREEN):
        live.predict(image)
    live.close()
    device.cycle()
    device.cycle()
    lines = {line.version: line for line in fleet_status(fleet.folder, 1).telemetry}
    assert lines[1].predictions == PROVING_PREDICTIONS
    assert lines[2].classes == {"red": 3, "green": 1}
    assert (lines[2].group, lines[2].devices, lines[2].unknown) == ("gate", 1, 0.0)
    assert lines[2].median_ms is not None


def test_counts_below_the_smallest_are_not_told(fleet: Fleet, device: Device) -> None:
    live = LivePredictor(device.folder.path, threads=1)
    for image in [RED] * 6 + [GREEN] * 2:
        live.predict(image)
    live.close()
    device.cycle()
    assert fleet_status(fleet.folder, 5).telemetry == []
    with fleet.folder.database() as database:
        from fedgraft.fleet.status import _telemetry

        members = database.rows(
            "SELECT t.*, d.grp, r.version, r.labels FROM telemetry t JOIN devices d ON d.id = t.device "
            "JOIN releases r ON r.id = t.release WHERE r.version = 2"
        )
        line = _telemetry(2, "gate", members, 8, 5)
    assert (line.classes, line.suppressed) == ({"red": 6}, 2)


def test_a_report_that_was_not_acknowledged_counts_once(
    fleet: Fleet, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry has stored it, and the answer is lost: it is sent again under the same number."""
    add_tally(device.folder, device.folder.state().current, _tally(7))
    with monkeypatch.context() as patch:
        patch.setattr("fedgraft.device.agent.report._acknowledged", lambda folder: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):  # noqa: PT011
            send_report(device.folder, device.client, 0.0)
    add_tally(device.folder, device.folder.state().current, _tally(4))
    device.cycle()
    lines = {line.version: line for line in fleet_status(fleet.folder, 1).telemetry}
    assert lines[2].predictions == 11


def test_counts_set_aside_by_an_agent_that_was_killed_are_not_lost(device: Device) -> None:
    release = device.folder.state().current
    add_tally(device.folder, release, _tally(3))
    with device.folder.locked():
        taken_tallies(device.folder)
    add_tally(device.folder, release, _tally(2))
    with device.folder.locked():
        assert taken_tallies(device.folder)[release]["predictions"] == 3
    device.cycle()
    with device.folder.locked():
        assert taken_tallies(device.folder)[release]["predictions"] == 2


def _tally(predictions: int, confidence: float = 0.5) -> Tally:
    tally = Tally()
    for _ in range(predictions):
        tally.add(Prediction("red", confidence, {}, False), 0, 3.0)
    return tally


def test_the_drift_of_confidence_is_against_the_first_predictions(fleet: Fleet, device: Device) -> None:
    release = device.folder.state().current
    add_tally(device.folder, release, _tally(REFERENCE_PREDICTIONS, 0.9))
    device.cycle()
    add_tally(device.folder, release, _tally(10, 0.6))
    device.cycle()
    lines = {line.version: line for line in fleet_status(fleet.folder, 1).telemetry}
    assert lines[2].drift == pytest.approx(-0.3)


def test_no_image_and_no_embedding_leave_a_device(device: Device) -> None:
    """A report has nothing but numbers, names and sentences, and is small."""
    live = LivePredictor(device.folder.path, threads=1)
    rng = np.random.default_rng(0)
    for _ in range(30):
        live.predict(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)))
    live.close()
    sent: list[dict] = []

    class Listener:
        def report(self, content: dict) -> None:
            sent.append(content)

    send_report(device.folder, Listener(), 0.0)  # type: ignore[arg-type]
    (report,) = sent
    assert set(report) == {
        "serial", "release", "health", "proving", "refused", "tallies", "agent", "clock", "problem",
    }  # fmt: skip
    (tally,) = report["tallies"].values()
    assert set(tally) == {
        "predictions", "unknown", "failed", "counts", "latency", "confidence", "reference",
    }  # fmt: skip
    assert len(json.dumps(report)) < 2000


def test_a_quantile_is_in_its_group() -> None:
    latency = [0] * 13
    latency[2], latency[5], latency[12] = 5, 4, 1
    assert quantile(latency, 0.5) == 5
    assert quantile(latency, 0.9) == 50
    assert quantile(latency, 0.95) is None


@pytest.mark.parametrize("left", ["{", '{"format": 2}', '{"format": 1, "nonsense": 3, "seen": {}}', "[]"])
def test_a_damaged_state_is_one_line(left: str, tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "d")
    (folder.path / "state.json").write_text(left)
    with pytest.raises(DeviceError, match=r"state\.json") as raised:
        folder.state()
    assert "\n" not in str(raised.value)


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    folder = DeviceFolder(tmp_path / "d")
    assert folder.key.public == folder.key.public
    assert (folder.path / "device.key").stat().st_mode & 0o777 == 0o600
    (folder.path / "device.key").chmod(0o644)
    with pytest.raises(DeviceError, match="Others may read"):
        _ = folder.key
