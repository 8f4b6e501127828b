"""The server's connection to its sites, which may share nodes: only the router knows which node holds which site.

A deployed site is a node of its own; in a simulation of many sites one node holds several, so that what they have in
common travels once and one worker computes them together.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.core.plain_text import plain
from fedgraft.flower.messages import for_sites, sites_of, unpack
from fedgraft.server.greeting import Greeting, Names, ReadHello, Reception
from fedgraft.server.hello import read_hello
from fedgraft.server.sender import Sender

_DEAD = "it has not come back since it did not answer in time"


@dataclass(frozen=True)
class Reply:
    """A site's answer: its content, or the reason why there is none."""

    site: int
    content: RecordDict | None = None
    error: str = ""


class Router:
    """Knows which node holds which site, and sends each site's messages to its node."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._node_of: dict[int, int] = {}
        self._reception: Reception | None = None
        self._admitted: Names = lambda: None
        self.dead: set[int] = set()
        """Deployed sites that did not answer, and are not asked again until they are back."""

    def find(self, content: RecordDict, count: int) -> None:
        """Ask each node which sites it holds, until all sites are found.

        Raises:
            RunFailed: sites are missing, duplicate, or unknown.
        """
        claims: list[tuple[int, int]] = []

        def receive(reply: Message) -> None:
            if reply.has_error():
                raise RunFailed(f"A site could not start: {plain(reply.error.reason)}")
            try:
                claims.extend((site, reply.metadata.src_node_id) for site in sites_of(reply.content))
            except (KeyError, TypeError, ValueError) as error:
                raise RunFailed("A node does not say which sites it holds.") from error

        self._ask_nodes(content, receive, lambda: len(claims) >= count)
        if len(claims) < count:
            raise RunFailed(f"Only {len(claims)} of {count} sites have connected.")
        if sorted(site for site, _ in claims) != list(range(count)):
            raise RunFailed(
                f"The nodes hold the sites {sorted(site for site, _ in claims)}; "
                f"each of 0 to {count - 1} is needed exactly once."
            )
        self._node_of = dict(claims)

    def greet(
        self,
        content: RecordDict,
        count: int,
        numbers: dict[str, int],
        least: int = 1,
        away: Collection[str] = (),
        admitted: Names = lambda: None,
        on_refused: Callable[[str], None] = lambda reason: None,
        read: ReadHello = read_hello,
    ) -> Greeting:
        """Ask deployed sites who they are; those that refuse, or do not connect in time, may come in a later round.

        Args:
            count: how many sites the run has; it begins when all have connected, or else all that can.
            numbers: of sites that took part before, by name; new ones get free numbers in the order of their names.
            least: how many sites the run needs to begin before time is up.
            away: sites that are not waited for.
            admitted: the names of the sites that can come.
            on_refused: called with each reason why a site does not take part, as soon as it is known.
            read: reads a site's greeting.
        """
        self._reception = reception = Reception(self._sender, content, count, numbers, read)
        self._admitted = admitted
        self._sender.successor = self._successor

        def enough() -> bool:
            missing = set(away) - reception.heard
            wanted, names = count - len(missing & set(numbers)), admitted()
            if names is None:
                return reception.answered >= wanted
            present = len(reception.present)
            if present >= wanted:
                return True
            return names - missing <= reception.heard and (present >= least or reception.answered >= wanted)

        greeting = Greeting(reception.numbers, {}, [])
        deadline = time.monotonic() + self._sender.seconds
        while not enough() and time.monotonic() < deadline:
            news = reception.look()
            greeting.hellos.update(news.hellos)
            greeting.refused.extend(news.refused)
            for reason in news.refused:
                on_refused(reason)
            if not (news.hellos or news.refused):
                self._sender.pause()
        return self._placed(greeting)

    def refresh(self) -> Greeting:
        """Look, without waiting, for sites that have come or come back since; they are asked from now on."""
        assert self._reception is not None
        return self._placed(self._reception.look())

    def left(self) -> list[int]:
        """The numbers of sites that have left for good, and are asked no more."""
        if self._reception is None or (names := self._admitted()) is None:
            return []
        numbers = self._reception.numbers
        gone = [number for name, number in sorted(numbers.items()) if name not in names and number in self._node_of]
        for number in gone:
            del self._node_of[number]
        return gone

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
                absence = self._reception.absence(site) if self._reception else "it is not connected"
                replies[site] = Reply(site, error=absence)
            elif site in self.dead:
                replies[site] = Reply(site, error=_DEAD)
            else:
                groups[node].append(site)
        messages = [
            Message(for_sites(content, group, own), dst_node_id=node, message_type=kind)
            for node, group in groups.items()
        ]
        for group, reply in zip(groups.values(), self._sender(messages), strict=True):
            if reply is not None:
                replies.update({own.site: own for own in _split(reply, group)})
            elif self._reception is not None:
                self.dead.update(group)
                self._reception.ask_again(self._node_of[group[0]])
        return [replies[site] for site in sites if site in replies]

    def _placed(self, greeting: Greeting) -> Greeting:
        """A greeting whose sites have numbers, and are asked by them."""
        assert self._reception is not None
        refused = self._reception.number(greeting.hellos)
        hellos = {name: hello for name, hello in greeting.hellos.items() if name in greeting.numbers}
        for name, hello in hellos.items():
            self._node_of[greeting.numbers[name]] = hello.node
        back = {*greeting.returned, *(greeting.numbers[name] for name in hellos)} & self.dead
        self.dead -= back
        return Greeting(greeting.numbers, hellos, [*greeting.refused, *refused], sorted(back))

    def _successor(self, node: int) -> int | None:
        """The node of a site's newer key, once that is connected; None if the site is admitted no more."""
        assert self._reception is not None
        name, names = self._reception.name_of(node), self._admitted()
        if name is None:
            return node
        return None if names is not None and name not in names else self._reception.successor(node)

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
        return [Reply(site, error=plain(reply.error.reason)) for site in sites]
    return [
        Reply(site, error=answer) if isinstance(answer, str) else Reply(site, answer)
        for site, answer in unpack(reply.content, sites).items()
    ]
