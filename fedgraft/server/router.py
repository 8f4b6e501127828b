"""The server's connection to its sites, which may share nodes: only the router knows which node holds which site.

A deployed site is a node of its own; in a simulation of many sites one node holds several, so that what they have in
common travels once and one worker computes them together.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.flower.messages import HELLO, for_sites, sites_of, unpack
from fedgraft.server.sender import Sender


@dataclass(frozen=True)
class Reply:
    """A site's answer: its content, or the reason why there is none."""

    site: int
    content: RecordDict | None = None
    error: str = ""


@dataclass(frozen=True)
class Greeting:
    """The sites of a deployed run.

    Attributes:
        numbers: the number of every site by name, including those that took part before and have not connected.
        hellos: what each connected site says about itself, by name.
        refused: why other sites do not take part.
    """

    numbers: dict[str, int]
    hellos: dict[str, RecordDict]
    refused: list[str]


class Router:
    """Knows which node holds which site, and sends each site's messages to its node."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._node_of: dict[int, int] = {}

    def find(self, content: RecordDict, count: int) -> None:
        """Ask each node which sites it holds, until all sites are found.

        Raises:
            RunFailed: sites are missing, duplicate, or unknown.
        """
        claims: list[tuple[int, int]] = []

        def receive(reply: Message) -> None:
            if reply.has_error():
                raise RunFailed(f"A site could not start: {reply.error.reason}")
            claims.extend((site, reply.metadata.src_node_id) for site in sites_of(reply.content))

        self._ask_nodes(content, receive, lambda: len(claims) >= count)
        if len(claims) < count:
            raise RunFailed(f"Only {len(claims)} of {count} sites have connected.")
        if sorted(site for site, _ in claims) != list(range(count)):
            raise RunFailed(
                f"The nodes hold the sites {sorted(site for site, _ in claims)}; "
                f"each of 0 to {count - 1} is needed exactly once."
            )
        self._node_of = dict(claims)

    def greet(self, content: RecordDict, count: int, numbers: dict[str, int]) -> Greeting:
        """Ask deployed sites who they are; one that refuses, or does not connect in time, is left out of the run.

        Args:
            count: how many sites to wait for.
            numbers: of sites that took part before, by name; new ones get free numbers in the order of their names.

        Raises:
            RunFailed: two sites have the same name, or more have connected than the run has.
        """
        connected: dict[str, tuple[int, RecordDict]] = {}
        refused: list[str] = []

        def receive(reply: Message) -> None:
            if reply.has_error():
                refused.append(str(reply.error.reason))
            elif HELLO not in reply.content.config_records:
                refused.append("it was not started with `fedgraft site start`, so it has no images of its own")
            else:
                name = str(reply.content.config_records[HELLO]["name"])
                if name in connected:
                    raise RunFailed(f"Two sites are named {name!r}; rename one of them in its site.toml.")
                connected[name] = (reply.metadata.src_node_id, reply.content)

        self._ask_nodes(content, receive, lambda: len(connected) + len(refused) >= count)
        free = iter(sorted(set(range(count)) - set(numbers.values())))
        for name in sorted(set(connected) - set(numbers)):
            if (number := next(free, None)) is None:
                raise RunFailed(f"The run has {count} sites, {', '.join(numbers)}; {name!r} is one too many.")
            numbers[name] = number
        self._node_of = {numbers[name]: node for name, (node, _) in connected.items()}
        return Greeting(numbers, {name: hello for name, (_, hello) in connected.items()}, refused)

    def ask(
        self, kind: str, content: RecordDict, sites: Sequence[int], own: Mapping[int, RecordDict] | None = None
    ) -> list[Reply]:
        """The replies of some sites to a Flower message of a kind, in their order, without those that are late.

        Args:
            own: records that only one site gets, by site.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        replies: dict[int, Reply] = {}
        for site in sites:
            if (node := self._node_of.get(site)) is None:
                replies[site] = Reply(site, error="it is not connected")
            else:
                groups[node].append(site)
        messages = [
            Message(for_sites(content, group, own), dst_node_id=node, message_type=kind)
            for node, group in groups.items()
        ]
        for group, reply in zip(groups.values(), self._sender(messages), strict=True):
            if reply is not None:
                replies.update({own.site: own for own in _split(reply, group)})
        return [replies[site] for site in sites if site in replies]

    def _ask_nodes(self, content: RecordDict, receive: Callable[[Message], None], enough: Callable[[], bool]) -> None:
        """Query each node once, as it connects, until there are enough answers or time is up."""
        asked: set[int] = set()
        deadline = time.monotonic() + self._sender.seconds
        while not enough() and time.monotonic() < deadline:
            fresh = self._sender.nodes() - asked
            asked |= fresh
            queries = [Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in sorted(fresh)]
            for reply in filter(None, self._sender(queries)):
                receive(reply)
            if not fresh:
                self._sender.pause()


def _split(reply: Message, sites: Sequence[int]) -> list[Reply]:
    """One reply for each site, from their node's reply."""
    if reply.has_error():
        return [Reply(site, error=str(reply.error.reason)) for site in sites]
    answers = unpack(reply.content)
    replies = []
    for site in sites:
        answer = answers.get(site, "its node did not answer for it")
        replies.append(Reply(site, error=answer) if isinstance(answer, str) else Reply(site, answer))
    return replies
