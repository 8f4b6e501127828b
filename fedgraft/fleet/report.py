"""What comes back of a fleet, as TOML: whether to federate again and why, and the telemetry that says so."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import tomli_w

from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.status import fleet_status
from fedgraft.runs.retrain_rule import RetrainRule


def fleet_report(folder: FleetFolder, rule: RetrainRule, smallest: int) -> dict[str, Any]:
    """`federate`, `reasons`, and a table for each version and group of at least `smallest` devices.

    `fedgraft.runs.fleet_report` reads it at a site.
    """
    status = fleet_status(folder, smallest)
    reasons = rule.reasons(status.telemetry)
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
