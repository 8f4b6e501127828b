"""Child processes that end with their parent, each with a log of its own."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedgraft.core.errors import RunFailed

_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def flower_environment(home: Path) -> dict[str, str]:
    """For Flower's commands: nothing from the network, nothing installed at run time, quick to see a new task.

    Args:
        home: Flower's own files, which are not to mix with those of the user or of another site.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        **os.environ,
        "PATH": path,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    }


class Process:
    """A command in a process group of its own.

    Args:
        name: in messages.
        log: grows with what the command prints.
    """

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.command, self.log = name, [str(word) for word in command], log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._begins = self._seen = 0

    def start(self) -> None:
        """Start it, again where it has ended; what it had started itself ends before."""
        self.kill()
        with self.log.open("ab") as log:
            self._begins = self._seen = log.tell()
            self._process = subprocess.Popen(
                self.command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """The exit status, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready.

        Raises:
            RunFailed: it ended, or took too long.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.ended is not None:
                raise RunFailed(f"{self.name} ended with status {self.ended}: {self.last_line()}")
            if time.monotonic() > deadline:
                raise RunFailed(f"{self.name} is not ready after {seconds:.0f} seconds; see {self.log}.")
            time.sleep(_POLL_SECONDS)

    def said(self) -> str:
        """What it has printed since it was started last."""
        return self.log.read_bytes()[self._begins :].decode(errors="replace")

    def news(self) -> str:
        """What it has printed since it was asked last."""
        with self.log.open("rb") as log:
            log.seek(self._seen)
            printed = log.read()
        self._seen += len(printed)
        return printed.decode(errors="replace")

    def last_line(self) -> str:
        """The last line that it has printed."""
        return next((line.strip() for line in reversed(self.said().split("\n")) if line.strip()), "it said nothing")

    def kill(self) -> None:
        """End the whole group at once; a process that is stopped or hung ends as well."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End the whole group, with force after a while."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            deadline = time.monotonic() + seconds
            while _group_lives(self._process.pid) and time.monotonic() < deadline:
                self._process.poll()
                time.sleep(_POLL_SECONDS)
        self._process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _end_with_parent() -> None:
    """A parent that is killed takes the command with it; Flower's own children watch theirs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
