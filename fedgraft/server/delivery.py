"""Messages to nodes and their replies over a grid that loses some: what was lost is sent again.

A SuperNode that is started again has forgotten the message it was at, and a reply that cannot be sent is dropped;
Flower reports the first only where the node has been away for a while, and the second never. So a message is sent again
when its node was lost and is back, and, where nothing is reported, after a time that doubles. A site gives a message
that comes twice the same answer, so sending once too often costs time and nothing else.
"""

import threading
import time
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedgraft.errors import RunFailed

_POLL_SECONDS = 0.1
_LOST = {
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
}
"""What Flower answers in place of a site that may still be there, or come back."""


@dataclass
class _Letter:
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


class Delivery:
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

    def pause(self) -> None:
        """Wait a moment.

        Raises:
            RunFailed: the run was stopped.
        """
        if self._stopping.wait(_POLL_SECONDS):
            raise RunFailed("The run was stopped; it goes on with --resume.")

    def __call__(self, messages: list[Message]) -> list[Message | None]:
        """The reply to each message, None where there was none in time.

        Raises:
            RunFailed: the run was stopped, or the messages are larger than the SuperLink takes.
        """
        letters = [_Letter(message, self._patience) for message in messages]
        self._send(letters)
        deadline = time.monotonic() + self.seconds
        while (waiting := [letter for letter in letters if letter.reply is None]) and time.monotonic() < deadline:
            self._collect(waiting)
            if waiting := [letter for letter in waiting if letter.reply is None]:
                self.pause()
                self._send_again(waiting)
        return [letter.reply for letter in letters]

    def _send(self, letters: list[_Letter]) -> None:
        copies = [
            Message(
                letter.message.content,
                dst_node_id=letter.message.metadata.dst_node_id,
                message_type=letter.message.metadata.message_type,
            )
            for letter in letters
        ]
        identifiers = list(self._grid.push_messages(copies))
        if len(identifiers) < len(letters):
            raise RunFailed("The messages to the sites are larger than the SuperLink takes.")
        for letter, identifier in zip(letters, identifiers, strict=True):
            letter.sent = time.monotonic()
            letter.lost = identifier is None  # Flower's word for a message that the SuperLink did not take
            if identifier is not None:
                letter.identifiers.add(identifier)

    def _collect(self, waiting: list[_Letter]) -> None:
        by_identifier = {identifier: letter for letter in waiting for identifier in letter.identifiers}
        if not by_identifier:
            return
        for reply in self._grid.pull_messages(list(by_identifier)):
            identifier = reply.metadata.reply_to_message_id
            letter = by_identifier[identifier]
            if reply.has_error() and reply.error.code in _LOST:
                letter.identifiers.discard(identifier)
                letter.lost = not letter.identifiers
            elif letter.reply is None:
                letter.reply = reply

    def _send_again(self, waiting: list[_Letter]) -> None:
        now = time.monotonic()
        due = [letter for letter in waiting if letter.patience and now - letter.sent > letter.patience]
        for letter in due:
            assert letter.patience
            letter.patience *= 2
        if lost := [letter for letter in waiting if letter.lost]:
            there = self.nodes()
            due += [letter for letter in lost if letter not in due and letter.message.metadata.dst_node_id in there]
        if due:
            self._send(due)
