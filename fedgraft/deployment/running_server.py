"""A server as running processes: for `fedgraft server start` and `fedgraft up`."""

import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import IO

from fedgraft import __version__
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.processes import Process, flower_environment
from fedgraft.runs.server_folder import ServerFolder

_READY_SECONDS = 60.0
_log = logging.getLogger("fedgraft.deployment")


class RunningServer:
    """Flower's SuperLink with TLS, admitted keys only and its state on disk, and the SuperExec that starts its apps."""

    def __init__(self, folder: ServerFolder) -> None:
        self.folder = folder
        environment = flower_environment(folder.path / "flwr")
        secret = folder.write_secret()
        self._superlink = Process(
            "The SuperLink",
            [
                "flower-superlink",
                "--host", "0.0.0.0",
                "--port", str(folder.port),
                "--ssl-ca-certfile", folder.authority,
                "--ssl-certfile", folder.path / "server.pem",
                "--ssl-keyfile", folder.path / "keys" / "server.key",
                "--enable-supernode-auth",
                "--database", folder.path / "superlink.db",
                "--isolation", "process",
                "--superexec-auth-secret-file", secret,
                "--disable-runtime-dependency-installation",
            ],
            environment,
            folder.path / "logs" / "superlink.log",
        )  # fmt: skip
        self._superexec = Process(
            "The server's SuperExec",
            [
                "flower-superexec",
                "--runtime-api-address", f"127.0.0.1:{folder.port}",
                "--root-certificates", folder.authority,
                "--superexec-auth-secret-file", secret,
            ],
            environment,
            folder.path / "logs" / "superexec.log",
        )  # fmt: skip

    @property
    def processes(self) -> list[Process]:
        """The SuperLink and its SuperExec."""
        return [self._superlink, self._superexec]

    def start(self) -> None:
        """Start both and register the keys of the admitted sites.

        Raises:
            UserError: the port is taken.
            RunFailed: the SuperLink does not start.
        """
        if answers(self.folder.port, None):
            raise UserError(f"Port {self.folder.port} is already in use; stop what uses it, or change server.toml.")
        self._start()
        for key in self.folder.admitted():
            register_key(self.folder, key)

    def supervise(self) -> None:
        """Restart what has ended; the SuperLink restores its state from its database.

        Raises:
            RunFailed: the SuperLink does not start again.
        """
        if (status := self._superlink.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self._superlink.name, status)
            self._superexec.kill()
            self._start()
        elif (status := self._superexec.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self._superexec.name, status)
            self._superexec.start()

    def stop(self) -> None:
        """Stop both, and with them what they started."""
        self._superexec.stop()
        self._superlink.stop()

    def _start(self) -> None:
        self._superlink.start()
        self._superlink.wait_until(lambda: answers(self.folder.port, self.folder.authority), _READY_SECONDS)
        self._superexec.start()


def register_key(folder: ServerFolder, key: Path) -> None:
    """Register a site's key with a running SuperLink, unless it knows the key; raises RunFailed if it refuses."""
    command = ["flwr", "supernode", "register", str(key), folder.write_connection(), "--name", key.stem]
    environment = flower_environment(folder.path / "flwr")
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    output = done.stdout + done.stderr
    if done.returncode and "already in use" not in output:
        raise RunFailed(f"The SuperLink does not accept the key {key}: {output.strip()}")


def submit(folder: ServerFolder, settings: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Submit a run to the SuperLink; the process copies the run's log to `log` and ends with the run.

    Args:
        settings: a flat TOML file for `flwr run --run-config`.
    """
    app = folder.write_app(__version__)
    return subprocess.Popen(
        ["flwr", "run", str(app), folder.write_connection(), "--stream", "--run-config", str(settings)],
        env=flower_environment(folder.path / "flwr"),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def is_running(folder: ServerFolder) -> bool:
    """Whether this machine runs the server of a folder."""
    return answers(folder.port, folder.authority)


def answers(port: int, authority: Path | None) -> bool:
    """Whether something listens and, if an authority is given, speaks TLS with a certificate issued by it."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as plain:
            if authority is not None:
                context = ssl.create_default_context(cafile=str(authority))
                context.check_hostname = False
                context.wrap_socket(plain).close()
            return True
    except OSError:
        return False
