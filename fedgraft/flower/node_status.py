"""What a SuperNode is doing, in a file: whether it has reached the server, and the message that it has in hand.

The SuperNode's process writes it, `fedgraft site start` and `site status` read it. Times are seconds since the epoch.
"""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedgraft.core.files import write_text

IDLE, WAITING, SENDING = "idle", "waiting", "sending"


@dataclass(frozen=True)
class NodeStatus:
    """A SuperNode's status.

    Attributes:
        connected: when the process reached the server.
        doing: "idle", "waiting" for its app to answer a message, or "sending" the answer.
        kind: of the newest message.
        received: when that message came.
        answered: when the newest answer had been sent.
    """

    connected: float | None = None
    doing: str = IDLE
    kind: str = ""
    received: float | None = None
    answered: float | None = None


class NodeStatusFile:
    """Writes the status as it changes; if the disk is full, nothing is written and the SuperNode goes on."""

    def __init__(self, path: Path) -> None:
        self._path, self._status = path, NodeStatus()

    def on_connected(self) -> None:
        """The SuperNode asks for messages."""
        if self._status.connected is None:
            self._write(connected=time.time())

    def on_received(self, kind: str) -> None:
        """A message has been received completely."""
        self._write(doing=WAITING, kind=kind, received=time.time())

    def on_sending(self) -> None:
        """There is an answer."""
        self._write(doing=SENDING)

    def on_answered(self) -> None:
        """The answer has been sent, or given up."""
        self._write(doing=IDLE, answered=time.time())

    def _write(self, **changes: str | float) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        with suppress(OSError):
            write_text(self._path, json.dumps(asdict(self._status)))


def read_node_status(path: Path) -> NodeStatus:
    """The status in a file; that of a SuperNode that has not connected if there is none."""
    try:
        return NodeStatus(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return NodeStatus()
