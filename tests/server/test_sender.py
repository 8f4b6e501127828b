"""A message whose answer was lost is sent again, and one that is only slow is not forgotten."""

import threading
from collections.abc import Iterable
from typing import cast

import pytest
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.core.errors import RunFailed
from fedgraft.server.sender import Delivery

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
ANSWER = RecordDict({"answer": ConfigRecord({"is": 1})})


class ScriptedGrid:
    """Answers the n-th sending of a message with the n-th of its answers; None is silence, the last one repeats."""

    def __init__(self, *answers: RecordDict | Error | None, takes: bool = True) -> None:
        self.answers, self.takes = answers, takes
        self.sent: list[Message] = []
        self.there: list[bool] = []
        self._replies: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        return [7] if not self.there or self.there.pop(0) else []

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        if not self.takes:
            return []
        names: list[str | None] = []
        for message in messages:
            answer = self.answers[min(len(self.sent), len(self.answers) - 1)]
            name = str(len(self.sent))
            self.sent.append(message)
            names.append(name)
            if answer is not None:
                reply = Message(answer, reply_to=message)
                reply.metadata.__dict__["_reply_to_message_id"] = name
                self._replies[name] = reply
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        return [self._replies.pop(name) for name in names if name in self._replies]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock; a pause sets it forward by a tenth of a second."""
    now = [0.0]
    monkeypatch.setattr("fedgraft.server.sender.time.monotonic", lambda: now[0])
    monkeypatch.setattr(Delivery, "pause", lambda self: now.__setitem__(0, now[0] + 0.1))
    return now


def _reply(grid: ScriptedGrid, answer_seconds: float = 20.0, resend_seconds: float | None = None) -> Message | None:
    message = Message(RecordDict({"job": ConfigRecord({})}), dst_node_id=7, message_type=MessageType.TRAIN)
    (reply,) = Delivery(cast(Grid, grid), threading.Event(), answer_seconds, resend_seconds)([message])
    return reply


@pytest.mark.parametrize("code", [ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED])
def test_a_site_that_was_lost_gets_its_message_again_once_it_is_back(code: int) -> None:
    grid = ScriptedGrid(Error(code, "lost"), ANSWER)
    grid.there = [False, False, True]
    reply = _reply(grid)
    assert reply is not None
    assert reply.content == ANSWER
    assert len(grid.sent) == 2
    assert grid.there == []


def test_where_nothing_is_reported_the_message_is_sent_again_after_a_time_that_doubles() -> None:
    grid = ScriptedGrid(None, None, ANSWER)
    assert _reply(grid, resend_seconds=0.05) is not None
    assert len(grid.sent) == 3
    silent = ScriptedGrid(None)
    assert _reply(silent, answer_seconds=100, resend_seconds=10) is None
    assert len(silent.sent) == 4  # at once, after 10, 30 and 70 seconds; the next would be after 150


def test_without_that_time_a_message_is_sent_once() -> None:
    grid = ScriptedGrid(None)
    assert _reply(grid, answer_seconds=0.5) is None
    assert len(grid.sent) == 1


def test_an_answer_to_the_first_of_two_sendings_counts() -> None:
    grid = ScriptedGrid(None, None)
    pushed = grid.push_messages

    def push(messages: Iterable[Message]) -> list[str | None]:
        names = pushed(messages)
        if len(grid.sent) == 2:
            first = Message(ANSWER, reply_to=grid.sent[0])
            first.metadata.__dict__["_reply_to_message_id"] = "0"
            grid._replies["0"] = first
        return names

    grid.push_messages = push  # type: ignore[method-assign]
    reply = _reply(grid, resend_seconds=0.05)
    assert reply is not None
    assert reply.content == ANSWER


def test_what_the_site_itself_says_is_final() -> None:
    grid = ScriptedGrid(Error(100, "another backbone"), ANSWER)
    reply = _reply(grid, resend_seconds=0.05)
    assert reply is not None
    assert reply.error.reason == "another backbone"
    assert len(grid.sent) == 1


def test_messages_that_the_superlink_does_not_take_end_the_run() -> None:
    with pytest.raises(RunFailed, match="larger than the SuperLink takes"):
        _reply(ScriptedGrid(ANSWER, takes=False))


def test_a_clock_that_jumps_neither_ends_nor_repeats_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting goes by the monotonic clock: the time of day may be set forth or back in the middle of it."""
    jumps = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr("time.time", lambda: 1.7e9 + (-1) ** next(jumps) * next(jumps))
    grid = ScriptedGrid(None)
    grid.there = []
    assert _reply(grid, answer_seconds=0.4, resend_seconds=30) is None
    assert len(grid.sent) == 1
