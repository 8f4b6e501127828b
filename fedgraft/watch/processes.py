"""The processes behind a run, and what they take of this machine: CPU, memory, GPU. What cannot be known is None."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

LOCKS = Path("/proc/locks")
RUN = "run"
"""What the process that holds a run's lock is called; its children are the run's workers."""
_EVERY_SECONDS, _KEPT = 2.0, 180
_GPU_QUERY = ("nvidia-smi", "--query-gpu=index,name,utilization.gpu,memory.used,memory.total")
_APPS_QUERY = ("nvidia-smi", "--query-compute-apps=pid,used_memory")
_FORMAT, _MIB = "--format=csv,noheader,nounits", 1 << 20


def lock_holder(path: Path, locks: Path = LOCKS) -> int | None:
    """The process that holds a file's lock; None if there is none, or the kernel does not list it.

    The lock itself is not touched: taking it for a moment could turn away a run that begins just then.
    """
    try:
        wanted, lines = path.stat(), locks.read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}"
    for words in (line.split() for line in lines):
        if words[1:2] == ["FLOCK"] and words[5].endswith(f":{wanted.st_ino}"):
            pid = int(words[4])
            if words[5].startswith(f"{device}:") or _has_open(pid, path):
                return pid
    return None


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open; a file system in layers lists another device than the file's own."""
    try:
        return any(entry.path == str(path.absolute()) for entry in psutil.Process(pid).open_files())
    except psutil.Error:
        return False


@dataclass
class Load:
    """What the processes of a run take, sampled every few seconds while somebody looks.

    Attributes:
        samples: time in seconds since the epoch, percent of one core, bytes of memory; the newest last.
        processes: the newest sample by process.
    """

    samples: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    processes: list[dict[str, Any]] = field(default_factory=list)
    gpus: list[dict[str, Any]] = field(default_factory=list)
    revision: int = 0
    _known: dict[int, psutil.Process] = field(default_factory=dict)
    _roots: dict[int, str] = field(default_factory=dict)
    _at: float = 0.0
    _has_gpus: bool = True

    def sample(self, roots: Mapping[int, str]) -> None:
        """Look at processes and all their children, unless that was just done.

        Args:
            roots: what each process is called, by its number.
        """
        now = time.monotonic()
        if now - self._at < _EVERY_SECONDS and roots == self._roots:
            return
        self._at, self._roots = now, dict(roots)
        found = dict(self._family(roots))
        if not found:
            if self.processes:
                self.processes, self.gpus, self._known = [], [], {}
                self.revision += 1
            return
        self._known = {pid: known for pid, known in self._known.items() if pid in found}
        memory = self._look_at_gpus()
        lines = [line for pid, role in found.items() if (line := self._line(pid, role, memory)) is not None]
        self.processes = lines
        known = [line["cpu"] for line in lines if line["cpu"] is not None]
        if known:
            self.samples.append((round(time.time(), 1), round(sum(known), 1), sum(line["memory"] for line in lines)))
        self.revision += 1

    def view(self) -> dict[str, Any]:
        """For the page."""
        return {
            "processes": self.processes,
            "samples": list(self.samples),
            "gpus": self.gpus,
            "cores": psutil.cpu_count() or 1,
            "memory_total": psutil.virtual_memory().total,
        }

    def _family(self, roots: Mapping[int, str]) -> Iterable[tuple[int, str]]:
        for pid, role in roots.items():
            try:
                children = psutil.Process(pid).children(recursive=True)
            except psutil.Error:
                continue
            yield pid, role
            for child in children:
                if child.pid not in roots:
                    yield child.pid, "worker" if role == RUN else f"{role}, child"

    def _line(self, pid: int, role: str, gpu: Mapping[int, int]) -> dict[str, Any] | None:
        try:
            is_new = pid not in self._known
            process = self._known.setdefault(pid, psutil.Process(pid))
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE:
                    return None
                cpu, memory = process.cpu_percent(None), process.memory_info().rss
        except psutil.Error:
            self._known.pop(pid, None)
            return None
        # the first look has nothing to compare with
        return {
            "pid": pid,
            "role": role,
            "cpu": None if is_new else round(cpu, 1),
            "memory": memory,
            "gpu_memory": gpu.get(pid),
        }

    def _look_at_gpus(self) -> dict[int, int]:
        """Update `gpus`; bytes of GPU memory by process."""
        if not self._has_gpus:
            return {}
        cards = _queried(_GPU_QUERY)
        if cards is None:
            self._has_gpus = False
            return {}
        self.gpus = [
            {
                "index": int(index),
                "name": name,
                "busy": _number(busy),
                "memory": (_number(used) or 0) * _MIB,
                "memory_total": (_number(total) or 0) * _MIB,
            }
            for index, name, busy, used, total in (line for line in cards if len(line) == 5)
        ]
        apps = _queried(_APPS_QUERY) or []
        return {int(pid): int(used) * _MIB for pid, used in (line for line in apps if len(line) == 2) if used.isdigit()}


def _queried(command: tuple[str, ...]) -> list[list[str]] | None:
    """The cells of what nvidia-smi prints; None where there is none that works."""
    try:
        done = subprocess.run([*command, _FORMAT], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
