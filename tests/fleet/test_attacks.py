"""The Update Framework's list of attacks, played by a registry that lies: the device stays as it is, with one line.

The registry is in the attacker's hands, TLS and all; what it lacks is the publisher's key.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedgraft.device.agent.device_folder import DeviceFolder
from fedgraft.device.agent.live import LivePredictor
from fedgraft.device.agent.messages import CHUNK, decoded
from fedgraft.device.agent.metadata import Channel, FileOfRelease, MetadataError, Release, Seen, Trust, accepted_channel
from fedgraft.device.agent.registry_client import Refused, RegistryClient, Unreachable
from fedgraft.device.agent.update import Looked, first_state, look
from fedgraft.edge_export.signing import public_bytes
from fedgraft.fleet.publishing import signed_document
from fedgraft.fleet.simulated_bundle import bundle_contents, signed
from tests.fleet.conftest import KEY, OTHER_KEY

FLEET = "f" * 64
TRUST = Trust(FLEET, 1, (public_bytes(KEY).hex(),))
RED = Image.new("RGB", (8, 8), (220, 0, 0))


def _release(
    version: int, seed: int = 0, key: Ed25519PrivateKey = KEY, stated: int | None = None
) -> tuple[Release, dict]:
    """A release, and its files by their SHA-256."""
    import hashlib

    files = signed(bundle_contents(seed), version, key)
    blobs = {hashlib.sha256(content).hexdigest(): content for content in files.values()}
    entries = tuple(
        FileOfRelease(f"bundle/{name}", hashlib.sha256(content).hexdigest(), len(content))
        for name, content in sorted(files.items())
    )
    return Release.of(version if stated is None else stated, public_bytes(key).hex(), "", entries), blobs


class Liar:
    """A registry that answers as a test wants."""

    def __init__(self, folder: DeviceFolder) -> None:
        self.folder = folder
        self.blobs: dict[str, bytes] = {}
        self.channel = Channel(FLEET, "stable", 0, int(time.time()), int(time.time()) + 10_000, (), ())
        self.key = KEY
        self.answer: dict[str, Any] = {}
        self.fetched = 0

    def offer(self, *versions: int, withdrawn: tuple[int, ...] = (), seed: int = 0) -> None:
        """A new document with these versions, of which the last one is named."""
        releases = []
        for version in versions:
            release, blobs = _release(version, seed)
            self.blobs |= blobs
            releases.append(release)
        sequence = self.channel.sequence + 1
        self.say(replace(self.channel, sequence=sequence, releases=tuple(releases), withdrawn=withdrawn))

    def say(self, channel: Channel, key: Ed25519PrivateKey = KEY) -> None:
        """A document, and its last release as the one to run."""
        self.channel = channel
        document = signed_document(channel.content(), key)
        target = channel.releases[-1].id if channel.releases else ""
        self.answer = {"channel": "stable", "document": document, "target": target, "trust": []}

    def check(self, content: dict[str, Any]) -> dict[str, Any]:
        """What a test has put there."""
        return json.loads(json.dumps(self.answer))

    def fetch(self, sha256: str, offset: int, length: int) -> bytes:
        """A part of a file."""
        self.fetched += 1
        return self.blobs[sha256][offset : offset + length]

    def look(self, clock: Callable[[], float] = time.time) -> Looked:
        """The device asks."""
        return look(self.folder, self, clock)  # type: ignore[arg-type]


@pytest.fixture
def liar(tmp_path: Path) -> Liar:
    """A registry, and a device that runs version 5."""
    folder = DeviceFolder(tmp_path / "device")
    state = first_state(
        {"device": "d-1", "channel": "stable", "trust": [{"signed": TRUST.content(), "signatures": []}]},
        TRUST.fingerprint[:32],
    )
    folder.write_state(state)
    registry = Liar(folder)
    registry.offer(5)
    assert registry.look().installed == 5
    return registry


def _unharmed(liar: Liar, said: str, looked: Looked | None = None) -> None:
    """The device says why in one line, and goes on with version 5."""
    looked = looked or liar.look()
    assert looked.installed is None
    assert said in looked.problem
    assert "\n" not in looked.problem
    state = liar.folder.state()
    assert state.floor_version == 5
    assert LivePredictor(liar.folder.path, threads=1).predict(RED).label == "red"
    live = json.loads((liar.folder.bundle(state.current) / "manifest.json").read_text())
    assert live["version"] == 5


# --- rollback -------------------------------------------------------------------------------------


def test_rollback_to_an_older_version_in_a_newer_document(liar: Liar) -> None:
    liar.offer(4)
    _unharmed(liar, "which no publisher has withdrawn")


def test_rollback_to_an_older_document(liar: Liar) -> None:
    old = liar.answer
    liar.offer(5, 6)
    liar.answer["target"] = ""
    assert not liar.look().problem
    liar.answer = old
    _unharmed(liar, "has the sequence number 1, and 2 is known")


def test_rollback_is_possible_for_the_publisher_and_only_from_what_it_withdrew(liar: Liar) -> None:
    liar.offer(4, withdrawn=(3,))
    _unharmed(liar, "which no publisher has withdrawn")
    liar.offer(4, withdrawn=(5,))
    assert liar.look().installed == 4
    assert liar.folder.state().floor_version == 4


def test_rollback_of_the_publishers_keys(liar: Liar) -> None:
    second = Trust(FLEET, 2, (public_bytes(OTHER_KEY).hex(),))
    liar.answer["trust"] = [signed_document(second.content(), KEY)]
    liar.answer["document"] = signed_document(liar.channel.content(), OTHER_KEY)
    assert not liar.look().problem
    liar.answer["trust"] = []
    liar.say(replace(liar.channel, sequence=9), KEY)
    _unharmed(liar, "is not signed by a publisher")


def test_another_release_of_the_version_that_runs(liar: Liar) -> None:
    liar.offer(5, seed=1)
    _unharmed(liar, "another release of version 5")


# --- freeze ---------------------------------------------------------------------------------------


def test_freeze_is_seen_once_the_document_has_expired(liar: Liar) -> None:
    _unharmed(liar, "expired", liar.look(lambda: time.time() + 20_000))


def test_freeze_is_seen_also_where_the_registry_sends_nothing(liar: Liar) -> None:
    liar.answer = {"channel": "stable", "document": None, "target": "", "trust": []}
    _unharmed(liar, "expired", liar.look(lambda: time.time() + 20_000))


def test_freeze_by_naming_a_channel_that_has_nothing(liar: Liar) -> None:
    liar.answer = {"channel": "other", "document": None, "target": "", "trust": []}
    assert liar.look() == Looked()
    _unharmed(liar, "expired", liar.look(lambda: time.time() + 20_000))


def test_freeze_by_a_clock_that_was_set_back(liar: Liar) -> None:
    """A device's clock is never before the newest document that it has accepted."""
    later = int(time.time()) + 50_000
    liar.say(replace(liar.channel, sequence=2, made=later, expires=later + 1000))
    assert not liar.look().problem
    liar.say(replace(liar.channel, sequence=3, made=1, expires=int(time.time()) + 10_000))
    _unharmed(liar, "expired", liar.look())


# --- mix and match --------------------------------------------------------------------------------


def test_mix_and_match_of_a_release_that_no_document_names(liar: Liar) -> None:
    stray, blobs = _release(9)
    liar.blobs |= blobs
    liar.answer["target"] = stray.id
    _unharmed(liar, "that the signed document of the channel 'stable' lacks")


def test_mix_and_match_of_files_of_two_releases(liar: Liar) -> None:
    one, blobs = _release(6)
    other, more = _release(7, seed=3)
    liar.blobs |= blobs | more
    by_path = {file.path: file for file in other.files}
    mixed = tuple(by_path[file.path] if file.path.endswith("model.onnx") else file for file in one.files)
    liar.say(replace(liar.channel, sequence=2, releases=(replace(one, files=mixed),)))
    _unharmed(liar, "the id of a release is not that of its files")


def test_mix_and_match_that_a_publisher_signed_by_mistake(liar: Liar) -> None:
    """Even then the bundle's own manifest decides, and the release is never tried again."""
    one, blobs = _release(6)
    other, more = _release(7, seed=3)
    liar.blobs |= blobs | more
    by_path = {file.path: file for file in other.files}
    mixed = tuple(by_path[file.path] if file.path.endswith("model.onnx") else file for file in one.files)
    liar.say(replace(liar.channel, sequence=2, releases=(Release.of(6, one.signer, "", mixed),)))
    _unharmed(liar, "Version 6 is not taken")
    assert liar.look() == Looked()
    assert liar.folder.state().health == "failed"


def test_mix_and_match_of_another_fleets_or_channels_document(liar: Liar) -> None:
    liar.say(replace(liar.channel, sequence=2, name="canary"))
    _unharmed(liar, "is not for this fleet's channel 'stable'")
    liar.say(replace(liar.channel, sequence=2, name="stable", fleet="e" * 64))
    _unharmed(liar, "is not for this fleet's channel 'stable'")


def test_a_version_that_the_document_states_and_the_bundle_has_not(liar: Liar) -> None:
    release, blobs = _release(4, stated=8)
    liar.blobs |= blobs
    liar.say(replace(liar.channel, sequence=2, releases=(release,)))
    _unharmed(liar, "has version 4, not 8")


def test_a_label_with_html_that_a_publisher_signed(liar: Liar) -> None:
    import hashlib

    files = signed(bundle_contents(labels=("<script>", "green", "blue")), 6, KEY)
    liar.blobs |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
    entries = tuple(
        FileOfRelease(f"bundle/{name}", hashlib.sha256(content).hexdigest(), len(content))
        for name, content in sorted(files.items())
    )
    liar.say(replace(liar.channel, sequence=2, releases=(Release.of(6, public_bytes(KEY).hex(), "", entries),)))
    _unharmed(liar, "which a page would take for HTML")


# --- wrong signer ---------------------------------------------------------------------------------


def test_wrong_signer_of_a_document(liar: Liar) -> None:
    release, blobs = _release(6, key=OTHER_KEY)
    liar.blobs |= blobs
    liar.say(replace(liar.channel, sequence=2, releases=(release,)), OTHER_KEY)
    _unharmed(liar, "is not signed by a publisher of this fleet")


def test_wrong_signer_who_names_the_right_key(liar: Liar) -> None:
    liar.offer(6)
    liar.answer["document"] = signed_document(liar.channel.content(), OTHER_KEY)
    liar.answer["document"]["signatures"][0]["key"] = public_bytes(KEY).hex()
    _unharmed(liar, "is not signed by a publisher of this fleet")


def test_wrong_signer_of_the_next_keys(liar: Liar) -> None:
    second = Trust(FLEET, 2, (public_bytes(OTHER_KEY).hex(),))
    liar.say(replace(liar.channel, sequence=2), OTHER_KEY)
    for document in (
        signed_document(second.content(), OTHER_KEY),
        {"signed": second.content(), "signatures": []},
        signed_document(replace(second, version=3).content(), KEY),
        signed_document(replace(second, fleet="e" * 64).content(), KEY),
    ):
        liar.answer["trust"] = [document]
        _unharmed(liar, "trust document")


def test_wrong_signer_of_a_bundle_in_a_right_document(liar: Liar) -> None:
    release, blobs = _release(6, key=OTHER_KEY)
    liar.blobs |= blobs
    lied = Release.of(6, public_bytes(KEY).hex(), "", release.files)
    liar.say(replace(liar.channel, sequence=2, releases=(lied,)))
    _unharmed(liar, "not by the required key")


def test_a_document_that_was_changed_after_it_was_signed(liar: Liar) -> None:
    liar.offer(6)
    liar.answer["document"]["signed"]["sequence"] = 77
    _unharmed(liar, "is not signed by a publisher of this fleet")


# --- endless data ---------------------------------------------------------------------------------


def test_endless_data_ends_at_the_size_that_was_signed(liar: Liar) -> None:
    """More than was asked for is refused by the client; here the file itself grows."""
    liar.offer(6, seed=1)
    model = next(file for file in liar.channel.releases[0].files if file.path.endswith("model.onnx"))
    whole = liar.blobs[model.sha256]
    liar.blobs[model.sha256] = bytes(10) + whole + bytes(10**6)
    _unharmed(liar, "with another content than was signed")
    stored = sum(path.stat().st_size for path in (liar.folder.path / "parts").iterdir())
    assert stored == 0


@pytest.mark.parametrize("sent", [0, CHUNK - 1, CHUNK + 1])
def test_endless_or_short_chunks_are_refused(sent: int) -> None:
    class Channel:
        def unary_unary(self, method: str) -> Callable[..., bytes]:
            return lambda data, timeout, metadata: bytes(sent)

    client = RegistryClient(Channel(), "here")  # type: ignore[arg-type]
    with pytest.raises(Refused, match=f"sent {sent:,} bytes"):
        client.fetch("0" * 64, 0, CHUNK)


def test_endless_answers_are_bounded() -> None:
    with pytest.raises(ValueError, match="exceeds the limit"):
        decoded(b"{" + b" " * 100 + b"}", 50)
    with pytest.raises(ValueError, match="nested too deeply"):
        decoded(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 10**6)


def test_a_file_larger_than_any_bundles_is_refused_before_it_is_fetched(liar: Liar) -> None:
    release, _ = _release(6)
    grown = tuple(replace(file, bytes=10**12) if file.path.endswith("onnx") else file for file in release.files)
    liar.say(replace(liar.channel, sequence=2, releases=(Release.of(6, release.signer, "", grown),)))
    before = liar.fetched
    _unharmed(liar, "bytes is not a whole number from 0 to 2147483648")
    assert liar.fetched == before


# --- slow retrieval -------------------------------------------------------------------------------


def test_slow_retrieval_is_given_up(tmp_path: Path) -> None:
    """A registry that accepts a call and never answers; each call has a deadline of its own."""
    import threading
    from concurrent.futures import ThreadPoolExecutor

    ended = threading.Event()

    def wait(data: bytes, context: Any) -> bytes:
        ended.wait(20)
        return b"{}"

    handlers = {name: grpc.unary_unary_rpc_method_handler(wait) for name in ("fetch",)}
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("fedgraft.Fleet", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = RegistryClient(channel, "here", patience=0.3)
            with pytest.raises(Unreachable, match="does not answer: Deadline Exceeded"):
                client.fetch("0" * 64, 0, CHUNK)
    finally:
        ended.set()
        server.stop(None)


def test_slow_retrieval_by_small_chunks_is_impossible() -> None:
    """64 KB within 60 seconds: below about 1 KB a second a download is given up, and goes on at the next look."""
    from fedgraft.device.agent.registry_client import PATIENCE_SECONDS

    assert CHUNK / PATIENCE_SECONDS > 1000


# --- whatever else --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda signed: signed.update(format=2),
        lambda signed: signed.update(type="trust"),
        lambda signed: signed.update(sequence=-1),
        lambda signed: signed.update(expires="never"),
        lambda signed: signed.update(releases=[{}]),
        lambda signed: signed.update(releases="all"),
        lambda signed: signed["releases"][0].update(version=2**60),
        lambda signed: signed["releases"][0]["files"][0].update(path="bundle/../../etc/passwd"),
        lambda signed: signed["releases"][0]["files"][0].update(path="/etc/passwd"),
        lambda signed: signed["releases"][0]["files"].append(signed["releases"][0]["files"][0]),
        lambda signed: signed.update(withdrawn=[-1]),
        lambda signed: signed.pop("fleet"),
    ],
)
def test_a_document_that_is_signed_but_not_sound(change: Callable[[dict], None], liar: Liar) -> None:
    liar.offer(6)
    content = liar.channel.content()
    change(content)
    liar.answer["document"] = signed_document(content, KEY)
    _unharmed(liar, "invalid")


@pytest.mark.parametrize(
    "answer",
    [
        {"trust": 3, "channel": "stable"},
        {"channel": 3},
        {"document": [3]},
        {"document": {"signed": {}}},
        {"document": {"signed": {"type": "channel", "format": 1}, "signatures": 3}},
        {"trust": [None]},
    ],
)
def test_an_answer_that_is_none(answer: dict[str, Any], liar: Liar) -> None:
    liar.answer = {**liar.answer, **answer}
    looked = liar.look()
    assert looked.problem
    assert "\n" not in looked.problem


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
@settings(max_examples=40, deadline=None)
def test_any_value_as_a_document_is_refused_in_one_way(value: Any) -> None:
    for document in (value, {"signed": value, "signatures": value}, {"signed": {"type": value}, "signatures": []}):
        with pytest.raises(MetadataError):
            accepted_channel(document, "stable", TRUST, {"stable": Seen(1, "")}, 0.0)
        with pytest.raises(MetadataError):
            TRUST.successor(document)
