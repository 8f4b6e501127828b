"""Nodes without processes, for tests and benchmarks: a grid whose nodes answer at once, by a function."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from flwr.app import Error, Message, RecordDict

from fedgraft.flower.internals import SUPERLINK_NODE_ID, identify, set_message_id

RUN = 1
"""The run that all messages are of."""
Said = RecordDict | Error | None
"""What a node answers; None is silence."""


class FakeGrid(ABC):
    """Nodes that answer when a message is pushed; a reply lies ready until it is pulled.

    Args:
        nodes: their numbers.

    Attributes:
        pushed: every message, in the order in which they came.
    """

    def __init__(self, nodes: Iterable[int]) -> None:
        identify(RUN, SUPERLINK_NODE_ID)
        self.nodes = list(nodes)
        self.pushed: list[Message] = []
        self._replies: dict[str, Message] = {}

    @abstractmethod
    def said(self, message: Message) -> Said:
        """What the message's node answers to it."""

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there."""
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the nodes answer."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that lie ready."""
        return [self._replies.pop(identifier) for identifier in message_ids if identifier in self._replies]

    def reply(self, message: Message, said: RecordDict | Error) -> None:
        """Let an answer to a pushed message lie ready."""
        self._replies[message.metadata.message_id] = Message(said, reply_to=message)

    def _push(self, message: Message) -> str:
        set_message_id(message, identifier := str(len(self.pushed)))
        self.pushed.append(message)
        if (said := self.said(message)) is not None:
            self.reply(message, said)
        return identifier
