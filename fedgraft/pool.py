"""Worker processes that outlive a run, for many short runs on this machine one after another.

Flower's engine starts Ray and its actors for every run, and each actor imports torch and loads the backbone again. A
comparison of many runs keeps its workers instead: the same ClientApp, on the same nodes with the same sites, behind a
grid that hands messages to a process pool. So its runs have the metrics that they have on Ray.
"""

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.engine import interrupt_calls, node_count
from fedgraft.errors import UserError
from fedgraft.server.coordinator import Coordinator

_RUN = 1
_WORKER_ENDED = 102


class Pool:
    """Runs coordinators one after another on the same processes; a context manager that ends them.

    Args:
        workers: processes; as many as there are CPUs unless given. Their number does not change any result.

    Raises:
        UserError: there is to be none.
    """

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"There is at least 1 worker, not {workers}.")
        self._workers = workers or os.cpu_count() or 1
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)

    def run(self, coordinator: Coordinator) -> None:
        """Run a coordinator on a grid of the pool's processes, which start with the first one."""
        if self._processes is None:
            spawn = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(self._workers, spawn, initializer=_begin)
        _identify(SUPERLINK_NODE_ID)
        with interrupt_calls(coordinator.stop):
            coordinator.run(PoolGrid(self._processes, node_count(coordinator.config.sites)))


class PoolGrid(Grid):
    """Nodes 1 to `nodes`, whose messages any of the processes answers.

    Args:
        processes: what answers.
        nodes: number of nodes, each with its share of the sites.
    """

    def __init__(self, processes: ProcessPoolExecutor, nodes: int) -> None:
        self._processes, self._nodes = processes, nodes
        self._waiting: dict[str, tuple[Message, Future[bytes]]] = {}

    def set_run(self, run: Any) -> None:
        """There is one run at a time."""

    @property
    def run(self) -> Any:
        """A grid must have it, and nothing here asks for it."""
        raise NotImplementedError("a pool's runs are not Flower's")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """A grid must have it; messages are made by their constructor."""
        raise NotImplementedError("make messages by their constructor")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """A grid must have it; `fedgraft.server.delivery` pushes and pulls itself."""
        raise NotImplementedError("push and pull messages apart")

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return range(1, self._nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand each message to the next process that is free."""
        identifiers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = identifier = uuid.uuid4().hex
            data = message_to_proto(message).SerializeToString()
            self._waiting[identifier] = (
                message,
                self._processes.submit(_answer, data, message.metadata.dst_node_id, self._nodes),
            )
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come."""
        done = [identifier for identifier in message_ids if self._waiting[identifier][1].done()]
        return [self._reply(*self._waiting.pop(identifier)) for identifier in done]

    def _reply(self, message: Message, future: Future[bytes]) -> Message:
        if error := future.exception():
            return Message(Error(_WORKER_ENDED, f"its worker failed: {error}"), reply_to=message)
        return message_from_proto(ProtoMessage.FromString(future.result()))


# --- in a worker ------------------------------------------------------------------------------------------------


def _begin() -> None:
    """The parent alone hears Ctrl-C, and a worker does not outlive it, however the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(data: bytes, node: int, nodes: int) -> bytes:
    from fedgraft.client.app import app

    _identify(node)
    message = message_from_proto(ProtoMessage.FromString(data))
    place: dict[str, Any] = {"partition-id": node - 1, "num-partitions": nodes}
    context = Context(run_id=_RUN, node_id=node, node_config=place, state=RecordDict(), run_config={})
    reply: bytes = message_to_proto(app(message, context)).SerializeToString()
    return reply


def _identify(node: int) -> None:
    """Flower's messages name who sends them; its engines set the same."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN, node
