"""A site as running processes: for `fedgraft site start` and `fedgraft up`."""

import logging
import tempfile
import time
from pathlib import Path

from fedgraft.client.worker_status import clear_status, last_pulse, running_task
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.connection_check import Obstacle, find_obstacle
from fedgraft.deployment.folder_lock import TEMPORARY_PREFIX, FolderLock
from fedgraft.deployment.processes import Process
from fedgraft.deployment.site_processes import site_processes
from fedgraft.deployment.status_file import StatusFile
from fedgraft.flower.confinement import shortcoming
from fedgraft.flower.node_status import WAITING, read_node_status
from fedgraft.runs.certificates import validity
from fedgraft.runs.key_rotation import adopt_certificate
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_peers import require_peers

_AGAIN_SECONDS, _LONGEST_AGAIN_SECONDS = 5.0, 20.0
"""Between a SuperNode's attempts to connect, at first and at last."""
_RETURN_SECONDS = 150.0
"""A SuperLink considers a vanished SuperNode connected for a minute, and refuses the same key meanwhile."""
_SILENT_SECONDS = 45.0
"""Without a sign of life from a worker, which gives one every two seconds."""
_UNANSWERED_SECONDS = 15.0
"""For which a SuperNode waits for an answer while no process works on one."""
_REJECTED = "terminated gracefully"
_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its ca.pem is not the server's",
    "[code: 2004]": "the server has not admitted the site's key, or still considers the site connected",
    "[code: 2001]": "the server admits only sites with a key",
    _REJECTED: "the server rejects its signature: the key was removed, or the two clocks differ",
}
_LOST_SIGNS = (
    "SSL/TLS handshake error detected", "Giving up reconnection", "Client error '", "Server error '",
    "Heartbeat failed unexpectedly",
)  # fmt: skip
"""A SuperNode that prints one of these has left its loop or will be considered gone, but its process stays."""
_log = logging.getLogger("fedgraft.deployment")


class RunningSite:
    """A site's resident worker, Flower's SuperNode, and the SuperExec that starts a process for every message.

    Args:
        server: HOST:PORT.
        authority: the server's ca.pem.
        worker_module: the module that runs as the worker.

    Raises:
        UserError: the file of peers cannot be used, a certificate does not exist, is not valid or not for the site's
            key, or another process runs the site.
    """

    def __init__(
        self, folder: SiteFolder, server: str, authority: Path, worker_module: str = "fedgraft.client.worker"
    ) -> None:
        self.folder, self._server, self._authority = folder, server, authority
        if not authority.is_file():
            raise UserError(f"The certificate {authority} does not exist; it is ca.pem in the server's folder.")
        if not folder.certificate.is_file():
            raise UserError(
                f"The site's certificate {folder.certificate} does not exist; `fedgraft server admit` issues it, as "
                f"admitted/{folder.settings.name}.pem in the server's folder."
            )
        require_peers(folder)
        self._lock = FolderLock(folder.path)
        adopt_certificate(folder)
        if not (valid := validity(folder.certificate)).valid:
            self._lock.release()
            said = valid.complaint(f"The site's certificate {folder.certificate}")
            raise UserError(f"{said} `fedgraft server renew` on the server issues a new one.")
        self._certificate = _changed(folder.certificate)
        self._sockets = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
        self._lock.add_folder(self._sockets)
        self._node_status = self._sockets / "supernode.json"
        made = site_processes(folder, server, authority, worker_module, self._sockets / "worker", self._node_status)
        self.worker, self.supernode, self.superexec = made
        images = [Path(folder.settings.data)] if folder.settings.data else []
        self._shortcoming = shortcoming([folder.state, folder.cache, folder.private_key, *images])
        self._status = StatusFile(folder.path, self.processes, server, self._shortcoming)
        self._away_since: float | None = None
        self._unanswered_since: float | None = None
        self._again, self._pause = 0.0, _AGAIN_SECONDS
        self._starter_waits = False

    @property
    def processes(self) -> dict[str, Process]:
        """The worker, the SuperNode and its SuperExec, by what they are."""
        return {"worker": self.worker, "supernode": self.supernode, "superexec": self.superexec}

    @property
    def pids(self) -> list[int]:
        """The process IDs of the worker and the SuperNode."""
        return [self.worker.pid, self.supernode.pid]

    def start(self) -> None:
        """Start all processes, without waiting until they are ready.

        Raises:
            RunFailed: the server would not accept the site, or is another one.
        """
        self._check_connection()
        if self._shortcoming:
            _log.warning("%s", self._shortcoming)
        for process in self.processes.values():
            process.start()
        self._record()

    def supervise(self) -> None:
        """Restart what has ended, and what hangs; raises RunFailed if the server does not accept the site."""
        self._end_hung_worker()
        if (status := self.worker.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self.worker.name, status)
            clear_status(self._sockets)
            self.worker.start()
        if not self._starter_waits and (status := self.superexec.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self.superexec.name, status)
            self.superexec.start()
        self._supervise_supernode()
        for process in self.processes.values():
            process.rotate_log()
        self._record()

    def stop(self) -> None:
        """Stop all processes."""
        for process in (self.supernode, self.superexec, self.worker):
            process.stop()
        self._lock.release()

    def _record(self) -> None:
        """Leave on disk what `fedgraft site status` shows, and what a later start has to clean."""
        if self._status.write(read_node_status(self._node_status), running_task(self._sockets)):
            self._lock.record(process.pid for process in self.processes.values() if process.starts)

    def _supervise_supernode(self) -> None:
        if self.supernode.ended is not None:
            self._reconnect(self.supernode.ended)
            return
        if _changed(self.folder.certificate) != self._certificate and running_task(self._sockets) is None:
            self._take_new_certificate()
            return
        news = self.supernode.new_output()
        if any(sign in news for sign in _LOST_SIGNS):
            _log.warning("%s has lost the server and is restarted", self.supernode.name)
            self._restart_supernode()
        elif self._waits_in_vain():
            _log.warning(
                "%s has been waiting for an answer for %.0f seconds, but no process works on one; it is restarted, and "
                "the server sends the message again",
                self.supernode.name, _UNANSWERED_SECONDS,
            )  # fmt: skip
            self._restart_supernode()
        elif "Connection attempt failed" in news:
            self._check_connection()
        elif read_node_status(self._node_status).connected is not None:
            self._away_since, self._status.obstacle, self._pause = None, "", _AGAIN_SECONDS
            if self._starter_waits:
                self.superexec.start()
                self._starter_waits = False

    def _waits_in_vain(self) -> bool:
        """Whether the SuperNode holds a message that nobody is going to answer.

        That happens when the process for the message ends after it has taken the task and before it has fetched the
        message, or when another process uses the task's token: Flower then keeps waiting.
        """
        messages, now = self.superexec.grandchildren(), time.monotonic()  # forked from its zygote
        busy = messages is None or bool(messages) or running_task(self._sockets) is not None
        if busy or read_node_status(self._node_status).doing != WAITING:
            self._unanswered_since = None
        elif self._unanswered_since is None:
            self._unanswered_since = now
        return self._unanswered_since is not None and now - self._unanswered_since > _UNANSWERED_SECONDS

    def _end_hung_worker(self) -> None:
        task, pulse, now = running_task(self._sockets), last_pulse(self._sockets), time.monotonic()
        if pulse is not None and now - pulse > _SILENT_SECONDS:
            _log.warning("%s has given no sign of life for %.0f s and is restarted", self.worker.name, now - pulse)
            self.worker.kill()
        elif task is not None and (taken := now - task.began) > self.folder.settings.task_seconds:
            _log.warning(
                "%s has been handling one message (%s) for %.0f seconds, longer than its site.toml allows "
                "(task_seconds), and is restarted",
                self.worker.name, task.kind, taken,
            )  # fmt: skip
            self.worker.kill()

    def _reconnect(self, status: int) -> None:
        """Restart a SuperNode that has ended; raises RunFailed if waiting cannot help."""
        now, output = time.monotonic(), self.supernode.output()
        reason = next((text for sign, text in _REASONS.items() if sign in output), self.supernode.last_line())
        reason = f"signal {-status}" if status < 0 else reason
        self._record()
        if self._away_since is None:
            self._away_since = now
            if _REJECTED in output and (found := self._found_obstacle()) is not None:
                reason = f"{found.reason[0].lower()}{found.reason[1:].rstrip('.')}"
            self._status.obstacle = f"The SuperNode ended: {reason}."
            _log.warning("%s ended (%s) and is restarted until it connects", self.supernode.name, reason)
        wrong_authority = "CERTIFICATE_VERIFY_FAILED" in output
        if wrong_authority or not self._status.ever_connected or now - self._away_since > _RETURN_SECONDS:
            self._check_connection()
            raise RunFailed(
                f"{self.supernode.name} ended with status {status}: {reason} (see {self.supernode.log}). "
                "Is the site admitted, and is ca.pem this server's?"
            )
        if now >= self._again:
            self._again, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_AGAIN_SECONDS)
            self._start_supernode()

    def _take_new_certificate(self) -> None:
        """Connect anew with another certificate, and a new key if it is for that; keep the old ones if it fits none."""
        self._certificate = _changed(self.folder.certificate)
        try:
            adopt_certificate(self.folder)
            _ = self.folder.tls_key
        except UserError as error:
            _log.warning("%s", error)
            return
        _log.warning("%s connects with a new certificate", self.supernode.name)
        self.supernode.stop()
        self._start_supernode()

    def _check_connection(self) -> None:
        """Say what keeps the site from the server, once; raises RunFailed if it will not pass by itself."""
        found = self._found_obstacle()
        if found is not None and not found.passes:
            self._status.obstacle = found.reason
            self._record()
            raise RunFailed(found.reason)
        reason = "" if found is None else found.reason
        if reason and reason != self._status.obstacle:
            _log.warning("%s The site keeps trying.", reason)
        self._status.obstacle = reason

    def _found_obstacle(self) -> Obstacle | None:
        return find_obstacle(self._server, self._authority, self.folder.certificate, self.folder.tls_key)

    def _restart_supernode(self) -> None:
        self.supernode.stop()  # with a signal, so that it deregisters and the server accepts it again
        self._start_supernode()

    def _start_supernode(self) -> None:
        """Start it again, and its SuperExec once it has connected; processes for messages of before end."""
        self.superexec.kill()
        self._starter_waits, self._unanswered_since = True, None
        self._node_status.unlink(missing_ok=True)
        self.supernode.start()


def _changed(path: Path) -> tuple[int, int]:
    """Differs once a file has changed."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
