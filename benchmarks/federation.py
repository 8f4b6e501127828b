"""A federation on loopback whose sites come and go: server, sites behind proxies, generated images.

ROOT/images/NAME/   each site's images
ROOT/server/        the server's folder
ROOT/sites/NAME/    the sites' folders
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.faulty_worker import WorkerPlan
from benchmarks.loopback import coloured_images
from benchmarks.proxy import Proxy
from fedgraft.core.errors import RunFailed
from fedgraft.core.files import free_port, write_bytes
from fedgraft.deployment.local import admit_here
from fedgraft.deployment.registration import register_key, unregister_keys
from fedgraft.deployment.running_server import RunningServer
from fedgraft.deployment.running_site import RunningSite
from fedgraft.runs.key_rotation import new_key_pair
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

_TASK_SECONDS, _PATIENCE_SECONDS = 60.0, 90.0


@dataclass
class Member:
    """A site: its folder, the proxy between it and the server, and its processes while they run."""

    folder: SiteFolder
    proxy: Proxy
    running: RunningSite | None = None
    revoked: bool = False


class Federation:
    """A server and its sites; a context manager that stops them all.

    Args:
        names: of all sites that ever take part; none is admitted or runs at first.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.images = root / "images"
        self.folder = ServerFolder.create(root / "server", ["127.0.0.1"], free_port())
        self.server = RunningServer(self.folder)
        self.members: dict[str, Member] = {}
        (root / "sites").mkdir()
        for seed, name in enumerate(names):
            coloured_images(self.images / name, 10, seed)
            folder = SiteFolder.create(root / "sites" / name, name, self.images / name)
            own = replace(folder, settings=folder.settings.model_copy(update={"task_seconds": _TASK_SECONDS}))
            self.members[name] = Member(own, Proxy(self.folder.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for member in self.members.values():
            self._stop(member)
            member.proxy.__exit__()
        self.server.stop()

    def admit(self, names: Sequence[str]) -> None:
        """Admit sites before the server starts."""
        for name in names:
            admit_here(self.folder, self.members[name].folder)

    def plan(self, plans: dict[str, WorkerPlan]) -> None:
        """Give each site's worker its plan."""
        for name, plan in plans.items():
            plan.write(self.members[name].folder.path)

    def supervise(self) -> None:
        """Look after all processes; those of a revoked site end when they are told so.

        Raises:
            RunFailed: the server, or a site that takes part, gives up.
        """
        self.server.supervise()
        for member in self.members.values():
            if member.running is not None:
                try:
                    member.running.supervise()
                except RunFailed:
                    if not member.revoked:
                        raise
                    self._stop(member)

    def join(self, name: str) -> None:
        """Admit a site while the server runs, and start it."""
        member = self.members[name]
        admit_here(self.folder, member.folder)
        self._until_done(lambda: register_key(self.folder, self.folder.path / "admitted" / f"{name}.pub"))
        self.start(name)

    def start(self, name: str) -> None:
        """Start a site that is admitted."""
        member = self.members[name]
        address = f"127.0.0.1:{member.proxy.port}"
        member.running = RunningSite(member.folder, address, self.folder.authority, "benchmarks.faulty_worker")
        member.running.start()

    def stop(self, name: str) -> None:
        """Stop a site as its operator does."""
        self._stop(self.members[name])

    def revoke(self, name: str) -> None:
        """Take a site's admission back."""
        self.members[name].revoked = True
        keys = self.folder.revoke(name)
        self._until_done(lambda: unregister_keys(self.folder, keys))

    def restart_server(self) -> None:
        """Stop the server as its operator does, and start it again."""
        self.server.stop()
        self.server = RunningServer(self.folder)
        self.server.start()

    def renew_certificate(self, name: str) -> None:
        """Give a site a new certificate for its key."""
        self.folder.renew(name)
        self._carry_certificate(name)

    def rotate_key(self, name: str) -> None:
        """Give a site a new key and a certificate for it."""
        self.folder.admit(new_key_pair(self.members[name].folder), replace=True)
        self._until_done(lambda: register_key(self.folder, self.folder.path / "admitted" / f"{name}.pub"))
        self._carry_certificate(name)

    def _carry_certificate(self, name: str) -> None:
        write_bytes(self.members[name].folder.certificate, self.folder.certificate_of(name).read_bytes())

    def _until_done(self, action: Callable[[], None]) -> None:
        """Try again while the SuperLink is being restarted."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                action()
                return
            except RunFailed:
                if time.monotonic() > deadline:
                    raise
                self.server.supervise()
                time.sleep(0.2)

    def _stop(self, member: Member) -> None:
        if member.running is not None:
            member.running.stop()
            member.running = None

    def server_apps(self) -> list[int]:
        """The server's processes of runs."""
        group, found = self.server.processes["superexec"].pid, []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes().decode(errors="replace")
                if "serverapp" in command and os.getpgid(int(path.name)) == group:
                    found.append(int(path.name))
            except OSError:
                continue
        return found
