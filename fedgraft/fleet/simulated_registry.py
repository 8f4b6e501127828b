"""The registry of a simulated fleet: a real process, killed at moments drawn from a seed and started again."""

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from fedgraft.core.errors import RunFailed
from fedgraft.fleet.fleet_folder import FleetFolder

_READY_SECONDS = 120.0


class SimulatedRegistry:
    """The process, while it is entered.

    Attributes:
        left: how often it is still to be killed.
        killed: how often it was.
        peak_mb: the most memory that it has had.
    """

    def __init__(self, folder: FleetFolder, kills: int, seed: int) -> None:
        self._folder, self.left = folder, kills
        self._rng = random.Random(f"{seed}/kills")
        self.killed, self.peak_mb = 0, 0.0
        self._process: subprocess.Popen[str] | None = None
        self._next = 0.0

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(kill=False)

    def step(self) -> None:
        """Measure it, and kill it if it is time."""
        assert self._process is not None
        self.peak_mb = max(self.peak_mb, _peak_mb(self._process.pid))
        if self._process.poll() is not None:
            raise RunFailed("The registry ended by itself; see registry.log in the fleet's folder.")
        if self.left and time.monotonic() > self._next:
            self._end(kill=True)
            self.left, self.killed = self.left - 1, self.killed + 1
            self._start()

    def _start(self) -> None:
        words = [sys.executable, "-m", "fedgraft", "fleet", "serve", str(self._folder.path)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        deadline = time.monotonic() + _READY_SECONDS
        for line in self._process.stdout:
            if line.startswith("Ready"):
                break
            if time.monotonic() > deadline:
                raise RunFailed("The registry did not start.")
        if self._process.poll() is not None:
            raise RunFailed("The registry did not start; see registry.log in the fleet's folder.")
        self._next = time.monotonic() + self._rng.uniform(4.0, 14.0)

    def _end(self, kill: bool) -> None:
        if self._process is None:
            return
        self.peak_mb = max(self.peak_mb, _peak_mb(self._process.pid))
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self._process.communicate()


def _peak_mb(pid: int) -> float:
    with contextlib.suppress(OSError, StopIteration):
        lines: Any = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    return 0.0
