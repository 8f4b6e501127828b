"""Worker processes on this machine: they start while the server is still preparing the run, and outlive it.

Flower's own engine starts Ray and its actors for every run, and each actor imports torch again. Here one process
imports it once, and the workers are forked from it. They run the same ClientApp, on the same nodes with the same sites,
behind a grid that passes messages to them, so a run has the same metrics as on Ray.
"""

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import forkserver
from types import TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, RecordDict

from fedgraft.flower.internals import SUPERLINK_NODE_ID, identify, message_bytes, message_from_bytes, set_message_id
from fedgraft.server.coordinator import Coordinator
from fedgraft.simulation.engine import Resources, interrupt_calls, node_count

_RUN = 1
_WORKER_ENDED = 102
_PRELOADED = ["fedgraft.client.tasks", "fedgraft.client.app", "fedgraft.client.loaded_run"]


class LocalEngine:
    """Runs coordinators one after another on the same processes; as a context manager, it ends them."""

    def __init__(self, resources: Resources) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()  # imports what workers need while this process continues
        gpus = _gpu_count()
        self._processes = ProcessPoolExecutor(
            resources.workers or gpus or resources.cpu_workers(),
            context,
            initializer=_begin,
            initargs=(resources.cpus_per_worker, gpus, context.Value("i", 0)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._processes.shutdown(cancel_futures=True)

    def run(self, coordinator: Coordinator) -> None:
        """Run a coordinator on a grid of the worker processes."""
        identify(_RUN, SUPERLINK_NODE_ID)
        with interrupt_calls(coordinator.stop):
            coordinator.run(LocalGrid(self._processes, node_count(coordinator.config.sites)))


class LocalGrid:
    """Nodes 1 to `nodes`, each with its share of the sites; any process may answer their messages."""

    def __init__(self, processes: ProcessPoolExecutor, nodes: int) -> None:
        self._processes, self._nodes = processes, nodes
        self._waiting: dict[str, tuple[Message, Future[bytes]]] = {}

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return range(1, self._nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass each message to the next free process."""
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            set_message_id(message, identifier)
            future = self._processes.submit(_answer, message_bytes(message), message.metadata.dst_node_id, self._nodes)
            self._waiting[identifier] = (message, future)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies received so far."""
        done = [identifier for identifier in message_ids if self._waiting[identifier][1].done()]
        return [self._reply(*self._waiting.pop(identifier)) for identifier in done]

    def _reply(self, message: Message, future: Future[bytes]) -> Message:
        if error := future.exception():
            return Message(Error(_WORKER_ENDED, f"its worker failed: {error}"), reply_to=message)
        return message_from_bytes(future.result())


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


# --- in a worker ------------------------------------------------------------------------------------------------


def _begin(threads: int, gpus: int, started: Any) -> None:
    """Set up a worker: only the parent handles Ctrl-C, and a worker ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if gpus:  # before CUDA is initialized in this process
        with started.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = _device(started.value % gpus)
            started.value += 1
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _device(number: int) -> str:
    """The name of one of the GPUs visible to the parent."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _answer(data: bytes, node: int, nodes: int) -> bytes:
    from fedgraft.client.app import app

    identify(_RUN, node)
    place: dict[str, Any] = {"partition-id": node - 1, "num-partitions": nodes}
    context = Context(run_id=_RUN, node_id=node, node_config=place, state=RecordDict(), run_config={})
    return message_bytes(app(message_from_bytes(data), context))
