"""What a worker reports of itself in files beside its socket, by which a supervisor sees whether it hangs.

One file says which message the worker is handling and since when, another when it was last alive. Times are read off
the machine's monotonic clock, which processes share and which does not jump.
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
    """Report a message for as long as it takes; where the disk is full nothing is reported, and the work goes on."""
    with suppress(OSError):
        write_text(folder / _FILE, json.dumps(asdict(Task(kind, time.monotonic()))))
    try:
        yield
    finally:
        clear_task(folder)


def running_task(folder: Path) -> Task | None:
    """The message that the worker is handling; None where it is idle."""
    try:
        return Task(**json.loads((folder / _FILE).read_text()))
    except FileNotFoundError:
        return None


def clear_task(folder: Path) -> None:
    """The worker is idle."""
    (folder / _FILE).unlink(missing_ok=True)


def start_pulse(folder: Path) -> None:
    """Give a sign of life every other second for as long as the process can."""

    def beat() -> None:
        while True:
            with suppress(OSError):
                (folder / _PULSE).write_text(str(time.monotonic()))
            time.sleep(_PULSE_SECONDS)

    threading.Thread(target=beat, daemon=True).start()


def last_pulse(folder: Path) -> float | None:
    """When the worker gave its last sign of life; None where it has not given one yet."""
    try:
        return float((folder / _PULSE).read_text())
    except (FileNotFoundError, ValueError):  # not there, or just being written
        return None


def clear_status(folder: Path) -> None:
    """Forget what a worker reported that has ended."""
    clear_task(folder)
    (folder / _PULSE).unlink(missing_ok=True)
