"""Signs of a worker beside its socket, by which whoever looks after it sees whether it hangs.

One file says what message it is at and since when, another when it was last alive. Times are read off the machine's
monotonic clock, which processes share and which does not jump.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedgraft.files import write_text

_FILE, _PULSE = "task.json", "pulse"
_PULSE_SECONDS = 2.0


@dataclass(frozen=True)
class Task:
    """A message that a worker is at, and since when."""

    kind: str
    began: float


@contextmanager
def busy(room: Path, kind: str) -> Iterator[None]:
    """Tell of a message for as long as it takes; where the disk is full, nobody is told, and the work goes on."""
    with suppress(OSError):
        write_text(room / _FILE, json.dumps(asdict(Task(kind, time.monotonic()))))
    try:
        yield
    finally:
        forget_task(room)


def running_task(room: Path) -> Task | None:
    """What the worker is at."""
    try:
        return Task(**json.loads((room / _FILE).read_text()))
    except FileNotFoundError:
        return None


def forget_task(room: Path) -> None:
    """The worker is at nothing."""
    (room / _FILE).unlink(missing_ok=True)


def start_pulse(room: Path) -> None:
    """Give a sign of life every other second for as long as the process can."""

    def beat() -> None:
        while True:
            with suppress(OSError):
                (room / _PULSE).write_text(str(time.monotonic()))
            time.sleep(_PULSE_SECONDS)

    threading.Thread(target=beat, daemon=True).start()


def last_pulse(room: Path) -> float | None:
    """When the worker gave its last sign of life; None where it has not given one yet."""
    try:
        return float((room / _PULSE).read_text())
    except (FileNotFoundError, ValueError):  # not there, or just being written
        return None


def forget_worker(room: Path) -> None:
    """What was told of a worker that has ended holds no longer."""
    forget_task(room)
    (room / _PULSE).unlink(missing_ok=True)
