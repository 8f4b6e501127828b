"""What a worker is at and since when, in a file beside its socket: whoever looks after it sees whether it hangs."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fedgraft.files import write_text

_FILE = "task.json"


@dataclass(frozen=True)
class Task:
    """A message that a worker is at; `began` is read off the machine's monotonic clock, which processes share."""

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
    """What was told of a worker that has ended holds no longer."""
    (room / _FILE).unlink(missing_ok=True)
