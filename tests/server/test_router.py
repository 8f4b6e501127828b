"""Sites are addressed one by one, whatever node holds them; what one site lacks the others of its node keep."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.flower.messages import HELLO, JOB, METRICS, SHARED, SITES, for_sites, pack, sites_of, to_array_record
from fedgraft.server.router import Greeting, Reply, Router
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
        hello = ConfigRecord({"name": name, "version": "0.2", "fingerprint": "abc"} if name else {})
        return RecordDict({HELLO: hello} if name else {SITES: MetricRecord({SITES: [0]})})


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
    router, greeting = _greeted({7: "north", 8: Error(100, "another backbone"), 9: None}, 3, {})
    assert greeting.numbers == {"north": 0}
    assert [reason[:16] for reason in greeting.refused] == ["another backbone", "it was not start"]
    replies = router.ask(MessageType.TRAIN, CONTENT, [0, 1])
    assert [reply.site for reply in replies] == [0, 1]
    assert replies[0].content is not None
    assert (replies[1].content, replies[1].error) == (None, "it is not connected")


def test_a_site_that_does_not_come_is_not_waited_for_longer_than_for_an_answer() -> None:
    _, greeting = _greeted({7: "north"}, 2, {})
    assert greeting.numbers == {"north": 0}


def test_two_sites_of_one_name_and_one_site_too_many_end_the_run() -> None:
    with pytest.raises(RunFailed, match="Two sites are named 'north'"):
        _greeted({7: "north", 8: "north"}, 2, {})
    with pytest.raises(RunFailed, match="'east' is one too many"):
        _greeted({7: "north", 8: "east"}, 2, {"north": 0, "west": 1})


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
