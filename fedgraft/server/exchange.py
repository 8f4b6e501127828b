"""Messages to sites over nodes that may each hold several sites.

The server and its strategies address sites. A deployed site is a node of its own; in a simulation of many sites one
node holds several, so that what is the same for all of them travels once and one worker computes them together.
"""

import time
from collections import defaultdict
from dataclasses import dataclass

from flwr.app import Error, Message, MessageType, RecordDict

from fedgraft.errors import RunFailed
from fedgraft.messages import HELLO, for_sites, sites_of, unpack
from fedgraft.server.delivery import Delivery

_NO_ANSWER = 101


@dataclass(frozen=True)
class Greeting:
    """Who has come to a deployed run.

    Attributes:
        numbers: of every site by name, also of those that took part before and have not come.
        hellos: what each site that came says of itself, by name.
        refused: why other sites do not take part.
    """

    numbers: dict[str, int]
    hellos: dict[str, RecordDict]
    refused: list[str]


class Exchange:
    """Knows which node holds which site, and sends what is for one site to its node."""

    def __init__(self, delivery: Delivery) -> None:
        self._deliver = delivery
        self._node_of: dict[int, int] = {}

    def hello(self, content: RecordDict, count: int) -> None:
        """Ask each node which sites it holds, until all have come.

        Raises:
            RunFailed: sites are missing, there twice, or unknown.
        """
        claims: list[tuple[int, int]] = []
        asked: set[int] = set()
        deadline = time.monotonic() + self._deliver.seconds
        while len(claims) < count:
            fresh = self._deliver.nodes() - asked
            asked |= fresh
            queries = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in sorted(fresh)]
            for reply in filter(None, self._deliver(queries)):
                if reply.has_error():
                    raise RunFailed(f"A site could not start: {reply.error.reason}")
                claims += [(site, reply.metadata.src_node_id) for site in sites_of(reply.content)]
            if time.monotonic() > deadline:
                raise RunFailed(f"{len(claims)} of {count} sites have come.")
            if not fresh:
                self._deliver.pause()
        if sorted(site for site, _ in claims) != list(range(count)):
            raise RunFailed(
                f"The nodes say that they are the sites {sorted(site for site, _ in claims)}; "
                f"each of 0 to {count - 1} must be there once."
            )
        self._node_of = dict(claims)

    def greet(self, content: RecordDict, count: int, numbers: dict[str, int]) -> Greeting:
        """Ask deployed sites who they are; one that refuses, or does not come in time, is left out of the run.

        Args:
            count: sites that the run waits for.
            numbers: of sites that took part before, by name; new ones get what is free, in the order of their names.

        Raises:
            RunFailed: two sites have one name, or more have come than the run has.
        """
        came: dict[str, tuple[int, RecordDict]] = {}
        refused: list[str] = []
        asked: set[int] = set()
        deadline = time.monotonic() + self._deliver.seconds
        while len(came) + len(refused) < count and time.monotonic() < deadline:
            fresh = self._deliver.nodes() - asked
            asked |= fresh
            queries = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in sorted(fresh)]
            for reply in filter(None, self._deliver(queries)):
                if reply.has_error():
                    refused.append(str(reply.error.reason))
                    continue
                if HELLO not in reply.content.config_records:
                    refused.append("it was not started with `fedgraft site start` and has no images of its own")
                    continue
                name = str(reply.content.config_records[HELLO]["name"])
                if name in came:
                    raise RunFailed(f"Two sites have the name {name!r}; give one of them another in its site.toml.")
                came[name] = (reply.metadata.src_node_id, reply.content)
            if not fresh:
                self._deliver.pause()
        free = iter(sorted(set(range(count)) - set(numbers.values())))
        for name in sorted(set(came) - set(numbers)):
            if (number := next(free, None)) is None:
                raise RunFailed(f"The run has {count} sites, {', '.join(numbers)}; {name!r} is one too many.")
            numbers[name] = number
        self._node_of = {numbers[name]: node for name, (node, _) in came.items()}
        return Greeting(numbers, {name: hello for name, (_, hello) in came.items()}, refused)

    def __call__(self, messages: list[Message]) -> list[Message]:
        """The replies to messages whose destination is a site; a site that did not answer in time has none."""
        groups: dict[tuple[int, ...], list[Message]] = defaultdict(list)
        absent = []
        for message in messages:
            node = self._node_of.get(message.metadata.dst_node_id)
            if node is None:
                absent.append(Message(Error(_NO_ANSWER, "it is not there"), reply_to=message))
                continue
            groups[(node, *map(id, message.content.values()))].append(message)
        packed = []
        for (node, *_), group in groups.items():
            content = for_sites(group[0].content, [message.metadata.dst_node_id for message in group])
            packed.append(Message(content, dst_node_id=node, message_type=group[0].metadata.message_type))
        replies = self._deliver(packed)
        return absent + [
            own
            for group, reply in zip(groups.values(), replies, strict=True)
            if reply is not None
            for own in _split(reply, group)
        ]


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
