"""Who the deployed sites are: every node is greeted when it connects, in whatever round, and keeps its name's number.

Where a SuperLink knows nodes by their keys, a site's name is the one that the operator admitted the key under, and what
the site calls itself does not matter. On any other grid its own word is all that there is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from flwr.app import Message, MessageType, RecordDict

from fedgraft.core.plain_text import plain
from fedgraft.flower.internals import ConnectedNode
from fedgraft.server.hello import Hello, read_hello
from fedgraft.server.sender import Outgoing, Sender

Names = Callable[[], set[str] | None]
"""The names of all admitted sites, or None where nobody keeps a list."""
ReadHello = Callable[[RecordDict, str], Hello]
"""What a site's greeting says, given the name that its key was admitted under; raises ValueError if it is no use."""


@dataclass(frozen=True)
class Greeting:
    """The sites of a deployed run, or what is new since the last look.

    Attributes:
        numbers: the number of every site by name, including those that took part before and have not connected.
        hellos: what each newly greeted site says about itself, by name.
        refused: why other sites do not take part.
        returned: the numbers of known sites that have connected again.
    """

    numbers: dict[str, int]
    hellos: dict[str, Hello]
    refused: list[str]
    returned: list[int] = field(default_factory=list)


class Reception:
    """Greets the nodes of a deployed run without waiting for them.

    Args:
        content: of the greeting.
        count: how many sites the run has.
        numbers: of sites that took part before, by name.
        read: reads a site's greeting.
    """

    def __init__(
        self,
        sender: Sender,
        content: RecordDict,
        count: int,
        numbers: dict[str, int],
        read: ReadHello = read_hello,
    ) -> None:
        self._sender, self._content, self._count, self._read = sender, content, count, read
        self.numbers = dict(numbers)
        self._seen: dict[int, ConnectedNode] = {}
        self._waiting: dict[int, Outgoing] = {}
        self._present: dict[str, Hello] = {}
        self._refused: dict[int, str] = {}

    @property
    def answered(self) -> int:
        """How many nodes have said who they are, or why they do not take part."""
        return len(self._present) + len(self._refused)

    @property
    def present(self) -> set[str]:
        """The names of the sites that take part."""
        return set(self._present)

    @property
    def heard(self) -> set[str]:
        """The names of the sites that have answered, whether or not they take part."""
        return self.present | {self._seen[node].name for node in self._refused if node in self._seen}

    def look(self) -> Greeting:
        """Greet nodes that have connected, and take the answers that have come; new sites get no numbers yet."""
        connected = self._sender.connected()
        came = {node for node, known in connected.items() if self._seen.get(node) != known}
        self._seen = connected
        nodes = {hello.node: name for name, hello in self._present.items()}
        returned = [self.numbers[nodes[node]] for node in sorted(came) if nodes.get(node) in self.numbers]
        self._ask(came - set(nodes))
        self._sender.look(self._waiting.values())
        hellos, refused = {}, []
        for node in sorted(node for node, outgoing in self._waiting.items() if outgoing.reply is not None):
            reply = self._waiting.pop(node).reply
            assert reply is not None
            try:
                hello = self._receive(node, reply)
                self._refused.pop(node, None)
            except ValueError as reason:
                refused.append(str(reason))
                self._refused[node] = str(reason)
                continue
            if self._present.get(hello.name, hello).node == node and node in nodes:
                returned.append(self.numbers[hello.name])
            self._present[hello.name] = hellos[hello.name] = hello
        return Greeting(self.numbers, hellos, refused, returned)

    def number(self, hellos: Iterable[str]) -> list[str]:
        """Give new sites free numbers in the order of their names; those that are left over do not take part."""
        refused = []
        free = iter(sorted(set(range(self._count)) - set(self.numbers.values())))
        for name in sorted(set(hellos) - set(self.numbers)):
            if (number := next(free, None)) is None:
                refused.append(f"the run has {self._count} sites already, and {name!r} is one too many")
                self._refused[self._present.pop(name).node] = refused[-1]
            else:
                self.numbers[name] = number
        return refused

    def absence(self, number: int) -> str:
        """Why nobody has a number: the refusal of its site or, where it is free, of a site that has no number."""
        known = {taken: name for name, taken in self.numbers.items()}
        refusals = [(self._seen[node].name, why) for node, why in sorted(self._refused.items()) if node in self._seen]
        if number in known:
            name = known[number]
            said = [why.removeprefix(f"{name!r}: ") for refused, why in refusals if refused == name]
        else:
            free = [one for one in range(self._count) if one not in known]
            said = [why for name, why in refusals if name not in self.numbers][free.index(number) :]
        return f"it does not take part: {said[0]}" if said else "it is not connected"

    def ask_again(self, node: int) -> None:
        """Greet a site that did not answer; `look` reports it as returned once it answers."""
        self._ask({node} - set(self._waiting))

    def name_of(self, node: int) -> str | None:
        """The name of a site that takes part."""
        return next((name for name, hello in self._present.items() if hello.node == node), None)

    def successor(self, node: int) -> int:
        """The connected node with the newest key of the same site, or the node itself."""
        name, connected = self.name_of(node), self._sender.connected()
        same = [other for other, known in connected.items() if known.name and known.name == name]
        return max(same, key=lambda other: connected[other].registered, default=node)

    def _ask(self, nodes: Iterable[int]) -> None:
        asked = sorted(nodes)
        queries = [Message(self._content, dst_node_id=node, message_type=MessageType.QUERY) for node in asked]
        self._waiting.update(zip(asked, self._sender.post(queries), strict=True))

    def _receive(self, node: int, reply: Message) -> Hello:
        """What a node says about itself; raises ValueError with a reason why it does not take part."""
        registered = self._seen.get(node, ConnectedNode())
        who = f"{registered.name!r}: " if registered.name else ""
        if reply.has_error():
            raise ValueError(f"{who}{plain(reply.error.reason)}")
        try:
            hello = replace(self._read(reply.content, registered.name), node=node)
        except ValueError as error:
            raise ValueError(f"{who}{error}") from error
        other = self._present.get(hello.name)
        if other is None or other.node == node or other.node not in self._seen:
            return hello
        if registered.name and registered.registered > self._seen[other.node].registered:
            return hello  # the site's newer key
        raise ValueError(
            f"{hello.name!r}: another site of this name takes part; rename one of them in its site.toml"
            if not registered.name
            else f"{hello.name!r}: it is connected with a newer key as well"
        )
