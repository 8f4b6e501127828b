"""A message whose answer was lost is sent again, and one that is only slow is not forgotten."""

import threading
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.flower.internals import LOST_CODES
from fedgraft.server.sender import Sender
from fedgraft.testing.grids import FakeGrid, Said

ANSWER = RecordDict({"answer": ConfigRecord({"is": 1})})


class ScriptedGrid(FakeGrid):
    """Answers the n-th sending of a message with the n-th of its answers; None is silence, the last one repeats."""

    def __init__(self, *answers: Said) -> None:
        super().__init__([7])
        self.answers = answers
        self.there: list[bool] = []
        """Whether the node is there at the next looks; always behind the last."""

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes if not self.there or self.there.pop(0) else []

    def said(self, message: Message) -> Said:
        return self.answers[min(len(self.pushed), len(self.answers)) - 1]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause sets the monotonic clock forward by a tenth of a second."""
    now = [0.0]
    monkeypatch.setattr("fedgraft.server.sender.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Sender, "pause", lambda self, seconds=0.1: now.__setitem__(0, now[0] + 0.1))


def _reply(grid: FakeGrid, answer_seconds: float = 20.0, resend_seconds: float | None = None) -> Message | None:
    message = Message(RecordDict({"job": ConfigRecord({})}), dst_node_id=7, message_type=MessageType.TRAIN)
    (reply,) = Sender(grid, threading.Event(), answer_seconds, resend_seconds)([message])
    return reply


@pytest.mark.parametrize("code", sorted(LOST_CODES))
def test_a_site_that_was_lost_gets_its_message_again_once_it_is_back(code: int) -> None:
    grid = ScriptedGrid(Error(code, "lost"), ANSWER)
    grid.there = [False, False, True]
    reply = _reply(grid)
    assert reply is not None
    assert reply.content == ANSWER
    assert len(grid.pushed) == 2
    assert grid.there == []


def test_where_nothing_is_reported_the_message_is_sent_again_after_a_time_that_doubles() -> None:
    grid = ScriptedGrid(None, None, ANSWER)
    assert _reply(grid, resend_seconds=0.05) is not None
    assert len(grid.pushed) == 3
    silent = ScriptedGrid(None)
    assert _reply(silent, answer_seconds=100, resend_seconds=10) is None
    assert len(silent.pushed) == 4  # at once, after 10, 30 and 70 seconds; the next would be after 150


def test_without_that_time_a_message_is_sent_once() -> None:
    grid = ScriptedGrid(None)
    assert _reply(grid, answer_seconds=0.5) is None
    assert len(grid.pushed) == 1


def test_an_answer_to_the_first_of_two_sendings_counts() -> None:
    class Late(ScriptedGrid):
        def said(self, message: Message) -> Said:
            if len(self.pushed) == 2:
                self.reply(self.pushed[0], ANSWER)
            return None

    reply = _reply(Late(), resend_seconds=0.05)
    assert reply is not None
    assert reply.content == ANSWER
    assert reply.metadata.reply_to_message_id == "0"


def test_what_the_site_itself_says_is_final() -> None:
    grid = ScriptedGrid(Error(100, "another backbone"), ANSWER)
    reply = _reply(grid, resend_seconds=0.05)
    assert reply is not None
    assert reply.error.reason == "another backbone"
    assert len(grid.pushed) == 1


def test_messages_that_the_superlink_does_not_take_end_the_run() -> None:
    class Full(ScriptedGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            return []

    with pytest.raises(RunFailed, match="larger than the SuperLink accepts"):
        _reply(Full(ANSWER))


def test_a_clock_that_jumps_neither_ends_nor_repeats_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting goes by the monotonic clock: the time of day may be set forth or back in the middle of it."""
    jumps = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr("time.time", lambda: 1.7e9 + (-1) ** next(jumps) * next(jumps))
    grid = ScriptedGrid(None)
    assert _reply(grid, answer_seconds=0.4, resend_seconds=30) is None
    assert len(grid.pushed) == 1


# --- nodes that connect again, or give way to others ----------------------------------------------------------------


class Reconnecting(ScriptedGrid):
    """A SuperLink's grid, whose node has connected again some looks after the message was sent."""

    looks = 0

    def get_nodes(self) -> Iterable[SimpleNamespace]:
        self.looks += 1
        since = "1" if self.looks < 3 else "2"
        return [SimpleNamespace(node_id=7, name="north", registered_at="1", last_activated_at=since)]


def test_a_message_that_a_restarted_node_has_forgotten_is_sent_again_at_once() -> None:
    grid = Reconnecting(None, ANSWER)
    reply = _reply(grid, resend_seconds=1000.0)
    assert reply is not None
    assert len(grid.pushed) == 2


def test_a_message_goes_to_the_node_that_takes_a_nodes_place() -> None:
    class Replaced(ScriptedGrid):
        def said(self, message: Message) -> Said:
            return ANSWER if message.metadata.dst_node_id == 9 else None

    grid = Replaced(None)
    grid.nodes = [7, 9]
    sender = Sender(grid, threading.Event(), 20.0)
    sender.successor = lambda node: 9
    message = Message(RecordDict({"job": ConfigRecord({})}), dst_node_id=7, message_type=MessageType.TRAIN)
    (reply,) = sender([message])
    assert reply is not None
    assert [sent.metadata.dst_node_id for sent in grid.pushed] == [7, 9]


def test_a_node_that_will_never_answer_is_not_waited_for() -> None:
    grid = ScriptedGrid(None)
    sender = Sender(grid, threading.Event(), 10**9)
    sender.successor = lambda node: None
    message = Message(RecordDict({"job": ConfigRecord({})}), dst_node_id=7, message_type=MessageType.TRAIN)
    assert sender([message]) == [None]
