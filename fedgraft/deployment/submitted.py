"""A run submitted to a SuperLink: queued, followed to its end, and resubmitted if it is interrupted."""

import json
import logging
import secrets
import subprocess
import time
from pathlib import Path

import tomli_w

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed
from fedgraft.core.files import write_text
from fedgraft.deployment.running_server import is_running, submit
from fedgraft.flower.run_state import Outcome, RunState, Wanted
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.run_queue import run_key
from fedgraft.runs.server_folder import ServerFolder

_ABANDONED_SECONDS = 10.0
_SERVER_SECONDS = 600.0
_TRIES = 5
"""Interruptions without a reason and without a new round before the run is given up."""
_log = logging.getLogger("fedgraft.deployment")


class SubmittedRun:
    """Submits a run, with the run directory `out`, to a running server; again if server or ServerApp are killed.

    It waits for its turn while the server has other runs, and while its operator wants it to pause. If a ServerApp
    submitted earlier is still working on it, its end is awaited.

    Attributes:
        waits_for: why nothing happens at present, as a sentence; "" while the run is at work.

    Raises:
        UserError: another command follows the run already.
    """

    def __init__(self, server: ServerFolder, config: RunConfig, out: Path) -> None:
        self._server, self._config, self._out = server, config, out.absolute()
        self._directory, self._state = RunDirectory(out), RunState(out)
        self._settings = server.path / "app" / f"settings-{run_key(out)}.toml"
        self.log = server.path / "logs" / f"run-{run_key(out)}.log"
        self.waits_for = ""
        self._failures, self._round = 0, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._submission = ""
        self._locked_before = False
        self._last_seen = self._server_seen = time.monotonic()
        self._place = server.queue.enter(out)
        self._holds_place = True
        if self._state.wanted is Wanted.PAUSE:
            self._state.want(Wanted.GO_ON)
        self.supervise()

    def supervise(self) -> bool:
        """Whether the run is still going on; submits it in its turn, and again if it was interrupted.

        Raises:
            RunFailed: it ended before its last round, with the reason, or is interrupted again and again.
        """
        if self._process is not None and self._process.poll() is None and not self._abandoned():
            return True
        self._end_process()
        if self._directory.finished:
            return False
        if self._process is not None:
            self._take_end()
            self._process = None
        self.waits_for = ""
        if self._directory.is_locked():
            return True
        if self._has_turn():
            self._submit_when_possible()
        return True

    def stop(self) -> None:
        """End the process that follows the run's log, and leave the queue."""
        self._end_process()
        self._leave()

    def _end_process(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _leave(self) -> None:
        if self._holds_place:
            self._place.leave()
            self._holds_place = False

    def _has_turn(self) -> bool:
        """Whether it is this run's turn; a paused run holds no place.

        Raises:
            RunFailed: it is to stop and has not begun.
        """
        wanted = self._state.wanted
        if wanted is Wanted.STOP and not self._directory.begun:
            raise RunFailed("The run was stopped before it began.")
        if wanted is Wanted.PAUSE:
            self._leave()
            self.waits_for = (
                f"The run is paused after round {self._directory.checkpoints.newest_round()}; "
                f"`fedgraft server resume {self._server.path} {self._out}` lets it go on."
            )
            return False
        if not self._holds_place:
            self._place, self._holds_place = self._server.queue.enter(self._out), True
        if ahead := self._place.ahead():
            self.waits_for = f"The run waits for {len(ahead)} before it, first {ahead[0]}."
        return not ahead

    def _submit_when_possible(self) -> None:
        """Submit the run if the server is there; raises RunFailed if it has been away for long."""
        if is_running(self._server):
            if self._submission:
                reached = self._directory.checkpoints.newest_round()
                _log.warning("The run is resubmitted and resumes after round %d", reached)
            self._submit()
        elif time.monotonic() - self._server_seen > _SERVER_SECONDS:
            raise RunFailed(
                f"The server has not returned; resume the run in {self._directory.path} once it is running."
            )

    def _submit(self) -> None:
        self._submission = secrets.token_hex(8)
        settings = {
            "config": self._config.model_dump(),
            "submission": self._submission,
            "admitted": str((self._server.path / "admitted").absolute()),
        }
        write_text(self._settings, tomli_w.dumps({"out": str(self._out), "settings": json.dumps(settings)}))
        with self.log.open("ab") as log:
            self._process = submit(self._server, self._settings, log)
        self._locked_before = False
        self._last_seen = self._server_seen = time.monotonic()

    def _abandoned(self) -> bool:
        """Whether the ServerApp was running and is gone: the SuperLink itself notices only after a minute."""
        now = time.monotonic()
        if self._directory.is_locked():
            self._locked_before, self._last_seen = True, now
        return self._locked_before and now - self._last_seen > _ABANDONED_SECONDS

    def _take_end(self) -> None:
        """Find out why the ServerApp ended; raises RunFailed with its reason, or after too many interruptions."""
        ended = self._state.ended
        if ended is not None and ended.submission == self._submission:
            if ended.outcome is Outcome.FAILED:
                raise RunFailed(f"The run ended before its last round: {ended.reason} (see {self.log}).")
            if ended.outcome is Outcome.PAUSED:
                return
        self._count_failure()

    def _count_failure(self) -> None:
        reached = self._directory.checkpoints.newest_round()
        self._failures = self._failures + 1 if reached <= self._round else 0
        self._round = reached
        if self._failures > _TRIES:
            raise RunFailed(f"The run was interrupted {_TRIES} times without passing round {reached}; see {self.log}.")
