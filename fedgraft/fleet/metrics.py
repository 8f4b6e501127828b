"""A fleet's figures for Prometheus: devices by version and health, rollouts, telemetry; nothing of a single device."""

from collections import Counter
from collections.abc import Callable

from fedgraft.deployment.prometheus import Figures, serve_figures
from fedgraft.fleet.database import now
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.status import SMALLEST_COUNT, fleet_status


def serve_fleet_metrics(folder: FleetFolder, port: int) -> None:
    """Serve them on loopback; raises UserError if prometheus-client is not installed, or the port is taken."""
    serve_figures(fleet_figures(folder), port)


def fleet_figures(folder: FleetFolder) -> Callable[[], Figures]:
    """What to collect at each request."""

    def collect() -> Figures:
        status = fleet_status(folder, SMALLEST_COUNT)
        devices = Counter((line.channel, str(line.version), line.health) for line in status.devices)
        channels = status.channels
        newest = [(channel.name, channel.rollouts[-1]) for channel in channels if channel.rollouts]
        told = [({"version": str(line.version), "group": line.group}, line) for line in status.telemetry]
        return {
            ("fleet_devices", "devices by channel, version and health"): [
                ({"channel": channel, "version": version, "health": health}, count)
                for (channel, version, health), count in devices.items()
            ],
            ("fleet_channel_seconds_left", "until devices want a newer document of a channel"): [
                ({"channel": channel.name}, channel.expires - now()) for channel in channels
            ],
            ("fleet_rollout_percent", "of a channel's devices that its newest release is for"): [
                ({"channel": name, "version": str(line.version)}, line.percent) for name, line in newest
            ],
            ("fleet_rollout_halted", "1 if the newest release of a channel is halted"): [
                ({"channel": name}, line.state == "halted") for name, line in newest
            ],
            ("fleet_predictions", "predictions by version and group"): [
                (labels, line.predictions) for labels, line in told
            ],
            ("fleet_unknown_percent", "of predictions that were called unknown"): [
                (labels, line.unknown) for labels, line in told
            ],
            ("fleet_confidence_drift", "mean confidence of late minus that of the first predictions"): [
                (labels, line.drift) for labels, line in told if line.drift is not None
            ],
            ("fleet_problems", "things that need attention, as `fedgraft fleet status` lists them"): [
                ({}, len(status.problems))
            ],
        }

    return collect
