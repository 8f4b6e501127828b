"""A run submitted to a SuperLink: followed to its end, and resubmitted if it is interrupted."""

import hashlib
import logging
import subprocess
import time
from pathlib import Path

import tomli_w

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed
from fedgraft.deployment.running_server import is_running, submit
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder

_ABANDONED_SECONDS = 10.0
_SERVER_SECONDS = 600.0
_TRIES = 5
"""Interruptions without a reason and without a new round before the run is given up."""
_log = logging.getLogger("fedgraft.deployment")


class SubmittedRun:
    """Submits a run, with the run directory `out`, to a running server; again if server or ServerApp are killed.

    The run then resumes. If a ServerApp submitted earlier is still working on it, its end is awaited.
    """

    def __init__(self, server: ServerFolder, config: RunConfig, out: Path) -> None:
        self._server, self._directory = server, RunDirectory(out)
        key = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:8]
        self._settings = server.path / "app" / f"settings-{key}.toml"
        self._settings.parent.mkdir(exist_ok=True)
        self._settings.write_text(tomli_w.dumps({"out": str(out.absolute()), "settings": config.model_dump_json()}))
        self.log = server.path / "logs" / f"run-{key}.log"
        self._failures, self._round = 0, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._begins = 0
        self._locked_before = False
        self._last_seen = self._server_seen = time.monotonic()
        if not self._directory.is_locked():
            self._submit()

    def supervise(self) -> bool:
        """Whether the run is still going on; resubmits it if it was interrupted.

        Raises:
            RunFailed: it ended before its last round, with the reason, or is interrupted again and again.
        """
        if self._process is not None and self._process.poll() is None and not self._abandoned():
            return True
        self.stop()
        if self._directory.finished:
            return False
        if self._process is not None and (reason := self._reason()) is not None:
            raise RunFailed(f"The run ended before its last round: {reason} (see {self.log}).")
        if self._process is not None:
            self._count_failure()
        self._process = None
        if self._directory.is_locked():
            return True
        if is_running(self._server):
            _log.warning(
                "The run is resubmitted and resumes after round %d", self._directory.checkpoints.newest_round()
            )
            self._submit()
        elif time.monotonic() - self._server_seen > _SERVER_SECONDS:
            raise RunFailed(
                f"The server has not returned; resume the run in {self._directory.path} once it is running."
            )
        return True

    def stop(self) -> None:
        """End the process that follows the run's log."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _submit(self) -> None:
        with self.log.open("ab") as log:
            self._begins = log.tell()
            self._process = submit(self._server, self._settings, log)
        self._locked_before = False
        self._last_seen = self._server_seen = time.monotonic()

    def _abandoned(self) -> bool:
        """Whether the ServerApp was running and is gone: the SuperLink itself notices only after a minute."""
        now = time.monotonic()
        if self._directory.is_locked():
            self._locked_before, self._last_seen = True, now
        return self._locked_before and now - self._last_seen > _ABANDONED_SECONDS

    def _count_failure(self) -> None:
        reached = self._directory.checkpoints.newest_round()
        self._failures = self._failures + 1 if reached <= self._round else 0
        self._round = reached
        if self._failures > _TRIES:
            raise RunFailed(f"The run was interrupted {_TRIES} times without passing round {reached}; see {self.log}.")

    def _reason(self) -> str | None:
        """The reason that the ServerApp gave for ending, or None if it was interrupted."""
        output = self.log.read_bytes()[self._begins :].decode(errors="replace").splitlines()
        errors = [line for line in output if "UserError: " in line or "RunFailed: " in line]
        return errors[-1].split("Error: ", 1)[-1].split("RunFailed: ", 1)[-1] if errors else None
