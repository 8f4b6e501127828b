"""A server's folder as the page shows it: the runs that were submitted, and what the server knows of each site."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgraft.deployment.server_status import ServerStatus, server_status
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.watch.source import Runs

_EVERY_SECONDS = 5.0


class Server(Runs):
    """A server's folder; raises UserError if it is not a server's."""

    def __init__(self, path: Path) -> None:
        self._folder = ServerFolder.open(path)
        super().__init__(path, "server", self._submitted)
        self._status: ServerStatus | None = None
        self._looked = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Look at the runs, and every few seconds at the certificates and contacts of the sites."""
        super().refresh()
        if time.monotonic() - self._looked >= _EVERY_SECONDS or self._status is None:
            before, self._status = self._status, server_status(self._folder)
            self._looked = time.monotonic()
            self.revision += self._status != before

    def head(self) -> dict[str, Any]:
        """With the server's own state and problems."""
        head, status = super().head(), self._status
        assert status is not None
        served = {
            "port": status.port,
            "running": status.folder.pid is not None,
            "version": status.folder.version,
            "disk_free_bytes": status.folder.disk_free_bytes,
        }
        return {**head, "server": served, "problems": [*status.folder.problems, *head["problems"]]}

    def known_sites(self) -> dict[str, dict[str, Any]]:
        """Whether each site is at work, and when it was last heard of."""
        lines = self._status.sites if self._status is not None else []
        return {
            line.name: {
                "state": line.state,
                "remark": line.reason or None,
                "seen": line.seen,
                "certificate_days": line.certificate_days,
            }
            for line in lines
        }

    def roots(self) -> dict[int, str]:
        """The server's processes as well."""
        own = self._status.folder.processes if self._status is not None else []
        return {process.pid: process.name for process in own if process.running} | super().roots()

    def _submitted(self) -> Mapping[str, Path]:
        return {run.out.name: run.out for run in self._folder.queue.runs()}
