"""What a registry refuses of a device that lies: nothing is stored, and nothing of its inside is told."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.device.agent.messages import LATENCY_BOUNDS, REQUEST_LIMIT, SERVICE, SESSION_HEADER, one_line
from fedgraft.device.agent.registry_client import Refused
from fedgraft.fleet.status import fleet_status
from tests.fleet.conftest import Device, Fleet

_TALLY = {
    "predictions": 10, "unknown": 2, "failed": 0, "counts": [[0, 8]], "latency": [0] * (len(LATENCY_BOUNDS) + 1),
    "confidence": 5.0, "reference": None,
}  # fmt: skip


@pytest.fixture
def device(fleet: Fleet) -> Device:
    """A device with version 1 and a session."""
    device = fleet.device()
    fleet.publish(1)
    device.cycle()
    return device


def _report(device: Device, **changes: Any) -> dict[str, Any]:
    release = device.folder.state().current
    return {
        "serial": 100, "release": release, "health": "ok", "proving": 0, "refused": {}, "tallies": {release: _TALLY},
        "agent": "0", "clock": 0, "problem": "", **changes,
    }  # fmt: skip


def test_a_report_counts_once_for_its_number(fleet: Fleet, device: Device) -> None:
    device.client.report(_report(device))
    device.client.report(_report(device))
    device.client.report(_report(device, serial=99))
    (line,) = fleet_status(fleet.folder, 1).telemetry
    assert (line.predictions, line.unknown, line.classes) == (10, 20.0, {"red": 8})


@pytest.mark.parametrize(
    "change",
    [
        {"serial": -1},
        {"serial": "1"},
        {"health": "splendid"},
        {"release": 3},
        {"release": "x" * 1000},
        {"refused": []},
        {"refused": {str(number): "" for number in range(100)}},
        {"tallies": {str(number): {} for number in range(100)}},
        {"clock": "now"},
        {"problem": "x" * 10_000},
        {"proving": 10**9},
    ],
)
def test_a_report_that_is_none_stores_nothing(change: dict[str, Any], fleet: Fleet, device: Device) -> None:
    with pytest.raises(Refused, match="the request is invalid"):
        device.client.report(_report(device, **change))
    assert fleet_status(fleet.folder, 1).telemetry == []


@pytest.mark.parametrize(
    "change",
    [
        {"predictions": -1},
        {"predictions": 5},
        {"unknown": 3},
        {"confidence": 11.0},
        {"confidence": float("1e300")},
        {"counts": [[3, 1]]},
        {"counts": [[0, -1]]},
        {"counts": [[0, 8]] * 2000},
        {"counts": "many"},
        {"latency": [1]},
        {"reference": 3},
    ],
)
def test_counts_that_cannot_be_store_nothing_of_the_report(
    change: dict[str, Any], fleet: Fleet, device: Device
) -> None:
    release = device.folder.state().current
    with pytest.raises(Refused, match="the request is invalid"):
        device.client.report(_report(device, health="failed", tallies={release: {**_TALLY, **change}}))
    status = fleet_status(fleet.folder, 1)
    assert status.telemetry == []
    assert status.devices[0].health == "ok"


def test_counts_of_a_release_that_nobody_published_are_left_out(fleet: Fleet, device: Device) -> None:
    device.client.report(_report(device, tallies={"0" * 64: _TALLY}))
    assert fleet_status(fleet.folder, 1).telemetry == []


def test_a_file_of_another_channel_is_not_given(fleet: Fleet, device: Device) -> None:
    from fedgraft.fleet.publishing import publish
    from tests.fleet.conftest import KEY

    done = publish(fleet.folder, fleet.bundle(2, licence="secret"), "canary", KEY)
    with fleet.folder.database() as database:
        from fedgraft.device.agent.metadata import Channel

        secret = Channel.parse(database.channel("canary")).release(done.release)
        own = {file.sha256 for file in Channel.parse(database.channel("stable")).releases[0].files}
    file = next(file for file in secret.files if file.sha256 not in own)
    with pytest.raises(Refused, match="no release of the device's channel has this file"):
        device.client.fetch(file.sha256, 0, 10)
    with pytest.raises(Refused, match="64 hexadecimal digits"):
        device.client.fetch("../../keys/ca.key", 0, 10)


def test_a_device_sees_nothing_of_another(fleet: Fleet, device: Device) -> None:
    other = fleet.device("other")
    answer = device.client.check({"trust": 1, "current": "", "channel": "stable", "sequence": -1})
    assert other.folder.state().device not in str(answer)


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("enrol", b""),
        ("enrol", b"{}"),
        ("enrol", b"[1]"),
        ("enrol", b"{" * 50_000),
        ("challenge", b'{"device":"<b>"}'),
        ("login", b'{"device":"d-1","challenge":"x","signature":"zz"}'),
        ("check", b"{}"),
        ("fetch", b"\xff\xfe"),
        ("report", b"{}"),
        ("other", b"{}"),
    ],
)
def test_a_stranger_gets_one_line_and_no_traceback(method: str, data: bytes, fleet: Fleet) -> None:
    channel = fleet.client()._channel
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=20, metadata=[(SESSION_HEADER, "a/b.c.d.e")])
    assert raised.value.code() != grpc.StatusCode.INTERNAL
    assert "Traceback" not in str(raised.value.details())
    assert "\n" not in str(raised.value.details())


def test_a_request_that_is_too_large_is_not_read(fleet: Fleet) -> None:
    channel = fleet.client()._channel
    with grpc.secure_channel(
        f"localhost:{fleet.registry.port}",  # type: ignore[union-attr]
        grpc.ssl_channel_credentials(fleet.folder.authority.read_bytes()),
    ) as unbounded:
        for each in (channel, unbounded):
            with pytest.raises(grpc.RpcError) as raised:
                each.unary_unary(f"/{SERVICE}/enrol")(bytes(REQUEST_LIMIT + 1), timeout=20)
            assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=3)


@given(st.dictionaries(st.sampled_from(["trust", "current", "channel", "sequence", "serial", "tallies"]), _JSON))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_answered_or_refused(device: Device, content: dict[str, Any]) -> None:
    calls: list[Callable[[dict[str, Any]], Any]] = [device.client.check, device.client.report]
    said = []
    for call in calls:
        try:
            call(content)
        except Refused as error:
            said.append(str(error))
    assert not any("the registry failed" in each for each in said)


def test_what_a_registry_says_is_one_printable_line() -> None:
    assert one_line("a\x1b[31m\nb\u202ec" + "x" * 1000) == ("a [31m b c" + "x" * 1000)[:300]
