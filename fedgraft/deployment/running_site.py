"""A site as running processes: for `fedgraft site start` and `fedgraft up`."""

import logging
import shutil
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path

from fedgraft.client.worker_status import clear_status, last_pulse, running_task
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.files import free_port
from fedgraft.deployment.processes import Process, flower_environment, guarded
from fedgraft.flower.guarded import APP_SHA256, CERTIFICATE, PRIVATE_KEY, app_sha256
from fedgraft.runs.certificates import validity
from fedgraft.runs.key_rotation import adopt_certificate
from fedgraft.runs.site_folder import SiteFolder

_AGAIN_SECONDS = 5.0
"""Between a SuperNode's attempts to connect."""
_RETURN_SECONDS = 150.0
"""A SuperLink considers a vanished SuperNode connected for a minute, and refuses the same key meanwhile."""
_ANSWER_SECONDS = 10.0
_SILENT_SECONDS = 45.0
"""Without a sign of life from a worker, which gives one every two seconds."""
_REASONS = {
    "CERTIFICATE_VERIFY_FAILED": "its ca.pem is not the server's",
    "[code: 2004]": "the server has not admitted the site's key, or still considers the site connected",
    "[code: 2001]": "the server admits only sites with a key",
    "terminated gracefully": "the server rejects its signature: the key was removed, or the two clocks differ",
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
        UserError: the certificate does not exist, is not valid, or is not for the site's key.
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
        adopt_certificate(folder)
        if not (valid := validity(folder.certificate)).valid:
            said = valid.complaint(f"The site's certificate {folder.certificate}")
            raise UserError(f"{said} `fedgraft server renew` on the server issues a new one.")
        self._certificate = _changed(folder.certificate)
        self._status = Path(tempfile.mkdtemp(prefix="fedgraft-"))
        address = f"unix:{self._status / 'worker'}"
        environment = flower_environment(folder.path / "flwr")
        identity = {CERTIFICATE: str(folder.certificate), PRIVATE_KEY: str(folder.tls_key)}
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
                *guarded("flower-supernode"),
                "--superlink", server,
                "--root-certificates", authority,
                "--auth-supernode-private-key", folder.private_key,
                "--host", "127.0.0.1",
                "--port", str(runtime),
                "--isolation", "process",
                "--superexec-auth-secret-file", secret,
                "--node-config", f'worker="{address}"',
            ],
            {**environment, **identity},
            logs / "supernode.log",
        )  # fmt: skip
        self.superexec = Process(
            f"The SuperExec of {name!r}",
            [
                *guarded("flower-superexec"),
                "--insecure",
                "--runtime-api-address", f"127.0.0.1:{runtime}",
                "--superexec-auth-secret-file", secret,
            ],
            {**environment, APP_SHA256: app_sha256(folder.app)},
            logs / "superexec.log",
        )  # fmt: skip
        self._away_since: float | None = None
        self._again = 0.0

    @property
    def processes(self) -> list[Process]:
        """The worker, the SuperNode and its SuperExec."""
        return [self.worker, self.supernode, self.superexec]

    @property
    def pids(self) -> list[int]:
        """The process IDs of the worker and the SuperNode."""
        return [self.worker.pid, self.supernode.pid]

    def start(self) -> None:
        """Start all processes, without waiting until they are ready."""
        for process in self.processes:
            process.start()

    def supervise(self) -> None:
        """Restart what has ended, and a worker that hangs; raises RunFailed if the server does not accept the site."""
        self._end_hung_worker()
        if (status := self.worker.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self.worker.name, status)
            clear_status(self._status)
            self.worker.start()
        if (status := self.superexec.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self.superexec.name, status)
            self.superexec.start()
        if self.supernode.ended is not None:
            self._reconnect(self.supernode.ended)
            return
        if _changed(self.folder.certificate) != self._certificate and running_task(self._status) is None:
            self._take_new_certificate()
            return
        news = self.supernode.new_output()
        if any(sign in news for sign in _LOST_SIGNS):
            _log.warning("%s has lost the server and is restarted", self.supernode.name)
            self.supernode.stop()  # with a signal, so that it deregisters and the server accepts it again
            self._start_supernode()
        elif "SuperNode ID:" in news:
            self._away_since = None
        elif "Connection attempt failed" in news:
            self._check_certificate()

    def stop(self) -> None:
        """Stop all processes."""
        for process in (self.supernode, self.superexec, self.worker):
            process.stop()
        shutil.rmtree(self._status, ignore_errors=True)

    def _end_hung_worker(self) -> None:
        task, pulse, now = running_task(self._status), last_pulse(self._status), time.monotonic()
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
        been_connected = b"SuperNode ID:" in self.supernode.log.read_bytes()
        if self._away_since is None:
            self._away_since = now
            _log.warning("%s ended (%s) and is restarted until it connects", self.supernode.name, reason)
        wrong_authority = "CERTIFICATE_VERIFY_FAILED" in output
        if wrong_authority or not been_connected or now - self._away_since > _RETURN_SECONDS:
            raise RunFailed(
                f"{self.supernode.name} ended with status {status}: {reason} (see {self.supernode.log}). "
                "Is the site admitted, and is ca.pem this server's?"
            )
        if now >= self._again:
            self._again = now + _AGAIN_SECONDS
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

    def _check_certificate(self) -> None:
        """Raise RunFailed if the server closes a connection without an answer once it has seen the certificate."""
        context = ssl.create_default_context(cafile=str(self._authority))
        context.load_cert_chain(self.folder.certificate, self.folder.tls_key)
        host, _, port = self._server.rpartition(":")
        try:
            plain = socket.create_connection((host, int(port)), _ANSWER_SECONDS)
            connection = context.wrap_socket(plain, server_hostname=host)
        except OSError:
            return  # the server is down, or its own certificate is wrong, which the SuperNode says
        with connection:
            try:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                refused = not connection.recv(1)
            except (ssl.SSLError, ConnectionError):
                refused = True
            except OSError:
                refused = False
        if refused:
            raise RunFailed(
                f"The server does not accept the certificate {self.folder.certificate}: it was issued by another "
                "server, or has been revoked."
            )

    def _start_supernode(self) -> None:
        self.superexec.kill()  # and with it processes for messages that nobody waits for any more
        self.supernode.start()
        self.superexec.start()


def _changed(path: Path) -> tuple[int, int]:
    """Differs once a file has changed."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
