"""What comes back of a fleet, as TOML: whether to federate again and why, and the telemetry that says so."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import tomli_w

from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.status import TelemetryLine, fleet_status


@dataclass(frozen=True)
class Triggers:
    """When the next federation is due.

    Attributes:
        unknown: percent of predictions called unknown.
        drift: by which the mean confidence has fallen.
    """

    unknown: float = 20.0
    drift: float = 0.1


def fleet_report(folder: FleetFolder, triggers: Triggers, smallest: int) -> dict[str, Any]:
    """The report: `federate`, `reasons`, and a table for each version and group of at least `smallest` devices."""
    status = fleet_status(folder, smallest)
    reasons = [reason for line in _newest(status.telemetry) for reason in _reasons(line, triggers)]
    return {
        "fleet": status.fleet,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "smallest_group": smallest,
        "federate": bool(reasons),
        "reasons": reasons,
        "telemetry": [
            {key: value for key, value in asdict(line).items() if value is not None} for line in status.telemetry
        ],
    }


def as_toml(report: dict[str, Any]) -> str:
    """The report as a file."""
    return tomli_w.dumps(report)


def _newest(lines: list[TelemetryLine]) -> list[TelemetryLine]:
    """The line of each group's newest version."""
    newest: dict[str, TelemetryLine] = {}
    for line in lines:
        if line.group not in newest or line.version > newest[line.group].version:
            newest[line.group] = line
    return list(newest.values())


def _reasons(line: TelemetryLine, triggers: Triggers) -> list[str]:
    where = f"group {line.group!r}, version {line.version}"
    said = []
    if line.unknown > triggers.unknown:
        said.append(f"{where}: {line.unknown:.1f} % of the predictions are unknown, more than {triggers.unknown:g} %")
    if line.drift is not None and line.drift < -triggers.drift:
        said.append(f"{where}: the mean confidence fell by {-line.drift:.3f}, more than {triggers.drift:g}")
    return said
