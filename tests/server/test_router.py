"""Sites are addressed one by one, whatever node holds them; what one site lacks the others of its node keep."""

import threading
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.core.errors import RunFailed
from fedgraft.flower.messages import (
    HELLO,
    JOB,
    METRICS,
    SHARED,
    SITES,
    for_sites,
    from_array_record,
    pack,
    sites_of,
    to_array_record,
    unpack,
)
from fedgraft.server.sender import Delivery
from fedgraft.server.router import Exchange, Greeting

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class TwoNodes:
    """Nodes 70 and 71 hold the even and the odd sites; each site answers with its own number."""

    def __init__(self, held: dict[int, list[int]], failing: int | None = None) -> None:
        self.held, self.failing = held, failing
        self.contents: list[RecordDict] = []
        self._replies: dict[str, tuple[Message, RecordDict | str]] = {}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.held)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            name = str(len(self._replies))
            self._replies[name] = (message, self._answer(message))
            names.append(name)
        return names

    def _answer(self, message: Message) -> RecordDict:
        if message.metadata.message_type == MessageType.QUERY:
            return for_sites(RecordDict(), self.held[message.metadata.dst_node_id])
        self.contents.append(message.content)
        return pack(
            {
                site: "disk full" if site == self.failing else RecordDict({METRICS: MetricRecord({"site": site})})
                for site in sites_of(message.content)
            }
        )

    def pull_messages(self, waiting: Iterable[str]) -> list[Message]:
        replies = []
        for name in waiting:
            message, content = self._replies[name]
            reply = Message(content, reply_to=message)
            reply.metadata.__dict__["_reply_to_message_id"] = name
            replies.append(reply)
        return replies


class NamedNodes(TwoNodes):
    """Each node is a site with a name, or refuses with a reason, or is silent."""

    def __init__(self, says: dict[int, str | Error | None]) -> None:
        super().__init__({node: [] for node in says})
        self._says = says

    def _answer(self, message: Message) -> RecordDict | Error:
        if message.metadata.message_type != MessageType.QUERY:
            return super()._answer(message)
        said = self._says[message.metadata.dst_node_id]
        if isinstance(said, Error):
            return said
        return RecordDict({HELLO: ConfigRecord({"name": said})} if said else {SITES: MetricRecord({SITES: [0]})})


def _exchange_over(grid: TwoNodes, answer_seconds: float = 60.0) -> Exchange:
    return Exchange(Delivery(cast(Grid, grid), threading.Event(), answer_seconds))


def _greet(says: dict[int, str | Error | None], count: int, known: dict[str, int]) -> tuple[Exchange, Greeting]:
    exchange = _exchange_over(NamedNodes(says), answer_seconds=1)
    return exchange, exchange.greet(RecordDict(), count, known)


def test_named_sites_get_numbers_in_the_order_of_their_names_and_keep_them() -> None:
    _, first = _greet({7: "west", 8: "north"}, 2, {})
    assert first.numbers == {"north": 0, "west": 1}
    _, later = _greet({5: "east", 8: "west"}, 3, dict(first.numbers))
    assert later.numbers == {"north": 0, "west": 1, "east": 2}
    assert later.hellos.keys() == {"west", "east"}


def test_a_site_that_refuses_or_is_no_site_is_left_out_with_its_reason() -> None:
    exchange, greeting = _greet({7: "north", 8: Error(100, "another backbone"), 9: None}, 3, {})
    assert greeting.numbers == {"north": 0}
    assert [reason[:16] for reason in greeting.refused] == ["another backbone", "it was not start"]
    messages = [
        Message(RecordDict({JOB: ConfigRecord({})}), dst_node_id=site, message_type=MessageType.TRAIN)
        for site in (0, 1)
    ]
    replies = {reply.metadata.src_node_id: reply for reply in exchange(messages)}
    assert not replies[0].has_error()
    assert replies[1].error.reason == "it is not there"


def test_a_site_that_does_not_come_is_not_waited_for_longer_than_for_an_answer() -> None:
    _, greeting = _greet({7: "north"}, 2, {})
    assert greeting.numbers == {"north": 0}


def test_two_sites_of_one_name_and_one_site_too_many_end_the_run() -> None:
    with pytest.raises(RunFailed, match="Two sites have the name 'north'"):
        _greet({7: "north", 8: "north"}, 2, {})
    with pytest.raises(RunFailed, match="'east' is one too many"):
        _greet({7: "north", 8: "east"}, 2, {"north": 0, "west": 1})


def test_an_answer_that_does_not_come_in_time_is_none() -> None:
    exchange, _ = _greet({7: "north"}, 1, {})
    grid = cast(NamedNodes, exchange._deliver._grid)
    grid.pull_messages = lambda waiting: []  # type: ignore[method-assign]
    message = Message(RecordDict({JOB: ConfigRecord({})}), dst_node_id=0, message_type=MessageType.TRAIN)
    assert exchange([message]) == []


def _exchange(grid: TwoNodes, sites: int) -> Exchange:
    exchange = _exchange_over(grid)
    exchange.hello(RecordDict(), sites)
    return exchange


def _messages(sites: Iterable[int], value: float = 0.0) -> list[Message]:
    content = RecordDict(
        {JOB: ConfigRecord({"round": 1}), SHARED: to_array_record({"a": np.full(2, value, np.float32)})}
    )
    return [Message(content, dst_node_id=site, message_type=MessageType.TRAIN) for site in sites]


def test_each_site_answers_for_itself_and_a_content_travels_once_a_node() -> None:
    grid = TwoNodes({70: [0, 2], 71: [1, 3]})
    replies = _exchange(grid, 4)(_messages([0, 1, 2]))
    assert {r.metadata.src_node_id: r.content.metric_records[METRICS]["site"] for r in replies} == {0: 0, 1: 1, 2: 2}
    assert sorted(tuple(sites_of(content)) for content in grid.contents) == [(0, 2), (1,)]


def test_sites_of_a_node_with_other_contents_get_messages_of_their_own() -> None:
    grid = TwoNodes({70: [0, 1]})
    _exchange(grid, 2)([*_messages([0], 1.0), *_messages([1], 2.0)])
    got = {sites_of(c)[0]: from_array_record(c.array_records[SHARED])["a"][0] for c in grid.contents}
    assert got == {0: 1.0, 1: 2.0}


def test_a_failed_site_is_named_and_its_neighbour_counts() -> None:
    replies = {r.metadata.src_node_id: r for r in _exchange(TwoNodes({70: [0, 1]}, failing=1), 2)(_messages([0, 1]))}
    assert not replies[0].has_error()
    assert replies[1].error.reason == "disk full"


@pytest.mark.parametrize("held", [{70: [0], 71: [0]}, {70: [0], 71: [5]}])
def test_a_site_twice_or_unknown_is_refused(held: dict[int, list[int]]) -> None:
    with pytest.raises(RunFailed, match="must be there once"):
        _exchange(TwoNodes(held), 2)


def test_a_wait_ends_when_the_run_is_stopped() -> None:
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(RunFailed, match="stopped"):
        Exchange(Delivery(cast(Grid, TwoNodes({})), stopping)).hello(RecordDict(), 1)


def test_what_is_packed_comes_out() -> None:
    answers: dict[int, Any] = {3: RecordDict({METRICS: MetricRecord({"loss": 0.5})}), 12: "no space"}
    out = unpack(pack(answers))
    assert out[12] == "no space"
    assert cast(RecordDict, out[3]).metric_records[METRICS]["loss"] == 0.5


def test_an_error_of_the_node_is_one_of_each_site() -> None:
    from fedgraft.server.router import _split

    message, other = _messages([0, 1])
    replies = _split(Message(Error(100, "no backbone"), reply_to=message), [message, other])
    assert [(r.metadata.src_node_id, r.error.reason) for r in replies] == [(0, "no backbone"), (1, "no backbone")]
