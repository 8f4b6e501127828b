"""What a registry knows of its fleet: devices, channels, rollouts, and telemetry by version and group."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fedgraft.core.wording import plural
from fedgraft.deployment.folder_lock import running_pid
from fedgraft.device.agent.messages import LATENCY_BOUNDS
from fedgraft.device.agent.metadata import Channel
from fedgraft.fleet.database import Database, Row, now
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.rollouts import figures, rollouts
from fedgraft.runs.certificates import validity

SMALLEST_COUNT = 5
"""Counts below it are not shown, and neither is a group of fewer devices in telemetry."""
_SILENT_SECONDS = 2 * 86400.0
_SOON_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class DeviceLine:
    """A device.

    Attributes:
        version: that it runs; None before its first.
        health: new, ok, failed or revoked.
        last_seen: seconds since 1970.
        proving: predictions by which its release still has to prove itself.
        problem: why it does not run what its channel names, or a warning of the self test of what it runs.
        clock_skew: seconds that its clock is ahead.
    """

    id: str
    group: str
    tags: list[str]
    channel: str
    version: int | None
    health: str
    last_seen: float
    proving: int
    problem: str
    agent: str
    clock_skew: float


@dataclass(frozen=True)
class RolloutLine:
    """A release in a channel.

    Attributes:
        percent: of the channel's devices that it is for.
        devices: that run it.
    """

    version: int
    release: str
    state: str
    percent: float
    reason: str
    devices: int
    tried: int
    failed: int
    predictions: int
    unknown: int


@dataclass(frozen=True)
class ChannelLine:
    """A channel, its newest rollout last.

    Attributes:
        expires: seconds since 1970; devices then want a newer document.
    """

    name: str
    sequence: int
    expires: float
    withdrawn: list[int]
    rollouts: list[RolloutLine]


@dataclass(frozen=True)
class TelemetryLine:
    """What the devices of a group report of a version.

    Attributes:
        unknown: percent of predictions.
        drift: mean confidence of late minus that of the first predictions; None where too few devices know both.
        median_ms, p90_ms: upper bounds of the groups that these latencies are in; None beyond the largest.
        classes: predictions by label; those below the smallest count that is shown are summed in `suppressed`.
    """

    version: int
    group: str
    devices: int
    predictions: int
    unknown: float
    failed: int
    confidence: float
    drift: float | None
    median_ms: float | None
    p90_ms: float | None
    classes: dict[str, int]
    suppressed: int


@dataclass(frozen=True)
class FleetStatus:
    """The whole fleet.

    Attributes:
        pid: of the process that serves it, or None.
        problems: a sentence for each thing that needs attention.
    """

    fleet: str
    port: int
    pid: int | None
    devices: list[DeviceLine]
    channels: list[ChannelLine]
    telemetry: list[TelemetryLine]
    problems: list[str]


def fleet_status(folder: FleetFolder, smallest: int = SMALLEST_COUNT) -> FleetStatus:
    """The status of a fleet from its folder, whether it is served or not.

    Args:
        smallest: groups with fewer devices and counts below it are left out of the telemetry.
    """
    with folder.database() as database:
        devices = [_device(row) for row in database.rows("SELECT * FROM devices ORDER BY id")]
        channels = [_channel(database, name, devices) for name in database.channel_names()]
        telemetry = list(telemetry_lines(database, smallest))
    problems = list(_problems(folder, devices, channels))
    return FleetStatus(folder.fleet, folder.port, running_pid(folder.path), devices, channels, telemetry, problems)


def telemetry_lines(database: Database, smallest: int) -> Iterable[TelemetryLine]:
    """Telemetry by version and group; a group of fewer devices than `smallest` is left out."""
    rows = database.rows(
        "SELECT t.*, d.grp, r.version, r.labels FROM telemetry t JOIN devices d ON d.id = t.device "
        "JOIN releases r ON r.id = t.release ORDER BY r.version, d.grp, t.device"
    )
    together: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        together.setdefault((row["version"], row["grp"]), []).append(row)
    for (version, group), members in together.items():
        predictions = sum(row["predictions"] for row in members)
        if len(members) >= smallest and predictions:
            yield _telemetry(version, group, members, predictions, smallest)


def _telemetry(version: int, group: str, members: list[Row], predictions: int, smallest: int) -> TelemetryLine:
    labels = json.loads(members[0]["labels"])
    counts: Counter[str] = Counter()
    latency = [0] * (len(LATENCY_BOUNDS) + 1)
    for row in members:
        counts.update({labels[int(position)]: count for position, count in json.loads(row["counts"]).items()})
        latency = [mine + theirs for mine, theirs in zip(latency, json.loads(row["latency"]), strict=True)]
    drifts = [row["recent"] - row["reference"] for row in members if row["reference"] is not None and row["recent"]]
    shown = {label: count for label, count in counts.most_common() if count >= smallest}
    return TelemetryLine(
        version=version,
        group=group,
        devices=len(members),
        predictions=predictions,
        unknown=100 * sum(row["unknown"] for row in members) / predictions,
        failed=sum(row["failed"] for row in members),
        confidence=sum(row["confidence"] for row in members) / predictions,
        drift=sum(drifts) / len(drifts) if len(drifts) >= smallest else None,
        median_ms=quantile(latency, 0.5),
        p90_ms=quantile(latency, 0.9),
        classes=shown,
        suppressed=sum(counts.values()) - sum(shown.values()),
    )


def quantile(latency: list[int], fraction: float) -> float | None:
    """The upper bound of the group that a quantile of latencies is in; None in the last group, which has none."""
    left = fraction * sum(latency)
    for bound, count in zip(LATENCY_BOUNDS, latency, strict=False):
        left -= count
        if left <= 0:
            return float(bound)
    return None


def _device(row: Row) -> DeviceLine:
    return DeviceLine(
        id=row["id"],
        group=row["grp"],
        tags=json.loads(row["tags"]),
        channel=row["channel"],
        version=row["version"],
        health="revoked" if row["revoked"] else row["health"],
        last_seen=row["last_seen"],
        proving=row["proving"],
        problem=row["problem"],
        agent=row["agent"],
        clock_skew=row["clock_skew"],
    )


def _channel(database: Database, name: str, devices: list[DeviceLine]) -> ChannelLine:
    document = database.channel(name)
    assert document is not None
    channel = Channel.parse(document)
    running = Counter(device.version for device in devices if device.channel == name)
    lines = []
    for rollout in rollouts(database, name):
        known = figures(database, name, rollout.release)
        lines.append(
            RolloutLine(
                version=rollout.version,
                release=rollout.release,
                state=rollout.state,
                percent=rollout.percent,
                reason=rollout.reason,
                devices=running[rollout.version],
                tried=known.tried,
                failed=known.failed,
                predictions=known.predictions,
                unknown=known.unknown,
            )
        )
    return ChannelLine(name, channel.sequence, channel.expires, list(channel.withdrawn), lines)


def _problems(folder: FleetFolder, devices: list[DeviceLine], channels: list[ChannelLine]) -> Iterable[str]:
    for what, path in (
        ("The authority's certificate ca.pem", folder.authority),
        ("The registry's certificate", folder.certificate),
    ):
        if said := validity(path).complaint(what):
            yield said
    for channel in channels:
        left = channel.expires - now()
        if left < _SOON_SECONDS:
            when = f"expires in {left / 86400:.1f} days" if left > 0 else "has expired"
            yield f"What the channel {channel.name!r} has {when}; sign it anew: fedgraft fleet renew."
        for rollout in channel.rollouts:
            if rollout.state == "halted" and rollout is channel.rollouts[-1]:
                yield f"Version {rollout.version} in {channel.name!r} is halted: {rollout.reason}."
    counted = Counter(device.health for device in devices)
    if counted["failed"]:
        yield f"{plural(counted['failed'], 'device')} went back or refused what the channel names."
    if warned := [device.problem for device in devices if device.problem and device.health == "ok"]:
        yield f"A problem is reported by {plural(len(warned), 'device')}, such as: {warned[0]}"
    silent = sum(now() - device.last_seen > _SILENT_SECONDS for device in devices if device.health != "revoked")
    if silent:
        yield f"Not heard of for two days: {plural(silent, 'device')}."
