"""A fleet's folder as the page shows it: channels and rollouts, telemetry by version and group, devices."""

import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedgraft.core.plain_text import NAME_LENGTH, plain
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.status import FleetStatus, fleet_status
from fedgraft.watch.source import FORMAT

_EVERY_SECONDS, _SHOWN_DEVICES, _SHOWN_CLASSES = 3.0, 1000, 8


class Fleet:
    """A fleet's folder; raises UserError if it is not a fleet's."""

    load_revision = 0

    def __init__(self, path: Path) -> None:
        self._folder = FleetFolder.open(path)
        self.name = plain(path.absolute().name, NAME_LENGTH)
        self.revision, self._looked = 0, 0.0
        self._status: FleetStatus | None = None
        self.refresh()

    def refresh(self) -> None:
        """Ask the registry's database, every few seconds."""
        if self._status is None or time.monotonic() - self._looked >= _EVERY_SECONDS:
            before, self._status = self._status, fleet_status(self._folder)
            self._looked = time.monotonic()
            self.revision += self._status != before

    def knows(self, run: str | None) -> bool:
        """A fleet has no runs."""
        return run is None

    def view(self, run: str | None = None, scope: str | None = None) -> bytes:
        """The fleet as JSON; docs/watch.md says what the keys hold."""
        assert self._status is not None
        status = self._status
        content = {
            "format": FORMAT,
            "kind": "fleet",
            "name": self.name,
            "state": "running" if status.pid is not None else "stopped",
            "problems": [plain(problem) for problem in status.problems],
            "fleet": _fleet(status),
        }
        return json.dumps(_plain(content), allow_nan=False).encode()

    def load(self) -> bytes:
        """Nothing: a fleet's devices are elsewhere."""
        return b"null"


def _fleet(status: FleetStatus) -> dict[str, Any]:
    worst_first = sorted(status.devices, key=lambda device: (device.health == "ok", device.id))
    by_version: Counter[tuple[int, str]] = Counter(
        (device.version or 0, device.group) for device in status.devices if device.health != "revoked"
    )
    return {
        "id": status.fleet[:12],
        "port": status.port,
        "devices": len(status.devices),
        "health": dict(Counter(device.health for device in status.devices)),
        "versions": [
            {"version": version or None, "group": group, "devices": count}
            for (version, group), count in sorted(by_version.items())
        ],
        "channels": [asdict(channel) for channel in status.channels],
        "telemetry": [
            {**asdict(line), "classes": dict(list(line.classes.items())[:_SHOWN_CLASSES])} for line in status.telemetry
        ],
        "lines": [
            {
                key: getattr(device, key)
                for key in ("id", "group", "channel", "version", "health", "last_seen", "proving", "problem")
            }
            for device in worst_first[:_SHOWN_DEVICES]
        ],
    }


def _plain(content: Any) -> Any:
    """The same with every text made fit for a page: devices and bundles wrote most of them."""
    if isinstance(content, str):
        return plain(content) if content else ""
    if isinstance(content, dict):
        return {_plain(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    return content
