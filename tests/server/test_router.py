"""Sites are addressed one by one, whatever node holds them; what one site lacks the others of its node keep."""

import threading
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.flower.messages import (
    HELLO,
    JOB,
    METRICS,
    SHARED,
    SITES,
    for_sites,
    pack,
    sites_of,
    to_array_record,
)
from fedgraft.server.greeting import Greeting
from fedgraft.server.router import Reply, Router
from fedgraft.server.sender import Sender
from fedgraft.testing.grids import FakeGrid, Said

CONTENT = RecordDict({JOB: ConfigRecord({"round": 1}), SHARED: to_array_record({"a": np.full(2, 0.5, np.float32)})})


class Nodes(FakeGrid):
    """Each node holds some sites, and each site answers with its own number.

    Args:
        failing: a site that answers with a reason instead.
    """

    def __init__(self, held: dict[int, list[int]], failing: int | None = None) -> None:
        super().__init__(held)
        self.held, self.failing = held, failing

    def said(self, message: Message) -> Said:
        if message.metadata.message_type == MessageType.QUERY:
            return for_sites(RecordDict(), self.held[message.metadata.dst_node_id])
        return pack(
            {
                site: "disk full" if site == self.failing else RecordDict({METRICS: MetricRecord({"site": site})})
                for site in sites_of(message.content)
            }
        )

    @property
    def asked(self) -> list[list[int]]:
        """The sites of each message that was no query."""
        kind = MessageType.QUERY
        return [sites_of(message.content) for message in self.pushed if message.metadata.message_type != kind]


class NamedNodes(Nodes):
    """Each node is a site with a name, or refuses with a reason, or is no site."""

    def __init__(self, says: dict[int, str | Error | None]) -> None:
        super().__init__({node: [] for node in says})
        self._says = says

    def said(self, message: Message) -> Said:
        if message.metadata.message_type != MessageType.QUERY:
            return super().said(message)
        name = self._says[message.metadata.dst_node_id]
        if isinstance(name, Error):
            return name
        return _hello(name) if name else RecordDict({SITES: MetricRecord({SITES: [0]})})


def _hello(name: str) -> RecordDict:
    return RecordDict({HELLO: ConfigRecord({"name": name, "version": "0.2.0", "fingerprint": "abc"})})


def _router(grid: FakeGrid, answer_seconds: float = 60.0) -> Router:
    return Router(Sender(grid, threading.Event(), answer_seconds))


def _found(grid: Nodes, sites: int) -> Router:
    router = _router(grid)
    router.find(RecordDict(), sites)
    return router


def _asked(router: Router, sites: Sequence[int]) -> dict[int, Reply]:
    return {reply.site: reply for reply in router.ask(MessageType.TRAIN, CONTENT, sites)}


def _greeted(says: dict[int, str | Error | None], count: int, known: dict[str, int]) -> tuple[Router, Greeting]:
    router = _router(NamedNodes(says), answer_seconds=1)
    return router, router.greet(RecordDict(), count, known)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause sets the monotonic clock forward by a second, unless the run was stopped."""
    now = [0.0]
    pause = Sender.pause

    def forward(self: Sender, seconds: float = 1.0) -> None:
        pause(self, 0.0)
        now[0] += 1.0

    monkeypatch.setattr("fedgraft.server.sender.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Sender, "pause", forward)


# --- deployed sites, which have names ------------------------------------------------------------------------------


def test_named_sites_get_numbers_in_the_order_of_their_names_and_keep_them() -> None:
    _, first = _greeted({7: "west", 8: "north"}, 2, {})
    assert first.numbers == {"north": 0, "west": 1}
    _, later = _greeted({5: "east", 8: "west"}, 3, dict(first.numbers))
    assert later.numbers == {"north": 0, "west": 1, "east": 2}
    assert later.hellos.keys() == {"west", "east"}


def test_a_site_that_refuses_or_is_no_site_is_left_out_with_its_reason() -> None:
    router, greeting = _greeted({7: "north", 8: Error(100, "another backbone"), 9: None}, 4, {})
    assert greeting.numbers == {"north": 0}
    assert [reason[:16] for reason in greeting.refused] == ["another backbone", "it was not start"]
    replies = router.ask(MessageType.TRAIN, CONTENT, [0, 1])
    assert [reply.site for reply in replies] == [0, 1]
    assert replies[0].content is not None
    assert (replies[1].content, replies[1].error) == (None, "it does not take part: another backbone")
    assert _asked(router, [2])[2].error.startswith("it does not take part: it was not started")
    assert _asked(router, [3])[3].error == "it is not connected"


def test_a_known_site_that_refuses_is_left_out_with_its_reason_and_not_its_name_twice() -> None:
    router = _router(KeyedNodes({7: "north", 8: Error(100, "another backbone")}, {7: "north", 8: "west"}), 1)
    router.greet(RecordDict(), 3, {"north": 0, "east": 1, "west": 2})
    replies = _asked(router, [0, 1, 2])
    assert replies[0].content is not None
    assert [replies[site].error for site in (1, 2)] == [
        "it is not connected",
        "it does not take part: another backbone",
    ]


def test_a_site_that_does_not_come_is_not_waited_for_longer_than_for_an_answer() -> None:
    _, greeting = _greeted({7: "north"}, 2, {})
    assert greeting.numbers == {"north": 0}


def test_two_sites_of_one_name_leave_out_the_newcomer() -> None:
    router, greeting = _greeted({7: "north", 8: "north"}, 2, {})
    assert greeting.numbers == {"north": 0}
    assert greeting.hellos["north"].node == 7
    assert greeting.refused == ["'north': another site of this name takes part; rename one of them in its site.toml"]
    assert _asked(router, [0])[0].content is not None


def test_one_site_too_many_is_left_out() -> None:
    router, greeting = _greeted({7: "north", 8: "east"}, 2, {"north": 0, "west": 1})
    assert greeting.numbers == {"north": 0, "west": 1}
    assert greeting.refused == ["the run has 2 sites already, and 'east' is one too many"]
    assert _asked(router, [0, 1])[1].error == "it is not connected"


@pytest.mark.parametrize("name", ["a/b", "a\nb", "n" * 65, "n" * 1_000_000, "..", "\x1b[31m"])
def test_a_name_that_is_not_plain_text_leaves_its_site_out(name: str) -> None:
    _, greeting = _greeted({7: name, 8: "north"}, 2, {})
    assert greeting.numbers == {"north": 0}
    (refused,) = greeting.refused
    assert refused.startswith("the name of a site has")
    assert len(refused) < 250


# --- sites that come, go and come back -----------------------------------------------------------------------------


class KeyedNodes(NamedNodes):
    """A SuperLink's grid, which knows the name that each node's key was admitted under.

    Attributes:
        keys: by node, that name.
        since: by node, when it connected last.
        silent: nodes that answer nothing.
    """

    def __init__(self, says: dict[int, str | Error | None], keys: dict[int, str] | None = None) -> None:
        super().__init__(says)
        self.keys = keys or {node: str(name) for node, name in says.items()}
        self.since = dict.fromkeys(self.keys, "1")
        self.silent: set[int] = set()

    def get_nodes(self) -> Iterable[SimpleNamespace]:
        return [
            SimpleNamespace(node_id=n, name=self.keys[n], registered_at=f"{n:03d}", last_activated_at=self.since[n])
            for n in self.nodes
        ]

    def said(self, message: Message) -> Said:
        return None if message.metadata.dst_node_id in self.silent else super().said(message)


def test_a_site_that_connects_later_gets_a_free_number_and_is_asked_from_then_on() -> None:
    grid = KeyedNodes({7: "north", 8: "west"})
    grid.nodes = [8]
    router = _router(grid, 1)
    assert router.greet(RecordDict(), 2, {}).numbers == {"west": 0}
    assert router.refresh().hellos == {}
    grid.nodes = [7, 8]
    news = router.refresh()
    assert (news.numbers, news.hellos.keys(), news.returned) == ({"west": 0, "north": 1}, {"north"}, [])
    assert all(reply.content is not None for reply in _asked(router, [0, 1]).values())


def test_looking_for_sites_sends_nothing_while_nobody_comes() -> None:
    grid = KeyedNodes({7: "north", 8: "west"})
    router = _router(grid, 1)
    router.greet(RecordDict(), 2, {})
    sent = len(grid.pushed)
    for _ in range(3):
        router.refresh()
    assert len(grid.pushed) == sent == 2


@pytest.mark.parametrize("how", ["it connects again", "it answers a greeting"])
def test_a_site_that_does_not_answer_costs_its_time_once_until_it_is_back(how: str) -> None:
    grid = KeyedNodes({7: "north", 8: "west"})
    router = _router(grid, 1)
    router.greet(RecordDict(), 2, {})
    grid.silent = {8}
    assert _asked(router, [0, 1]).keys() == {0}
    sent = len(grid.asked)
    assert _asked(router, [0, 1])[1].error == "it has not come back since it did not answer in time"
    assert len(grid.asked) == sent + 1
    assert router.refresh().returned == []
    if how == "it connects again":
        grid.since[8], grid.silent = "2", set()
    else:
        (*_, greeting) = (sent for sent in grid.pushed if sent.metadata.message_type == MessageType.QUERY)
        grid.reply(greeting, _hello("west"))
    assert router.refresh().returned == [1]
    grid.silent = set()
    assert _asked(router, [0, 1])[1].content is not None


def test_a_name_belongs_to_its_admitted_key_whatever_a_site_calls_itself() -> None:
    """An impostor does not get the number of a site that is away."""
    router = _router(KeyedNodes({8: "north"}, {8: "evil"}), 1)
    greeting = router.greet(RecordDict(), 2, {"north": 0})
    assert greeting.numbers == {"north": 0, "evil": 1}
    assert _asked(router, [0, 1])[0].error == "it is not connected"


@pytest.mark.parametrize("newer_first", [True, False])
def test_a_site_whose_key_was_exchanged_keeps_its_number_under_the_newer_one(newer_first: bool) -> None:
    grid = KeyedNodes({7: "north", 9: "north"})
    grid.nodes = [9] if newer_first else [7]
    router = _router(grid, 1)
    assert router.greet(RecordDict(), 1, {}).numbers == {"north": 0}
    grid.nodes = [7, 9]
    news = router.refresh()
    assert [hello.node for hello in news.hellos.values()] == ([] if newer_first else [9])
    _asked(router, [0])
    assert grid.pushed[-1].metadata.dst_node_id == 9


def test_a_site_that_changes_its_key_in_the_middle_of_a_round_answers_it_under_the_new_one() -> None:
    grid = KeyedNodes({7: "north", 9: "north"})
    grid.nodes = [7]
    router = _router(grid, 10**9)
    router.greet(RecordDict(), 1, {})
    grid.nodes, grid.silent = [9], {7}
    assert _asked(router, [0])[0].content is not None


def test_a_run_begins_once_all_admitted_sites_have_answered() -> None:
    grid = KeyedNodes({7: "north", 8: Error(100, "another backbone")}, {7: "north", 8: "west"})
    router = _router(grid, 10**9)
    greeting = router.greet(RecordDict(), 3, {}, admitted=lambda: {"north", "west"})
    assert greeting.numbers == {"north": 0}
    assert greeting.refused == ["'west': another backbone"]


def test_a_run_whose_sites_all_refuse_is_not_waited_for() -> None:
    refusing: dict[int, str | Error | None] = {7: Error(100, "another backbone"), 8: Error(100, "an unknown class")}
    told: list[str] = []
    router = _router(KeyedNodes(refusing, {7: "north", 8: "west"}), 10**9)
    greeting = router.greet(RecordDict(), 2, {}, admitted=lambda: {"north", "west"}, on_refused=told.append)
    assert greeting.numbers == {}
    assert told == greeting.refused == ["'north': another backbone", "'west': an unknown class"]


def test_a_resumed_run_does_not_wait_for_a_site_that_was_away() -> None:
    router = _router(KeyedNodes({7: "north"}), 10**9)
    known = {"north": 0, "west": 1}
    assert router.greet(RecordDict(), 2, known, away=["west"]).hellos.keys() == {"north"}
    greeting = router.greet(RecordDict(), 2, known, away=["west"], admitted=lambda: {"north", "west"})
    assert greeting.hellos.keys() == {"north"}


def test_a_site_that_leaves_for_good_is_waited_for_no_longer_and_comes_back_to_its_number() -> None:
    admitted = {"north", "west"}
    grid = KeyedNodes({7: "north", 8: "west"})
    router = _router(grid, 10**9)
    router.greet(RecordDict(), 2, {}, admitted=lambda: admitted)
    grid.silent = {8}
    admitted = {"north"}
    assert _asked(router, [0, 1]).keys() == {0}
    assert router.left() == [1]
    assert router.left() == []
    assert _asked(router, [0, 1])[1].error == "it is not connected"
    admitted, grid.silent = {"north", "west"}, set()
    grid._says[9], grid.keys[9], grid.since[9] = "west", "west", "2"
    grid.nodes = [7, 9]
    assert router.refresh().numbers == {"north": 0, "west": 1}
    assert _asked(router, [0, 1])[1].content is not None


# --- sites that share nodes ----------------------------------------------------------------------------------------


def test_an_answer_that_does_not_come_in_time_is_none() -> None:
    class Silent(Nodes):
        def said(self, message: Message) -> Said:
            return super().said(message) if message.metadata.message_type == MessageType.QUERY else None

    assert _found(Silent({70: [0]}), 1).ask(MessageType.TRAIN, CONTENT, [0]) == []


def test_each_site_answers_for_itself_and_a_content_travels_once_a_node() -> None:
    grid = Nodes({70: [0, 2], 71: [1, 3]})
    replies = _asked(_found(grid, 4), [0, 1, 2])
    answers = {site: reply.content.metric_records[METRICS]["site"] for site, reply in replies.items() if reply.content}
    assert answers == {0: 0, 1: 1, 2: 2}
    assert sorted(grid.asked) == [[0, 2], [1]]


def test_replies_come_in_the_order_of_the_sites_that_were_asked() -> None:
    router = _found(Nodes({70: [0, 2], 71: [1, 3]}), 4)
    assert [reply.site for reply in router.ask(MessageType.TRAIN, CONTENT, [3, 0, 1, 2])] == [3, 0, 1, 2]


def test_a_failed_site_is_named_and_its_neighbour_counts() -> None:
    replies = _asked(_found(Nodes({70: [0, 1]}, failing=1), 2), [0, 1])
    assert replies[0].content is not None
    assert replies[1] == Reply(1, error="disk full")


def test_an_error_of_the_node_is_one_of_each_site() -> None:
    class Broken(Nodes):
        def said(self, message: Message) -> Said:
            if message.metadata.message_type == MessageType.QUERY:
                return super().said(message)
            return Error(100, "no backbone")

    replies = _asked(_found(Broken({70: [0, 1]}), 2), [0, 1])
    assert replies == {0: Reply(0, error="no backbone"), 1: Reply(1, error="no backbone")}


def test_a_site_that_its_node_forgets_is_named_and_its_neighbour_counts() -> None:
    class Forgetful(Nodes):
        def said(self, message: Message) -> Said:
            if message.metadata.message_type == MessageType.QUERY:
                return super().said(message)
            return pack({0: RecordDict({METRICS: MetricRecord({"site": 0})})})

    replies = _asked(_found(Forgetful({70: [0, 1]}), 2), [0, 1])
    assert replies[0].content is not None
    assert replies[1].error == "its node did not answer for it"


@pytest.mark.parametrize("held", [{70: [0], 71: [0]}, {70: [0], 71: [5]}])
def test_a_site_twice_or_unknown_is_refused(held: dict[int, list[int]]) -> None:
    with pytest.raises(RunFailed, match="exactly once"):
        _found(Nodes(held), 2)


def test_a_node_that_does_not_say_what_it_holds_is_told_as_that() -> None:
    class Mute(Nodes):
        def said(self, message: Message) -> Said:
            return RecordDict()

    with pytest.raises(RunFailed, match="does not say which sites it holds"):
        _found(Mute({70: [0]}), 1)


def test_a_wait_ends_when_the_run_is_stopped() -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(RunFailed, match="stopped"):
        Router(Sender(Nodes({}), stopping)).find(RecordDict(), 1)
