"""A site as running processes: for `fedgraft site start` and `fedgraft up`."""

import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path

from fedgraft.client.worker_status import clear_status, last_pulse, running_task
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.processes import Process, flower_environment, free_port
from fedgraft.runs.site_folder import SiteFolder

_AGAIN_SECONDS = 5.0
"""Between two tries of a SuperNode to connect."""
_RETURN_SECONDS = 150.0
"""A SuperLink takes a SuperNode that vanished for present for a minute, and refuses the same key meanwhile."""
_SILENT_SECONDS = 45.0
"""Without a sign of life from a worker that gives one every other second."""
_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its ca.pem is not the server's",
    "[code: 2004]": "the server has not admitted the site's key, or takes the site for connected still",
    "[code: 2001]": "the server admits only sites with a key",
    "terminated gracefully": "the server does not take its signature: the key was removed, or the two clocks differ",
}
_LOST_SIGNS = (
    "SSL/TLS handshake error detected", "Giving up reconnection", "Client error '", "Server error '",
    "Heartbeat failed unexpectedly",
)  # fmt: skip
"""A SuperNode that says so has left its loop, or will be taken for gone, and its process stays all the same."""
_log = logging.getLogger("fedgraft.deployment")


class RunningSite:
    """A site's resident worker, Flower's SuperNode, and the SuperExec that starts a process for every message.

    Args:
        server: HOST:PORT.
        authority: the server's ca.pem.
        worker_module: what runs as the worker.

    Raises:
        UserError: there is no certificate.
    """

    def __init__(
        self, folder: SiteFolder, server: str, authority: Path, worker_module: str = "fedgraft.client.worker"
    ) -> None:
        self.folder = folder
        if not authority.is_file():
            raise UserError(f"There is no certificate {authority}; the server's folder holds it as ca.pem.")
        self._status = Path(tempfile.mkdtemp(prefix="fedgraft-"))
        address = f"unix:{self._status / 'worker'}"
        environment = flower_environment(folder.path / "flwr")
        name, logs, runtime, secret = folder.settings.name, folder.logs, free_port(), folder.write_secret()
        self.worker = Process(
            f"The worker of {name!r}",
            [sys.executable, "-m", worker_module, folder.path, address],
            {"OMP_NUM_THREADS": "1", **environment},
            logs / "worker.log",
        )
        self.supernode = Process(
            f"The SuperNode of {name!r}",
            [
                "flower-supernode",
                "--superlink", server,
                "--root-certificates", authority,
                "--auth-supernode-private-key", folder.private_key,
                "--host", "127.0.0.1",
                "--port", str(runtime),
                "--isolation", "process",
                "--superexec-auth-secret-file", secret,
                "--node-config", f'worker="{address}"',
            ],
            environment,
            logs / "supernode.log",
        )  # fmt: skip
        self.superexec = Process(
            f"The SuperExec of {name!r}",
            [
                "flower-superexec",
                "--insecure",
                "--runtime-api-address", f"127.0.0.1:{runtime}",
                "--superexec-auth-secret-file", secret,
            ],
            environment,
            logs / "superexec.log",
        )  # fmt: skip
        self._away_since: float | None = None
        self._again = 0.0

    @property
    def processes(self) -> list[Process]:
        """What runs: the worker, the SuperNode, its SuperExec."""
        return [self.worker, self.supernode, self.superexec]

    @property
    def pids(self) -> list[int]:
        """The numbers of the worker and of the SuperNode."""
        return [self.worker.pid, self.supernode.pid]

    def start(self) -> None:
        """Start all; they become ready by themselves."""
        for process in self.processes:
            process.start()

    def tend(self) -> None:
        """Start again what has ended, and a worker that hangs.

        Raises:
            RunFailed: the server does not take the site.
        """
        self._end_hung_worker()
        if (status := self.worker.ended) is not None:
            _log.warning("%s ended with status %d and is started again", self.worker.name, status)
            clear_status(self._status)
            self.worker.start()
        if (status := self.superexec.ended) is not None:
            _log.warning("%s ended with status %d and is started again", self.superexec.name, status)
            self.superexec.start()
        if self.supernode.ended is not None:
            self._reconnect(self.supernode.ended)
            return
        news = self.supernode.news()
        if any(sign in news for sign in _LOST_SIGNS):
            _log.warning("%s has lost the server and is started again", self.supernode.name)
            self.supernode.stop()  # with a signal, so that it deregisters and the server takes it again
            self._start_supernode()
        elif "SuperNode ID:" in news:
            self._away_since = None

    def stop(self) -> None:
        """End all."""
        for process in (self.supernode, self.superexec, self.worker):
            process.stop()
        shutil.rmtree(self._status, ignore_errors=True)

    def _end_hung_worker(self) -> None:
        task, pulse, now = running_task(self._status), last_pulse(self._status), time.monotonic()
        if pulse is not None and now - pulse > _SILENT_SECONDS:
            _log.warning("%s gives no sign of life for %.0f s and is started again", self.worker.name, now - pulse)
            self.worker.kill()
        elif task is not None and (taken := now - task.began) > self.folder.settings.task_seconds:
            _log.warning(
                "%s has been handling one message (%s) for %.0f seconds, longer than its site.toml allows "
                "(task_seconds), and is started again",
                self.worker.name, task.kind, taken,
            )  # fmt: skip
            self.worker.kill()

    def _reconnect(self, status: int) -> None:
        """Start a SuperNode again that has ended.

        Raises:
            RunFailed: it cannot be a matter of time.
        """
        now = time.monotonic()
        said = self.supernode.said()
        reason = next((text for sign, text in _REASONS.items() if sign in said), self.supernode.last_line())
        reason = f"signal {-status}" if status < 0 else reason
        been_connected = b"SuperNode ID:" in self.supernode.log.read_bytes()
        if self._away_since is None:
            self._away_since = now
            _log.warning("%s ended (%s) and is started again until it connects", self.supernode.name, reason)
        wrong_authority = "CERTIFICATE_VERIFY_FAILED" in said
        if wrong_authority or not been_connected or now - self._away_since > _RETURN_SECONDS:
            raise RunFailed(
                f"{self.supernode.name} ended with status {status}: {reason} (see {self.supernode.log}). "
                "Is the site admitted, and is ca.pem this server's?"
            )
        if now >= self._again:
            self._again = now + _AGAIN_SECONDS
            self._start_supernode()

    def _start_supernode(self) -> None:
        self.superexec.kill()  # and with it what it started for messages that nobody waits for any more
        self.supernode.start()
        self.superexec.start()
