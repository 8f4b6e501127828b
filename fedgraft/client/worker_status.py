"""A worker's status in files next to its socket, from which a supervisor sees whether it hangs.

One file says which message the worker is handling and since when, another when it was last alive. Times are those of
the machine's monotonic clock, which all processes share and which does not jump.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedgraft.core.files import write_text

_FILE, _PULSE = "task.json", "pulse"
_PULSE_SECONDS = 2.0


@dataclass(frozen=True)
class Task:
    """A message that a worker is handling, and since when."""

    kind: str
    began: float


@contextmanager
def report_task(folder: Path, kind: str) -> Iterator[None]:
    """Report a message while it is handled; if the disk is full, nothing is reported and the work continues."""
    with suppress(OSError):
        write_text(folder / _FILE, json.dumps(asdict(Task(kind, time.monotonic()))))
    try:
        yield
    finally:
        clear_task(folder)


def running_task(folder: Path) -> Task | None:
    """The message that the worker is handling, or None if it is idle."""
    try:
        return Task(**json.loads((folder / _FILE).read_text()))
    except FileNotFoundError:
        return None


def clear_task(folder: Path) -> None:
    """Report that the worker is idle."""
    (folder / _FILE).unlink(missing_ok=True)


def start_pulse(folder: Path) -> None:
    """Report every two seconds, for as long as the process can, that it is alive."""

    def beat() -> None:
        while True:
            with suppress(OSError):
                (folder / _PULSE).write_text(str(time.monotonic()))
            time.sleep(_PULSE_SECONDS)

    threading.Thread(target=beat, daemon=True).start()


def last_pulse(folder: Path) -> float | None:
    """When the worker last reported that it is alive, or None if it has not done so yet."""
    try:
        return float((folder / _PULSE).read_text())
    except (FileNotFoundError, ValueError):  # missing, or being written
        return None


def clear_status(folder: Path) -> None:
    """Delete the status of a worker that has ended."""
    clear_task(folder)
    (folder / _PULSE).unlink(missing_ok=True)
