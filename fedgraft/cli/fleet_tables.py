"""The status of a fleet as tables on a terminal."""

import time
from datetime import datetime
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fedgraft.cli.consoles import table_console
from fedgraft.core.plain_text import plain
from fedgraft.core.wording import plural

if TYPE_CHECKING:
    from fedgraft.fleet.status import ChannelLine, DeviceLine, FleetStatus, TelemetryLine

_DAY = 86400.0
_SHOWN_DEVICES = 100
_SHOWN_CLASSES = 5


def print_fleet(status: "FleetStatus") -> None:
    """Print all of it; where there are many devices, those that need attention first and not all of the others."""
    console = table_console()
    served = f"served by process {status.pid} on port {status.port}" if status.pid else "not served"
    console.print(f"Fleet {status.fleet[:12]}: {plural(len(status.devices), 'device')}, {served}.")
    console.print(_devices(status.devices))
    if (left := len(status.devices) - _SHOWN_DEVICES) > 0:
        console.print(f"And {left} more; --json has them all.")
    for channel in status.channels:
        console.print(_channel(channel))
    if status.telemetry:
        console.print(_telemetry(status.telemetry))
    for problem in status.problems:
        console.print(Text(f"Problem: {problem}"), soft_wrap=True)


def _devices(devices: list["DeviceLine"]) -> Table:
    table = Table("id", "group", "channel", "version", "health", "last seen", "remark")
    for device in sorted(devices, key=lambda each: (each.health == "ok", each.id))[:_SHOWN_DEVICES]:
        version = "" if device.version is None else str(device.version)
        words = (device.id, device.group, device.channel, version, device.health, _clock(device.last_seen))
        table.add_row(*map(Text, words), Text(plain(device.problem) if device.problem else ""))
    return table


def _channel(channel: "ChannelLine") -> Table:
    expires = datetime.fromtimestamp(channel.expires).strftime("%Y-%m-%d")
    table = Table(title=f"channel {channel.name}, document {channel.sequence}, expires {expires}")
    for column in ("version", "state", "for", "devices", "failed", "unknown", "reason"):
        table.add_column(column)
    for line in channel.rollouts:
        failed = f"{line.failed} of {line.tried}"
        unknown = f"{100 * line.unknown / line.predictions:.1f} %" if line.predictions else ""
        words = (str(line.version), line.state, f"{line.percent:g} %", str(line.devices), failed, unknown, line.reason)
        table.add_row(*map(Text, words))
    return table


def _telemetry(lines: list["TelemetryLine"]) -> Table:
    table = Table(title="what devices report")
    for column in ("version", "group", "devices", "predictions", "unknown", "drift", "median", "90 %", "classes"):
        table.add_column(column)
    for line in lines:
        first = list(line.classes.items())[:_SHOWN_CLASSES]
        classes = ", ".join(f"{plain(label, 30)} {count}" for label, count in first)
        drift = "" if line.drift is None else f"{line.drift:+.3f}"
        times = ("" if bound is None else f"{bound:g} ms" for bound in (line.median_ms, line.p90_ms))
        counts = (str(line.devices), str(line.predictions), f"{line.unknown:.1f} %")
        table.add_row(*map(Text, (str(line.version), line.group, *counts, drift, *times, classes)))
    return table


def _clock(seconds: float) -> str:
    recent = time.time() - seconds < _DAY
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M")
