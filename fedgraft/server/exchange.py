"""Messages to sites over a Flower grid whose nodes may each hold several sites.

The server and its strategies address sites. A deployed site is a node of its own; in a simulation of many sites one
node holds several, so that what is the same for all of them travels once and one worker computes them together.
"""

import threading
import time
from collections import defaultdict

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedgraft.errors import RunFailed
from fedgraft.messages import for_sites, sites_of, unpack

_TIMEOUT_SECONDS = 3600.0
_POLL_SECONDS = 0.1
_NO_ANSWER = 101


class Exchange:
    """Sends messages to sites and waits for their replies, ready to be stopped, which Flower's own calls are not.

    Args:
        stopping: ends a wait with `RunFailed` when it is set.
    """

    def __init__(self, grid: Grid, stopping: threading.Event) -> None:
        self._grid, self._stopping = grid, stopping
        self._node_of: dict[int, int] = {}

    def hello(self, content: RecordDict, count: int) -> None:
        """Ask each node which sites it holds, until all have come.

        Raises:
            RunFailed: sites are missing, there twice, or unknown.
        """
        claims: list[tuple[int, int]] = []
        asked: set[int] = set()
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while len(claims) < count:
            fresh = set(self._grid.get_node_ids()) - asked
            asked |= fresh
            queries = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in sorted(fresh)]
            for reply in filter(None, self.roundtrip(queries)):
                if reply.has_error():
                    raise RunFailed(f"A site could not start: {reply.error.reason}")
                claims += [(site, reply.metadata.src_node_id) for site in sites_of(reply.content)]
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(claims)} of {count} sites have come.")
            if not fresh:
                self._pause()
        if sorted(site for site, _ in claims) != list(range(count)):
            raise RunFailed(
                f"The nodes say that they are the sites {sorted(site for site, _ in claims)}; "
                f"each of 0 to {count - 1} must be there once."
            )
        self._node_of = dict(claims)

    def __call__(self, messages: list[Message]) -> list[Message]:
        """The replies to messages whose destination is a site; a site that did not answer in time has none."""
        groups: dict[tuple[int, ...], list[Message]] = defaultdict(list)
        for message in messages:
            node = self._node_of[message.metadata.dst_node_id]
            groups[(node, *map(id, message.content.values()))].append(message)
        packed = []
        for (node, *_), group in groups.items():
            content = for_sites(group[0].content, [message.metadata.dst_node_id for message in group])
            packed.append(Message(content, dst_node_id=node, message_type=group[0].metadata.message_type))
        replies = self.roundtrip(packed)
        return [
            own
            for group, reply in zip(groups.values(), replies, strict=True)
            if reply is not None
            for own in _split(reply, group)
        ]

    def roundtrip(self, messages: list[Message]) -> list[Message | None]:
        """The reply to each message, None where there was none in time."""
        identifiers = list(self._grid.push_messages(messages))
        replies: dict[str, Message] = {}
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while (waiting := set(identifiers) - set(replies)) and time.monotonic() < deadline:
            arrived = list(self._grid.pull_messages(waiting))
            replies.update({reply.metadata.reply_to_message_id: reply for reply in arrived})
            if len(arrived) < len(waiting):
                self._pause()
        return [replies.get(identifier) for identifier in identifiers]

    def _pause(self) -> None:
        if self._stopping.wait(_POLL_SECONDS):
            raise RunFailed("The run was stopped; it goes on with --resume.")


def _split(reply: Message, asked: list[Message]) -> list[Message]:
    """One reply for each site from the reply of their node."""
    if reply.has_error():
        return [Message(reply.error, reply_to=message) for message in asked]
    answers = unpack(reply.content)
    replies = []
    for message in asked:
        answer = answers.get(message.metadata.dst_node_id, "its node did not answer for it")
        if isinstance(answer, str):
            replies.append(Message(Error(_NO_ANSWER, answer), reply_to=message))
        else:
            replies.append(Message(answer, reply_to=message))
    return replies
