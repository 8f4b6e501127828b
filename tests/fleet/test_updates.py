"""What a device gets of its registry: the version that its channel names, whole or the class bank alone, after cuts."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image

from fedgraft.core.errors import UserError
from fedgraft.device import DeviceError
from fedgraft.device.agent.device_folder import DeviceFolder
from fedgraft.device.agent.download import Download
from fedgraft.device.agent.live import LivePredictor
from fedgraft.device.agent.messages import CHUNK
from fedgraft.device.agent.registry_client import Refused, Unreachable, connected
from fedgraft.device.agent.service import enrol
from fedgraft.fleet.publishing import publish, renew, rollback, rotate
from fedgraft.fleet.rollout import RolloutPlan, place
from fedgraft.fleet.simulated_bundle import bank_contents, signed, write_files
from fedgraft.fleet.status import fleet_status
from tests.fleet.conftest import ENCODER, KEY, OTHER_KEY, Device, Fleet

RED = Image.new("RGB", (8, 8), (220, 0, 0))


def _big_bank(folder: Path, version: int) -> Path:
    """A class bank of several chunks."""
    labels = [f"class number {index}" for index in range(9000)]
    return write_files(folder, signed(bank_contents(labels), version, KEY, ENCODER))


def test_a_device_runs_what_its_channel_names_and_predicts_with_it(fleet: Fleet) -> None:
    device = fleet.device()
    assert device.cycle().installed is None
    with pytest.raises(DeviceError, match="no release yet"):
        LivePredictor(device.folder.path)
    fleet.publish(1)
    assert device.cycle().installed == 1
    live = LivePredictor(device.folder.path, threads=1)
    assert live.predict(RED).label == "red"
    fleet.publish(2)
    assert device.cycle().installed == 2
    before = live.release
    assert live.predict(RED).label == "red"
    assert live.release != before
    assert device.cycle().installed is None


def test_a_class_bank_alone_moves_nothing_else(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    whole = device.cycle().moved
    labels = ("a", "b", "c", "d")
    publish(fleet.folder, fleet.bank(2, labels), "stable", KEY)
    looked = device.cycle()
    assert looked.installed == 2
    assert looked.moved < whole / 5
    assert LivePredictor(device.folder.path, threads=1).labels == labels


def test_a_whole_bundle_whose_encoder_is_known_moves_only_what_differs(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    whole = device.cycle().moved
    fleet.publish(2)
    looked = device.cycle()
    assert looked.installed == 2
    assert looked.moved < whole / 4


def test_100_classes_of_width_512_move_less_than_256_kilobytes(fleet: Fleet) -> None:
    """The class bank's own files, with its manifest and the document of the channel."""
    import numpy as np

    from fedgraft.edge_export.bundle_writer import class_files

    features = np.random.default_rng(0).normal(size=(100, 512)).astype(np.float32)
    files = class_files([f"class number {index}" for index in range(100)], features, 100.0)
    size = sum(map(len, signed(files, 2, KEY, ENCODER).values()))
    fleet.publish(1)
    publish(fleet.folder, fleet.bank(2, ("a", "b")), "stable", KEY)
    with fleet.folder.database() as database:
        document = json.dumps(database.channel("stable"))
    assert size + len(document) < 256 * 1024


class _Cut:
    """A connection that ends after so many chunks."""

    def __init__(self, client: object, chunks: int) -> None:
        self._client, self.left, self.asked = client, chunks, []

    def fetch(self, sha256: str, offset: int, length: int) -> bytes:
        """A chunk, or the end."""
        if self.left == 0:
            raise Unreachable("The registry does not answer.")
        self.left -= 1
        self.asked.append(offset)
        return self._client.fetch(sha256, offset, length)

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


def test_a_download_goes_on_where_it_was_cut(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    publish(fleet.folder, _big_bank(fleet.path / "big", 2), "stable", KEY)
    with fleet.folder.database() as database:
        from fedgraft.device.agent.metadata import Channel

        release = Channel.parse(database.channel("stable")).releases[-1]
    device.client.open_session(device.folder.state().fleet, device.folder.state().device, device.folder.key)
    cut = _Cut(device.client, 1)
    with pytest.raises(Unreachable):
        Download(device.folder, cut).fetch(release)
    parts = list((device.folder.path / "parts").iterdir())
    assert sum(part.stat().st_size for part in parts) >= CHUNK
    assert device.version == 1
    again = _Cut(device.client, 10_000)
    Download(device.folder, again).fetch(release)
    assert again.asked[0] > 0
    assert not list((device.folder.path / "parts").iterdir())


def test_a_part_that_was_damaged_on_the_disk_is_fetched_anew(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    with fleet.folder.database() as database:
        from fedgraft.device.agent.metadata import Channel

        release = Channel.parse(database.channel("stable")).releases[-1]
    model = next(file for file in release.files if file.path.endswith("model.onnx"))
    (device.folder.path / "parts" / model.sha256).write_bytes(b"damaged")
    assert device.cycle().installed == 1


def test_a_file_that_was_damaged_on_the_disk_is_not_used_for_the_next_release(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    for blob in (device.folder.path / "blobs").iterdir():
        blob.write_bytes(b"damaged")
    fleet.publish(2)
    assert device.cycle().installed == 2


def test_what_the_disk_damaged_of_the_release_that_runs_is_fetched_again(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    model = device.folder.bundle(device.folder.state().current) / "model.onnx"
    model.write_bytes(b"damaged")
    with pytest.raises(DeviceError):
        LivePredictor(device.folder.path, threads=1)
    device.client = fleet.client()
    assert device.cycle().moved > 0
    assert LivePredictor(device.folder.path, threads=1).predict(RED).label == "red"


def test_a_full_disk_is_one_line_and_the_device_predicts_on(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    fleet.publish(2)
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr("fedgraft.device.agent.download.shutil.disk_usage", lambda path: usage(100, 99, 1))
    looked = device.cycle()
    assert "disk" in looked.problem
    assert "\n" not in looked.problem
    assert device.version == 1
    assert LivePredictor(device.folder.path, threads=1).predict(RED).label == "red"
    monkeypatch.undo()
    assert device.cycle().installed == 2


def test_a_disk_that_fills_while_a_file_is_written_leaves_no_part(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = fleet.device()
    fleet.publish(1)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        full = SimpleNamespace(fsync=fail, link=os.link, getpid=os.getpid)
        patch.setattr("fedgraft.device.agent.download.os", full)
        looked = device.cycle()
    assert "No space left on device" in looked.problem
    assert not list((device.folder.path / "parts").iterdir())
    assert device.cycle().installed == 1


def test_a_version_is_lowered_by_a_signed_rollback_only_and_then_everywhere(fleet: Fleet) -> None:
    first, late = fleet.device("first"), fleet.device("late")
    fleet.publish(1)
    first.cycle()
    fleet.publish(2)
    first.cycle()
    rollback(fleet.folder, "stable", KEY)
    assert first.cycle().installed == 1
    assert late.cycle().installed == 1
    with pytest.raises(UserError, match="has had version 2"):
        fleet.publish(2)
    fleet.publish(3)
    assert first.cycle().installed == 3


def test_there_is_nothing_to_go_back_to(fleet: Fleet) -> None:
    with pytest.raises(UserError, match="Nothing was published"):
        rollback(fleet.folder, "stable", KEY)
    fleet.publish(1)
    with pytest.raises(UserError, match="no such version to go back to"):
        rollback(fleet.folder, "stable", KEY)


def test_a_key_is_handed_over_and_devices_that_slept_follow(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    third = Ed25519PrivateKey.generate()
    assert rotate(fleet.folder, KEY, OTHER_KEY) == 2
    assert rotate(fleet.folder, OTHER_KEY, third) == 3
    with pytest.raises(UserError, match="is no publisher's"):
        publish(fleet.folder, fleet.bundle(2), "stable", KEY)
    publish(fleet.folder, fleet.bundle(2, third), "stable", third)
    assert device.cycle().installed == 2
    assert device.folder.state().trust["version"] == 3
    assert fleet.device("new").cycle().installed == 2


def test_a_token_made_before_a_rotation_still_lets_a_device_in(fleet: Fleet) -> None:
    token = fleet.token()
    rotate(fleet.folder, KEY, OTHER_KEY)
    folder = DeviceFolder(fleet.path / "late")
    enrol(folder, fleet.client(), token)
    assert folder.state().trust["version"] == 2


def test_a_renewed_document_counts_longer(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    import time

    later = time.time() + 31 * 86400
    assert "expired" in device.cycle(lambda: later).problem
    renew(fleet.folder, "stable", KEY, 60 * 86400)
    assert not device.cycle(lambda: later).problem


def test_a_publishers_clock_that_was_ahead_once_shuts_no_device_out(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    device = fleet.device()
    with monkeypatch.context() as patch:
        patch.setattr("fedgraft.fleet.publishing.now", lambda: time.time() + 10 * 365 * 86400)
        fleet.publish(1)
    device.cycle()
    fleet.publish(2)
    assert device.cycle().installed == 2


def test_weeks_without_a_registry_change_nothing(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    fleet.stop()
    with pytest.raises(Unreachable):
        device.cycle()
    live = LivePredictor(device.folder.path, threads=1)
    for _ in range(30):
        assert live.predict(RED).label == "red"
    live.close()
    fleet.start()
    device.client = fleet.client()
    device.cycle()
    (line,) = fleet_status(fleet.folder, 1).telemetry
    assert line.predictions == 30


def test_a_device_moved_to_another_channel_follows_it(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    publish(fleet.folder, fleet.bundle(2), "canary", KEY)
    assert device.cycle().installed is None
    with fleet.folder.database() as database:
        database.execute("UPDATE devices SET channel = 'canary'")
    assert device.cycle().installed == 2
    assert device.folder.state().channel == "canary"


def test_a_registry_that_restarts_has_forgotten_nothing(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    fleet.stop()
    fleet.start()
    fleet.publish(2)
    assert device.cycle().installed == 2
    (line,) = fleet_status(fleet.folder).devices
    assert (line.version, line.health) == (2, "ok")


# --- enrolment and identity -----------------------------------------------------------------------


def test_a_token_lets_one_device_in(fleet: Fleet) -> None:
    token = fleet.token(group="gate")
    first, second = DeviceFolder(fleet.path / "a"), DeviceFolder(fleet.path / "b")
    enrol(first, fleet.client(), token)
    with pytest.raises(Refused, match="used already") as raised:
        enrol(second, fleet.client(), token)
    assert "\n" not in str(raised.value)
    assert second.state().device == ""
    (line,) = fleet_status(fleet.folder).devices
    assert (line.id, line.group) == (first.state().device, "gate")


def test_a_device_that_lost_the_answer_enrols_again_with_the_same_token(fleet: Fleet) -> None:
    token, folder = fleet.token(), DeviceFolder(fleet.path / "a")
    enrol(folder, fleet.client(), token)
    before = folder.state().device
    (folder.path / "state.json").unlink()
    enrol(folder, fleet.client(), token)
    assert folder.state().device == before


@pytest.mark.parametrize(
    ("token", "said"),
    [("abc", "incomplete"), ("abc.def", "incomplete"), ("x" * 32 + "." + "0" * 32, "the token is unknown")],
)
def test_a_token_that_is_none(token: str, said: str, fleet: Fleet) -> None:
    with pytest.raises(DeviceError, match=said):
        enrol(DeviceFolder(fleet.path / "a"), fleet.client(), token)


def test_a_token_has_its_time(fleet: Fleet) -> None:
    with pytest.raises(Refused, match="has expired"):
        enrol(DeviceFolder(fleet.path / "a"), fleet.client(), fleet.token(seconds=-1.0))


def test_a_device_with_anothers_key_is_not_let_in(fleet: Fleet) -> None:
    victim, thief = fleet.device("victim"), fleet.device("thief")
    state = thief.folder.state()
    with pytest.raises(Refused, match="not enrolled here with the key that signed"):
        thief.client.open_session(state.fleet, victim.folder.state().device, thief.folder.key)
    (thief.folder.path / "device.key").write_bytes((victim.folder.path / "device.key").read_bytes())
    with pytest.raises(Refused, match="not enrolled here with the key that signed"):
        fleet.client().open_session(state.fleet, state.device, thief.folder.key)


def test_what_a_device_signed_once_counts_no_second_time(fleet: Fleet) -> None:
    from fedgraft.device.agent.messages import login_text

    device = fleet.device()
    state, key = device.folder.state(), device.folder.key
    challenge = device.client._json("challenge", {"protocol": 1, "device": state.device})["challenge"]
    signature = key.sign(login_text(state.fleet, state.device, challenge)).hex()
    login = {"device": state.device, "challenge": challenge, "signature": signature}
    assert device.client._json("login", login)["session"]
    with pytest.raises(Refused, match="not enrolled here"):
        device.client._json("login", login)
    fleet.stop()
    fleet.start()
    with pytest.raises(Refused, match="not enrolled here"):
        fleet.client()._json("login", login)


@pytest.mark.parametrize("session", ["", "x", "d-1/1.0.a.b", "d-1/9999999999.000.00.00"])
def test_a_session_that_nobody_opened(session: str, fleet: Fleet) -> None:
    device = fleet.device()
    device.client._session = session
    with pytest.raises(DeviceError, match="has none"):
        device.client.check({"trust": 1, "current": ""})


def test_a_revoked_device_is_told_so_and_predicts_on(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    with fleet.folder.database() as database:
        database.execute("UPDATE devices SET revoked = 1")
    with pytest.raises(Refused, match="was revoked"):
        device.cycle()
    assert LivePredictor(device.folder.path, threads=1).predict(RED).label == "red"
    assert fleet_status(fleet.folder).devices[0].health == "revoked"


def test_another_registry_than_that_of_the_authority_is_not_spoken_to(fleet: Fleet, tmp_path: Path) -> None:
    other = Fleet(tmp_path / "other")
    assert fleet.registry is not None
    client = connected(f"localhost:{fleet.registry.port}", other.folder.authority, 5.0)
    with pytest.raises(Unreachable):
        enrol(DeviceFolder(fleet.path / "a"), client, fleet.token())
    client.close()


def test_a_registry_with_other_publishers_than_the_tokens_is_not_believed(fleet: Fleet) -> None:
    secret = fleet.token().partition(".")[0]
    with pytest.raises(DeviceError, match="other publishers than the token was made for"):
        enrol(DeviceFolder(fleet.path / "a"), fleet.client(), f"{secret}.{'0' * 32}")


def test_a_publisher_can_be_pinned(fleet: Fleet) -> None:
    with pytest.raises(DeviceError, match="not the required key"):
        enrol(DeviceFolder(fleet.path / "a"), fleet.client(), fleet.token(), bytes(32))


@pytest.mark.parametrize("name", ["<b>", "", "a b", "../x", "x" * 65, "gate\n"])
def test_names_are_plain(name: str, fleet: Fleet) -> None:
    with pytest.raises(UserError, match="is not the name of a group"):
        fleet.token(group=name)


# --- what cannot be published ---------------------------------------------------------------------


def test_a_foreign_tampered_older_or_half_bundle_is_not_published(fleet: Fleet) -> None:
    fleet.publish(5)
    with pytest.raises(UserError, match="no publisher of this fleet"):
        publish(fleet.folder, fleet.bundle(6, OTHER_KEY), "stable", KEY)
    with pytest.raises(UserError, match="is no publisher's of this fleet"):
        publish(fleet.folder, fleet.bundle(6), "stable", OTHER_KEY)
    with pytest.raises(UserError, match="has had version 5"):
        fleet.publish(5)
    with pytest.raises(UserError, match="has had version 5"):
        fleet.publish(4)
    half = fleet.bundle(6)
    (half / "labels.json").unlink()
    with pytest.raises(DeviceError, match=r"lacks labels\.json"):
        publish(fleet.folder, half, "stable", KEY)
    tampered = fleet.bundle(6)
    content = bytearray((tampered / "model.onnx").read_bytes())
    content[-1] ^= 1
    (tampered / "model.onnx").write_bytes(content)
    with pytest.raises(DeviceError, match="changed after it was signed"):
        publish(fleet.folder, tampered, "stable", KEY)
    unsigned = fleet.bundle(6)
    (unsigned / "manifest.sig").unlink()
    with pytest.raises(DeviceError, match=r"no manifest\.sig"):
        publish(fleet.folder, unsigned, "stable", KEY)
    with pytest.raises(DeviceError, match="There is no bundle"):
        publish(fleet.folder, fleet.path / "missing", "stable", KEY)
    assert [rollout.version for rollout in fleet_status(fleet.folder).channels[0].rollouts] == [5]


def test_a_label_with_html_is_not_published(fleet: Fleet) -> None:
    fleet.publish(1)
    with pytest.raises(UserError, match="has < or >"):
        publish(fleet.folder, fleet.bank(2, ("<script>alert(1)</script>", "b")), "stable", KEY)


def test_a_class_bank_for_an_encoder_that_nobody_has(fleet: Fleet) -> None:
    with pytest.raises(UserError, match="publish its bundle first"):
        publish(fleet.folder, fleet.bank(2, ("a", "b")), "stable", KEY)


def test_a_version_is_one_release_in_all_channels(fleet: Fleet) -> None:
    bundle = fleet.bundle(2)
    publish(fleet.folder, bundle, "canary", KEY)
    with pytest.raises(UserError, match="Another release of version 2"):
        publish(fleet.folder, fleet.bundle(2, licence="other"), "stable", KEY)
    publish(fleet.folder, bundle, "stable", KEY)


# --- staged rollouts ------------------------------------------------------------------------------


def _devices(fleet: Fleet, number: int) -> list[Device]:
    return [fleet.device(f"device-{index}") for index in range(number)]


def test_a_stage_is_for_its_part_of_the_devices_and_the_next_for_more(fleet: Fleet) -> None:
    devices = _devices(fleet, 8)
    fleet.publish(1)
    for device in devices:
        device.cycle()
    done = fleet.publish(2, plan=RolloutPlan.build(50, "100", "1s"))
    early = {d.folder.state().device for d in devices if place(d.folder.state().device, done.release) < 50}
    for device in devices:
        device.cycle()
    assert {d.folder.state().device for d in devices if d.version == 2} == early
    with fleet.folder.database() as database:
        database.execute("UPDATE rollouts SET began = began - 10")
    fleet.stop()
    fleet.start()
    for _ in range(2):  # those that have it come back with it, and the others get it
        for device in devices:
            device.client = fleet.client()
            device.cycle()
    assert {device.version for device in devices} == {2}


def test_no_stage_follows_before_devices_have_come_back_with_a_release(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage that is shorter than the devices' interval must not carry a bad release to all of them."""
    devices = _devices(fleet, 6)
    fleet.publish(1)
    for device in devices:
        device.cycle()
    done = fleet.publish(2, plan=RolloutPlan.build(50, "100", "1s", "failed>2%"))
    early, late = devices[:3], devices[3:]
    first = {device.folder.state().device for device in early}
    monkeypatch.setattr("fedgraft.fleet.rollouts.place", lambda device, release: 0 if device in first else 99)
    for device in early:
        assert device.cycle().installed == 2
    with fleet.folder.database() as database:
        database.execute("UPDATE rollouts SET began = began - 10")
    for device in late:
        assert device.cycle().installed is None
    for device in early:
        device.folder.refuse(done.release, "bad")
        device.cycle()
    for device in late:
        assert device.cycle().installed is None
    assert fleet_status(fleet.folder).channels[0].rollouts[-1].state == "halted"


def test_the_stage_for_all_devices_is_watched_as_well(fleet: Fleet) -> None:
    devices = _devices(fleet, 3)
    fleet.publish(1)
    for device in devices:
        device.cycle()
    done = fleet.publish(2, plan=RolloutPlan.build(100, None, "1h", "failed>2%"))
    devices[0].cycle()
    devices[0].folder.refuse(done.release, "bad")
    devices[0].cycle()
    assert devices[1].cycle().installed is None
    rollback(fleet.folder, "stable", KEY)
    assert devices[1].version == 1


def test_a_rollout_halts_and_nobody_else_gets_the_release(fleet: Fleet) -> None:
    devices = _devices(fleet, 4)
    fleet.publish(1)
    for device in devices:
        device.cycle()
    done = fleet.publish(2, plan=RolloutPlan.build(99.9, "100", "1h", "failed>2% or unknown>20%"))
    devices[0].cycle()
    assert devices[0].version == 2
    devices[0].folder.refuse(done.release, "the camera is dark")
    devices[0].cycle()
    for device in devices[1:]:
        assert device.cycle().installed is None
    status = fleet_status(fleet.folder)
    assert status.channels[0].rollouts[-1].state == "halted"
    assert "failed is 100.0 %, more than 2 %" in status.channels[0].rollouts[-1].reason
    assert any("went back" in problem for problem in status.problems)
    assert devices[0].version == 1


def test_a_rollback_ends_a_rollout(fleet: Fleet) -> None:
    devices = _devices(fleet, 3)
    fleet.publish(1)
    for device in devices:
        device.cycle()
    fleet.publish(2, plan=RolloutPlan.build(60, "100"))
    for device in devices:
        device.cycle()
    rollback(fleet.folder, "stable", KEY)
    for device in devices:
        device.cycle()
    assert {device.version for device in devices} == {1}
    assert all(line.health == "ok" for line in fleet_status(fleet.folder).devices)


def test_a_folder_copied_while_it_is_served_serves_the_same_fleet(fleet: Fleet) -> None:
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    fleet.folder.backup(fleet.path / "backup")
    from fedgraft.fleet.fleet_folder import FleetFolder

    copy = FleetFolder.open(fleet.path / "backup")
    assert fleet_status(copy).devices == fleet_status(fleet.folder).devices
    assert {path.name for path in (copy.path / "blobs").iterdir()} == {
        path.name for path in (fleet.folder.path / "blobs").iterdir()
    }
