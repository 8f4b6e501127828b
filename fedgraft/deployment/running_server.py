"""A server as running processes: for `fedgraft server start` and `fedgraft up`."""

import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.files import cache_root
from fedgraft.deployment.folder_lock import FolderLock
from fedgraft.deployment.processes import (
    Process,
    app_environment,
    clean_home,
    end_with_parent,
    flower_environment,
    guarded,
)
from fedgraft.deployment.registration import reconcile, retire_replaced_keys
from fedgraft.deployment.status_file import StatusFile
from fedgraft.flower.confinement import shortcoming
from fedgraft.flower.guarded import GATEWAY_FILE, OPERATOR_FILE, SUBMITTED
from fedgraft.runs.certificates import certificate_serial, validity
from fedgraft.runs.server_folder import ServerFolder

_READY_SECONDS, _LOOK_SECONDS = 60.0, 5.0
_log = logging.getLogger("fedgraft.deployment")


class RunningServer:
    """Flower's SuperLink on loopback with its state on disk, the SuperExec that starts its apps, and the gateway.

    Raises:
        UserError: another process runs the server.
    """

    def __init__(self, folder: ServerFolder) -> None:
        self.folder = folder
        self._lock = FolderLock(folder.path)
        home = clean_home(folder.path / "flwr")
        environment = flower_environment(home)
        secret = folder.write_secret()
        self._superlink = Process(
            "The SuperLink",
            [
                *guarded("flower-superlink"),
                "--host", "127.0.0.1",
                "--port", str(folder.superlink_port),
                "--ssl-ca-certfile", folder.authority,
                "--ssl-certfile", folder.certificate,
                "--ssl-keyfile", folder.private_key,
                "--enable-supernode-auth",
                "--database", folder.path / "superlink.db",
                "--isolation", "process",
                "--superexec-auth-secret-file", secret,
                "--disable-runtime-dependency-installation",
            ],
            {**environment, **_secrets(folder)},
            folder.path / "logs" / "superlink.log",
        )  # fmt: skip
        self._superexec = Process(
            "The server's SuperExec",
            [
                *guarded("flower-superexec"),
                "--runtime-api-address", f"127.0.0.1:{folder.superlink_port}",
                "--root-certificates", folder.authority,
                "--superexec-auth-secret-file", secret,
            ],
            {**environment, **_app_environment(folder, home)},
            folder.path / "logs" / "superexec.log",
        )  # fmt: skip
        self._gateway = Process(
            "The gateway",
            [sys.executable, "-m", "fedgraft.deployment.gateway", folder.path],
            environment,
            folder.path / "logs" / "gateway.log",
        )
        self._certificate, self._look_again = 0, 0.0
        self._shortcoming = shortcoming([folder.path / "keys"])
        self._status = StatusFile(folder.path, self.processes, "", self._shortcoming)

    @property
    def processes(self) -> dict[str, Process]:
        """The SuperLink, its SuperExec and the gateway, by what they are."""
        return {"superlink": self._superlink, "superexec": self._superexec, "gateway": self._gateway}

    def start(self) -> None:
        """Start all, and let the SuperLink admit the folder's keys and no others.

        Raises:
            UserError: the port is taken, or the server's certificate is not valid.
            RunFailed: the SuperLink does not start.
        """
        if answers(self.folder.port, None):
            raise UserError(f"Port {self.folder.port} is already in use; stop what uses it, or change server.toml.")
        if not (valid := validity(self.folder.certificate)).valid:
            said = valid.complaint(f"The server's certificate {self.folder.certificate}")
            raise UserError(f"{said} `fedgraft server rotate {self.folder.path}` issues a new one.")
        for complaint in self.folder.complaints():
            _log.warning("%s", complaint)
        self.folder.write_revocation_list()
        if self._shortcoming:
            _log.warning("%s", self._shortcoming)
        self._start()
        self._report(reconcile(self.folder))
        self._gateway.start()
        self._gateway.wait_until(lambda: answers(self.folder.port, self.folder.authority), _READY_SECONDS)
        self._record()

    def supervise(self) -> None:
        """Restart what has ended, retire replaced keys, and renew the revocation list.

        The SuperLink restores its state from its database.

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
        if (status := self._gateway.ended) is not None:
            _log.warning("%s ended with status %d and is restarted", self._gateway.name, status)
            self._gateway.start()
        if (now := time.monotonic()) > self._look_again:
            self._look_again = now + _LOOK_SECONDS
            with suppress(RunFailed):  # the SuperLink is about to be restarted
                self._report(retire_replaced_keys(self.folder))
            self._take_new_certificate()
            with suppress(OSError):  # a full disk; it is tried again, with years left
                self.folder.renew_revocation_list()
        for process in self.processes.values():
            process.rotate_log()
        self._record()

    def stop(self) -> None:
        """Stop all, and with them what they started."""
        self._gateway.stop()
        self._superexec.stop()
        self._superlink.stop()
        self._lock.release()

    def _record(self) -> None:
        """Leave on disk what `fedgraft server status` shows, and what a later start has to clean."""
        if self._status.write():
            self._lock.record(process.pid for process in self.processes.values() if process.starts)

    def _report(self, lines: list[str]) -> None:
        for line in lines:
            _log.warning("%s", line)

    def _take_new_certificate(self) -> None:
        """Start the SuperLink again with a new certificate while no run needs it; the gateway takes it by itself."""
        if self._certificate != certificate_serial(self.folder.certificate):
            if any(run.directory.is_locked() for run in self.folder.queue.runs()):
                return
            _log.warning("%s takes the server's new certificate", self._superlink.name)
            self._superexec.kill()
            self._superlink.stop()
            self._start()

    def _start(self) -> None:
        self._certificate = certificate_serial(self.folder.certificate)
        self._superlink.start()
        self._superlink.wait_until(lambda: answers(self.folder.superlink_port, self.folder.authority), _READY_SECONDS)
        self._superexec.start()


def _app_environment(folder: ServerFolder, home: Path) -> dict[str, str]:
    """What a ServerApp may read and change; run directories are known when a run is submitted."""
    readable = [
        folder.authority,
        folder.path / "app",
        Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"),
    ]
    writable = [cache_root(), Path(os.environ.get("MPLCONFIGDIR") or Path.home() / ".cache" / "matplotlib")]
    return {**app_environment(folder.app, home, readable, writable), SUBMITTED: str((folder.path / "app").absolute())}


def _secrets(folder: ServerFolder) -> dict[str, str]:
    return {OPERATOR_FILE: str(folder.operator_secret), GATEWAY_FILE: str(folder.gateway_secret)}


def _operator(folder: ServerFolder) -> dict[str, str]:
    """The environment of Flower's commands as the server's operator gives them."""
    return {**flower_environment(folder.path / "flwr"), **_secrets(folder)}


def submit(folder: ServerFolder, settings: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Submit a run to the SuperLink; the process copies the run's log to `log` and ends with the run, or this process.

    A SuperLink that is asked to end waits for whoever reads a log, so a process that stayed would keep it.

    Args:
        settings: a flat TOML file for `flwr run --run-config`.
    """
    words = ["run", str(folder.app), folder.write_connection(), "--stream", "--run-config", str(settings)]
    return subprocess.Popen(
        guarded("flwr") + words,
        env=_operator(folder),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        preexec_fn=end_with_parent,
    )


def is_running(folder: ServerFolder) -> bool:
    """Whether this machine runs the server of a folder."""
    return answers(folder.superlink_port, folder.authority)


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
