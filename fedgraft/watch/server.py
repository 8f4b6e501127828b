"""A server's folder as the page shows it: the runs that were submitted, and what the server knows of each site."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedgraft.core.plain_text import NAME_LENGTH, plain
from fedgraft.deployment.folder_lock import running_pid
from fedgraft.deployment.server_status import ServerStatus, server_status
from fedgraft.deployment.status_file import read_status
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.watch.source import Runs

_EVERY_SECONDS = 5.0


class Server(Runs):
    """A server's folder.

    Args:
        sites: a folder of sites that run on this machine as well, if there is one, for what their processes take.

    Raises:
        UserError: it is not a server's folder.
    """

    def __init__(self, path: Path, sites: Path | None = None) -> None:
        self._folder = ServerFolder.open(path)
        self._sites_here, self._workers = sites, dict[int, str]()
        super().__init__(path, "server", self._submitted)
        self._status: ServerStatus | None = None
        self._looked = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Look at the runs, and every few seconds at the certificates and contacts of the sites."""
        super().refresh()
        if time.monotonic() - self._looked >= _EVERY_SECONDS or self._status is None:
            before, self._status = self._status, server_status(self._folder)
            self._workers = dict(_processes_of_sites(self._sites_here))
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
        """The processes of the server, and of the sites on this machine, as well."""
        own = self._status.folder.processes if self._status is not None else []
        return {process.pid: process.name for process in own if process.running} | self._workers | super().roots()

    def _submitted(self) -> Mapping[str, Path]:
        return {run.out.name: run.out for run in self._folder.queue.runs()}


def _processes_of_sites(folder: Path | None) -> Iterable[tuple[int, str]]:
    """The processes of the sites in a folder that run at present, by number; what each is called."""
    for site in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else ():
        said = read_status(site)
        if said.get("pid") is None or said["pid"] != running_pid(site):
            continue
        for name, process in said.get("processes", {}).items():
            if process.get("running"):
                yield int(process["pid"]), plain(f"{name} of {site.name}", NAME_LENGTH)
