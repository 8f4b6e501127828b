"""Messages to nodes and their replies over a grid that loses some: lost messages are resent.

A restarted SuperNode has forgotten the message that it was handling, and a reply that cannot be sent is dropped; Flower
reports the former only if the node was away for a while, and the latter never. So a message is resent when its node was
lost and has returned and, where nothing is reported, after an interval that doubles. A site gives a repeated message
the same answer, so resending it unnecessarily costs only time.
"""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message

from fedgraft.core.errors import RunFailed
from fedgraft.flower.internals import LOST_CODES, ConnectedNode, connected_nodes

_FIRST_POLL_SECONDS, _POLL_SECONDS, _CHECK_SECONDS = 0.002, 0.1, 1.0


class Grid(Protocol):
    """The part of Flower's grid interface that is used, and that an engine must offer."""

    def get_node_ids(self) -> Iterable[int]:
        """The connected nodes."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return an identifier for each, or None for one that Flower does not accept."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies received so far to the given messages."""
        ...


@dataclass
class Outgoing:
    """A message in flight: under which identifiers it was sent, and when it is resent.

    Attributes:
        reply: its reply, once there is one.
        patience: seconds from the last sending to the next; None to wait indefinitely.
        lost: whether no copy of it is in flight any more.
        gone: whether its node will never answer again.
        connected: when its node had connected, as far as is known.
    """

    message: Message
    patience: float | None
    identifiers: set[str] = field(default_factory=set)
    lost: bool = True
    gone: bool = False
    connected: str = ""
    sent: float = 0.0
    reply: Message | None = None

    @property
    def node(self) -> int:
        """The node that it is for."""
        return self.message.metadata.dst_node_id


class Sender:
    """Sends messages and waits for their replies; unlike Flower's own calls, it can be stopped.

    Args:
        stopping: ends a wait with `RunFailed` when it is set.
        answer_seconds: how long to wait for an answer.
        resend_seconds: how long before an unanswered message is resent although no loss was reported; None for never.
    """

    def __init__(
        self, grid: Grid, stopping: threading.Event, answer_seconds: float = 3600.0, resend_seconds: float | None = None
    ) -> None:
        self._grid, self._stopping = grid, stopping
        self.seconds, self._patience = answer_seconds, resend_seconds
        self.successor: Callable[[int], int | None] = lambda node: node
        """The node that has taken a node's place; None if it will never answer again."""

    def nodes(self) -> set[int]:
        """The connected nodes."""
        return set(self._grid.get_node_ids())

    def connected(self) -> dict[int, ConnectedNode]:
        """What the SuperLink knows about the connected nodes, by node."""
        return connected_nodes(self._grid)

    def pause(self, seconds: float = _POLL_SECONDS) -> None:
        """Wait a moment; raises RunFailed if the run is stopped."""
        if self._stopping.wait(seconds):
            raise RunFailed("The run was stopped; resume it with --resume.")

    def __call__(self, messages: list[Message]) -> list[Message | None]:
        """The reply to each message, or None if there was none in time.

        Raises:
            RunFailed: the run was stopped, or the messages are larger than the SuperLink accepts.
        """
        outgoing = self.post(messages)
        deadline = time.monotonic() + self.seconds
        seconds, checked = _FIRST_POLL_SECONDS, time.monotonic()
        while (waiting := [entry for entry in outgoing if entry.reply is None and not entry.gone]) and (
            now := time.monotonic()
        ) < deadline:
            if now - checked > _CHECK_SECONDS:
                checked = now
                self._check(waiting)
            self._collect(waiting)
            if waiting := [entry for entry in waiting if entry.reply is None]:
                self.pause(seconds)
                self._send_again(waiting)
                seconds = min(2 * seconds, _POLL_SECONDS)
        return [entry.reply for entry in outgoing]

    def post(self, messages: list[Message]) -> list[Outgoing]:
        """Send messages without waiting for their replies, which `look` finds."""
        outgoing = [Outgoing(message, self._patience) for message in messages]
        if outgoing:
            self._send(outgoing)
        return outgoing

    def look(self, outgoing: Iterable[Outgoing]) -> None:
        """Take the replies that have come, and resend what was lost; does not wait."""
        if waiting := [entry for entry in outgoing if entry.reply is None]:
            self._collect(waiting)
            self._send_again([entry for entry in waiting if entry.reply is None])

    def _send(self, outgoing: list[Outgoing]) -> None:
        originals = [(entry.message.content, entry.message.metadata) for entry in outgoing]
        copies = [
            Message(content, dst_node_id=metadata.dst_node_id, message_type=metadata.message_type)
            for content, metadata in originals
        ]
        identifiers = list(self._grid.push_messages(copies))
        if len(identifiers) < len(outgoing):
            raise RunFailed("The messages to the sites are larger than the SuperLink accepts.")
        for entry, identifier in zip(outgoing, identifiers, strict=True):
            entry.sent = time.monotonic()
            entry.lost = identifier is None  # the SuperLink did not accept the message
            if identifier is not None:
                entry.identifiers.add(identifier)

    def _collect(self, waiting: list[Outgoing]) -> None:
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

    def _check(self, waiting: list[Outgoing]) -> None:
        """Find messages that a node has forgotten because it has connected again, or that another node is to answer."""
        connected = self.connected()
        for entry in waiting:
            node = self.successor(entry.node)
            entry.gone = node is None
            if node is not None and node != entry.node:
                kind = entry.message.metadata.message_type
                entry.message = Message(entry.message.content, dst_node_id=node, message_type=kind)
                entry.lost, entry.connected = True, ""
            elif entry.node in connected:
                since = connected[entry.node].since
                entry.lost |= bool(entry.connected) and since != entry.connected
                entry.connected = since

    def _send_again(self, waiting: list[Outgoing]) -> None:
        now = time.monotonic()
        due = [entry for entry in waiting if entry.patience and now - entry.sent > entry.patience]
        for entry in due:
            assert entry.patience
            entry.patience *= 2
        if lost := [entry for entry in waiting if entry.lost]:
            present = self.nodes()
            due += [entry for entry in lost if entry not in due and entry.node in present]
        if due:
            self._send(due)
