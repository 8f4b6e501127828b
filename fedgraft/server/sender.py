"""Messages to nodes and their replies over a grid that loses some: what was lost is sent again.

A SuperNode that is started again has forgotten the message it was at, and a reply that cannot be sent is dropped;
Flower reports the first only where the node has been away for a while, and the second never. So a message is sent again
when its node was lost and is back, and, where nothing is reported, after a time that doubles. A site gives a message
that comes twice the same answer, so sending once too often costs time and nothing else.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from fedgraft.core.errors import RunFailed
from fedgraft.flower.internals import LOST_CODES

_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.002, 0.1


class Grid(Protocol):
    """What is used of Flower's grid, and all that an engine offers: nodes that take messages and give replies."""

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages and give each an identifier; Flower gives None for one that it does not take."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to some messages that have come."""
        ...


@dataclass
class _Outgoing:
    """A message on its way: under which identifiers it was sent, and when it is sent again.

    Attributes:
        lost: whether nothing of it is on the way any more.
        patience: seconds from the last sending to the next; None waits for as long as it takes.
    """

    message: Message
    patience: float | None
    identifiers: set[str] = field(default_factory=set)
    lost: bool = True
    sent: float = 0.0
    reply: Message | None = None


class Sender:
    """Sends messages and waits for their replies, ready to be stopped, which Flower's own calls are not.

    Args:
        stopping: ends a wait with `RunFailed` when it is set.
        answer_seconds: how long an answer is waited for.
        resend_seconds: after how long without an answer a message is sent again although nothing says that it is
            lost; None never does.
    """

    def __init__(
        self,
        grid: Grid,
        stopping: threading.Event,
        answer_seconds: float = 3600.0,
        resend_seconds: float | None = None,
    ) -> None:
        self._grid, self._stopping = grid, stopping
        self.seconds, self._patience = answer_seconds, resend_seconds

    def nodes(self) -> set[int]:
        """The nodes that are there."""
        return set(self._grid.get_node_ids())

    def pause(self, seconds: float = _POLL_SECONDS) -> None:
        """Wait a moment.

        Raises:
            RunFailed: the run was stopped.
        """
        if self._stopping.wait(seconds):
            raise RunFailed("The run was stopped; it goes on with --resume.")

    def __call__(self, messages: list[Message]) -> list[Message | None]:
        """The reply to each message, None where there was none in time.

        Raises:
            RunFailed: the run was stopped, or the messages are larger than the SuperLink takes.
        """
        outgoing = [_Outgoing(message, self._patience) for message in messages]
        self._send(outgoing)
        deadline = time.monotonic() + self.seconds
        seconds = _FIRST_POLL_SECONDS
        while (waiting := [entry for entry in outgoing if entry.reply is None]) and time.monotonic() < deadline:
            self._collect(waiting)
            if waiting := [entry for entry in waiting if entry.reply is None]:
                self.pause(seconds)
                self._send_again(waiting)
                seconds = min(2 * seconds, _POLL_SECONDS)
        return [entry.reply for entry in outgoing]

    def _send(self, outgoing: list[_Outgoing]) -> None:
        copies = [
            Message(
                entry.message.content,
                dst_node_id=entry.message.metadata.dst_node_id,
                message_type=entry.message.metadata.message_type,
            )
            for entry in outgoing
        ]
        identifiers = list(self._grid.push_messages(copies))
        if len(identifiers) < len(outgoing):
            raise RunFailed("The messages to the sites are larger than the SuperLink takes.")
        for entry, identifier in zip(outgoing, identifiers, strict=True):
            entry.sent = time.monotonic()
            entry.lost = identifier is None  # Flower's word for a message that the SuperLink did not take
            if identifier is not None:
                entry.identifiers.add(identifier)

    def _collect(self, waiting: list[_Outgoing]) -> None:
        by_identifier = {identifier: entry for entry in waiting for identifier in entry.identifiers}
        if not by_identifier:
            return
        for reply in self._grid.pull_messages(list(by_identifier)):
            identifier = reply.metadata.reply_to_message_id
            entry = by_identifier[identifier]
            if reply.has_error() and reply.error.code in LOST_CODES:
                entry.identifiers.discard(identifier)
                entry.lost = not entry.identifiers
            elif entry.reply is None:
                entry.reply = reply

    def _send_again(self, waiting: list[_Outgoing]) -> None:
        now = time.monotonic()
        due = [entry for entry in waiting if entry.patience and now - entry.sent > entry.patience]
        for entry in due:
            assert entry.patience
            entry.patience *= 2
        if lost := [entry for entry in waiting if entry.lost]:
            there = self.nodes()
            due += [entry for entry in lost if entry not in due and entry.message.metadata.dst_node_id in there]
        if due:
            self._send(due)
