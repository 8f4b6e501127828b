"""Child processes that end with their parent, each with its own log."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fedgraft.core.errors import RunFailed
from fedgraft.core.logs import LARGEST_BYTES, rotate_in_place
from fedgraft.flower.guarded import APP_SHA256, READABLE, WRITABLE, install_app

_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
TASK_POLL_INTERVAL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
"""The environment variable with the seconds after which a SuperExec asks for a task again, 1 by default."""
_LEFT = ("apps", "tmp", "runtime-envs", "local-superlink")
"""Folders in Flower's own that it makes anew."""


def guarded(command: str) -> list[str]:
    """The words that start one of Flower's commands as `fedgraft.flower.guarded` does."""
    return [sys.executable, "-P", "-m", "fedgraft.flower.guarded", command]


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of Flower's commands: no telemetry, update check or run-time installation.

    Args:
        home: the folder of Flower's own files, kept apart from those of the user and of other sites.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        **os.environ,
        "PATH": path,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def clean_home(home: Path) -> Path:
    """Flower's own folder of a server or site that is not running, without what its killed processes have left."""
    home = home.absolute()
    for name in _LEFT:
        shutil.rmtree(home / name, ignore_errors=True)
    (home / "tmp").mkdir(parents=True)
    return home


def app_environment(
    app: Path, home: Path, readable: Sequence[Path] = (), writable: Sequence[Path] = ()
) -> dict[str, str]:
    """For a SuperExec: the one app that it may start, installed, and what the app's process may read or change."""
    sha256 = install_app(app, home)
    return {
        APP_SHA256: sha256,
        READABLE: json.dumps([str(home / "apps"), *(str(path.absolute()) for path in readable)]),
        WRITABLE: json.dumps([str(home / "tmp"), *(str(path.absolute()) for path in writable)]),
        "TMPDIR": str(home / "tmp"),
    }


class Process:
    """A command in its own process group; its output is appended to `log`, and messages call it `name`.

    Attributes:
        starts: how many times it has been started.
    """

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.command, self.log = name, [str(word) for word in command], log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._begins = self._seen = 0
        self._unread = b""
        self.starts = 0

    def start(self) -> None:
        """Start or restart the command, after ending what is left of its process group."""
        self.kill()
        self.rotate_log()
        self.starts += 1
        with self.log.open("ab") as log:
            self._begins = self._seen = log.tell()
            self._process = subprocess.Popen(
                self.command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    @property
    def pid(self) -> int:
        """The process ID."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """The exit status, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready; raises RunFailed if it ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.ended is not None:
                raise RunFailed(f"{self.name} ended with status {self.ended}: {self.last_line()}")
            if time.monotonic() > deadline:
                raise RunFailed(f"{self.name} is not ready after {seconds:.0f} seconds; see {self.log}.")
            time.sleep(_POLL_SECONDS)

    def output(self) -> str:
        """Its output since it was last started."""
        return self.log.read_bytes()[self._begins :].decode(errors="replace")

    def new_output(self) -> str:
        """Its output since the last call."""
        printed, self._unread = self._unread + self._read_on(), b""
        return printed.decode(errors="replace")

    def _read_on(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(self._seen)
            printed = log.read()
        self._seen += len(printed)
        return printed

    def rotate_log(self) -> None:
        """Begin a new log file if the present one has become large; `output` then begins there."""
        if self.log.exists() and self.log.stat().st_size > LARGEST_BYTES:
            self._unread += self._read_on()
            rotate_in_place(self.log)
            self._begins = self._seen = 0

    def grandchildren(self) -> list[int] | None:
        """The living processes of its group that its children have started; None where /proc does not tell."""
        if self._process is None or not Path("/proc/self/stat").exists():
            return None
        own = self._process.pid
        return [pid for pid, parent in _living(own).items() if own not in (pid, parent)]

    def last_line(self) -> str:
        """The last line of its output."""
        return next(
            (line.strip() for line in reversed(self.output().split("\n")) if line.strip()), "it printed nothing"
        )

    def kill(self) -> None:
        """Kill the whole group at once, including stopped and hung processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """Terminate the whole group; kill it if it does not end in time."""
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


def _living(group: int) -> dict[int, int]:
    """The parents of a group's processes that have not ended, by /proc/PID/stat: "PID (COMMAND) STATE PARENT GROUP"."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                found[int(path.parent.name)] = int(parent)
    return found


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def end_with_parent() -> None:
    """End the command when its parent is killed; for `preexec_fn`. Flower's own children watch theirs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
