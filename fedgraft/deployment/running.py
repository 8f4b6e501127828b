"""A server and a site as running processes: for `fedgraft server start`, `fedgraft site start` and `fedgraft up`."""

import logging
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from fedgraft import __version__
from fedgraft.client.folder import SiteFolder
from fedgraft.deployment.processes import Process, flower_environment
from fedgraft.errors import RunFailed, UserError
from fedgraft.server.folder import ServerFolder

_READY_SECONDS = 60.0
_log = logging.getLogger("fedgraft.deployment")


class RunningServer:
    """Flower's SuperLink with TLS, admitted keys only, and its state on disk."""

    def __init__(self, folder: ServerFolder) -> None:
        self.folder = folder
        self._environment = flower_environment(folder.path / "flwr")
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
                "--disable-runtime-dependency-installation",
            ],
            self._environment,
            folder.path / "logs" / "superlink.log",
        )  # fmt: skip

    @property
    def command(self) -> list[str]:
        """What runs."""
        return self._superlink.command

    def start(self) -> None:
        """Start, and register the keys of the admitted sites.

        Raises:
            UserError: the port is taken.
            RunFailed: the SuperLink does not start.
        """
        if _answers(self.folder.port, None):
            raise UserError(f"Something listens on port {self.folder.port} already; stop it or change server.toml.")
        self._superlink.start()
        self._superlink.wait_until(lambda: _answers(self.folder.port, self.folder.authority), _READY_SECONDS)
        for key in self.folder.admitted():
            register_key(self.folder, key)

    @property
    def ended(self) -> int | None:
        """The SuperLink's exit status, or None while it runs."""
        return self._superlink.ended

    def stop(self) -> None:
        """End the SuperLink and what it started."""
        self._superlink.stop()


def register_key(folder: ServerFolder, key: Path) -> None:
    """Tell a running SuperLink of a site's key; one that it knows already is left as it is.

    Raises:
        RunFailed: the SuperLink refuses.
    """
    command = ["flwr", "supernode", "register", str(key), folder.write_connection(), "--name", key.stem]
    done = _flower(folder, command)
    said = done.stdout + done.stderr
    if done.returncode and "already in use" not in said:
        raise RunFailed(f"The SuperLink does not take the key {key}: {said.strip()}")


def submit(folder: ServerFolder, settings: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Hand a run to the SuperLink; the process copies the run's log to `log` and ends with the run.

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


class RunningSite:
    """A site's resident worker and Flower's SuperNode.

    Args:
        server: HOST:PORT.
        authority: the server's ca.pem.
    """

    def __init__(self, folder: SiteFolder, server: str, authority: Path) -> None:
        self.folder = folder
        if not authority.is_file():
            raise UserError(f"There is no certificate {authority}; the server's folder holds it as ca.pem.")
        self._socket = Path(tempfile.mkdtemp(prefix="fedgraft-")) / "worker"
        address = f"unix:{self._socket}"
        environment = flower_environment(folder.path / "flwr")
        self._worker = Process(
            f"The worker of {folder.settings.name!r}",
            [sys.executable, "-m", "fedgraft.client.worker", folder.path, address],
            {"OMP_NUM_THREADS": "1", **environment},
            folder.logs / "worker.log",
        )
        self._supernode = Process(
            f"The SuperNode of {folder.settings.name!r}",
            [
                "flower-supernode",
                "--superlink", server,
                "--root-certificates", authority,
                "--auth-supernode-private-key", folder.private_key,
                "--host", "127.0.0.1",
                "--port", str(free_port()),
                "--node-config", f'worker="{address}"',
            ],
            environment,
            folder.logs / "supernode.log",
        )  # fmt: skip

    @property
    def commands(self) -> list[list[str]]:
        """What runs."""
        return [self._worker.command, self._supernode.command]

    @property
    def pids(self) -> list[int]:
        """The numbers of the worker and of the SuperNode."""
        return [self._worker.pid, self._supernode.pid]

    def start(self) -> None:
        """Start both; they become ready by themselves."""
        self._worker.start()
        self._supernode.start()

    def tend(self) -> None:
        """Start the worker again where it has ended.

        Raises:
            RunFailed: the SuperNode has ended, which it does where the server does not take its key.
        """
        if (status := self._worker.ended) is not None:
            _log.warning("%s ended with status %d and is started again", self._worker.name, status)
            self._worker.start()
        if (status := self._supernode.ended) is not None:
            raise RunFailed(
                f"{self._supernode.name} ended with status {status}: {self._supernode.last_line()} (see "
                f"{self._supernode.log}). Is the site admitted, and is ca.pem this server's?"
            )

    def stop(self) -> None:
        """End both."""
        self._supernode.stop()
        self._worker.stop()
        shutil.rmtree(self._socket.parent, ignore_errors=True)


def is_running(folder: ServerFolder) -> bool:
    """Whether this machine runs the server of a folder."""
    return _answers(folder.port, folder.authority)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tend_until_ended(running: RunningServer | RunningSite) -> None:
    """Keep a server or a site until it ends, or until Ctrl-C or the service manager's SIGTERM stops it."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(0))
    try:
        while True:
            if isinstance(running, RunningSite):
                running.tend()
            elif (status := running.ended) is not None:
                raise RunFailed(f"The SuperLink ended with status {status}; see {running.folder.path / 'logs'}.")
            time.sleep(1)
    finally:
        running.stop()


def _answers(port: int, authority: Path | None) -> bool:
    """Whether something listens, and speaks TLS with a certificate of the authority where one is given."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as plain:
            if authority is not None:
                context = ssl.create_default_context(cafile=str(authority))
                context.check_hostname = False
                context.wrap_socket(plain).close()
            return True
    except OSError:
        return False


def _flower(folder: ServerFolder, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = flower_environment(folder.path / "flwr")
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
