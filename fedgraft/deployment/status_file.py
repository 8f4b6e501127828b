"""What a running server or site says about itself, in status.json of its folder, for `status` and metrics.

The file is replaced as a whole, when something changes and every ten seconds; times are seconds since the epoch.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedgraft import __version__
from fedgraft.client.worker_status import Task
from fedgraft.core.files import write_text
from fedgraft.deployment.processes import Process
from fedgraft.flower.node_status import NodeStatus

_FILE = "status.json"
_EVERY_SECONDS = 10.0
STALE_SECONDS = 60.0
"""A status that is older comes from a process that hangs or could not write."""


class StatusFile:
    """Writes the status of a folder's processes.

    Attributes:
        obstacle: what keeps a site from its server, a sentence.
        ever_connected: whether the site had reached its server before it was started this time.
    """

    def __init__(self, folder: Path, processes: Mapping[str, Process], server: str, shortcoming: str) -> None:
        self._path, self._processes, self._began = folder / _FILE, processes, time.time()
        self._fixed = {"version": __version__, "server": server, "shortcoming": shortcoming, "began": self._began}
        self.obstacle = ""
        self.ever_connected = bool(read_status(folder).get("ever_connected"))
        self._written: dict[str, Any] = {}
        self._at = 0.0

    def write(self, node: NodeStatus | None = None, task: Task | None = None) -> bool:
        """Write the status if it has changed or is old; whether it was written. A full disk is not an error.

        Args:
            node: what a site's SuperNode says.
            task: what its worker is doing.
        """
        node = node or NodeStatus()
        self.ever_connected = self.ever_connected or node.connected is not None
        content = {
            **self._fixed,
            "obstacle": self.obstacle,
            "ever_connected": self.ever_connected,
            "supernode": asdict(node),
            "task": "" if task is None else task.kind,
            "processes": {
                name: {"pid": process.pid, "restarts": process.starts - 1, "running": process.ended is None}
                for name, process in self._processes.items()
                if process.starts
            },
        }
        if content == self._written and time.monotonic() - self._at < _EVERY_SECONDS:
            return False
        self._written, self._at = content, time.monotonic()
        with suppress(OSError):
            write_text(self._path, json.dumps({**content, "pid": os.getpid(), "written": time.time()}, indent=2) + "\n")
        return True


def read_status(folder: Path) -> dict[str, Any]:
    """The newest status of a folder; empty if there is none that can be read."""
    try:
        return dict(json.loads((folder / _FILE).read_text()))
    except (OSError, ValueError):
        return {}
