"""A deployment without processes: the workers of real site folders behind a grid that mishandles messages by a seed.

What a network and a kill can do to a message happens here in milliseconds, so that hundreds of schedules fit into a
test: messages and replies that vanish, nodes that are away, processes that crash, copies that come too late, workers
that are started again, and a server that is killed between any two calls.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, cast

import grpc
import numpy as np
from flwr.app import Error, Message, MessageType

from fedgraft.client.worker import Worker
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.observer import Observer
from fedgraft.flower.internals import LOST_CODES, record_bytes, record_from_bytes
from fedgraft.flower.messages import SECAGG_STAGE
from fedgraft.runs.personal_state import PersonalState
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.server.preparation import prepare
from fedgraft.testing.grids import FakeGrid, Said

MISHAPS = ("lost message", "lost reply", "node away", "crash", "late copy", "new worker", "server killed")
FIRST_NODE = 70
"""The number of the first site's node."""
_KINDS = {
    MessageType.QUERY: "hello",
    MessageType.TRAIN: "train",
    SECAGG_STAGE: "secagg",
    MessageType.EVALUATE: "evaluate",
}
_SITE_FAILED, _LOST = 100, min(LOST_CODES)
Answering = Callable[[str, int, bytes], bytes]
"""Changes a site's answer to a kind of message; the number is of the site's node."""


class ServerKilled(Exception):
    """What ends the server's process in a schedule."""


class _Context:
    """What a worker answers a refusal to."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise UserError(details)


def ask(worker: Worker, kind: str, data: bytes) -> bytes:
    """A worker's answer without a socket.

    Raises:
        UserError: it refuses.
    """
    return worker.answer(kind, data, cast(grpc.ServicerContext, _Context()))


class InProcessGrid(FakeGrid):
    """Sites behind a grid of their own; a context manager that forgets their workers' folder.

    Args:
        mishaps: the chance of each of `MISHAPS` at a message.
        answering: what becomes of answers on the way, for updates that are bad.

    Attributes:
        happened: the mishaps, in their order.
    """

    def __init__(
        self, sites: Sequence[SiteFolder], seed: int, mishaps: dict[str, float], answering: Answering | None = None
    ) -> None:
        super().__init__(range(FIRST_NODE, FIRST_NODE + len(sites)))
        self._sites = dict(zip(self.nodes, sites, strict=True))
        self._rng = np.random.default_rng(seed)
        self._mishaps, self._answering = mishaps, answering
        self._folder = tempfile.TemporaryDirectory(prefix="fedgraft-")
        self._workers = {node: self._new_worker(node) for node in self.nodes}
        self._late: dict[int, tuple[str, bytes]] = {}
        self._away: dict[int, int] = {}
        self.happened: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there; one that is away comes nearer with every look."""
        self._away = {node: looks - 1 for node, looks in self._away.items() if looks > 1}
        return [node for node in self.nodes if node not in self._away]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there."""
        self._perhaps_kill_server()
        return super().pull_messages(message_ids)

    def said(self, message: Message) -> Said:
        """What becomes of a message and of its answer."""
        node, kind = message.metadata.dst_node_id, _KINDS[message.metadata.message_type]
        data = record_bytes(message.content)
        if node in self._away or self._happens("node away"):
            self._away.setdefault(node, 3)
            return Error(_LOST, "node away")
        if self._happens("new worker"):
            self._workers[node] = self._new_worker(node)
        if self._happens("lost message"):
            return None
        answer = self._ask(node, kind, data)
        if (late := self._late.pop(node, None)) is not None:
            self._ask(node, *late)  # nobody waits for this answer
        if self._happens("late copy"):
            self._late[node] = kind, data
        if self._happens("lost reply"):
            return None
        return Error(_LOST, "crash") if self._happens("crash") else answer

    def _push(self, message: Message) -> str:
        self._perhaps_kill_server()
        return super()._push(message)

    def _ask(self, node: int, kind: str, data: bytes) -> Said:
        try:
            answer = ask(self._workers[node], kind, data)
            return record_from_bytes(self._answering(kind, node, answer) if self._answering else answer)
        except UserError as refusal:
            return Error(_SITE_FAILED, str(refusal))

    def _new_worker(self, node: int) -> Worker:
        return Worker(self._sites[node], Path(self._folder.name))

    def _happens(self, mishap: str) -> bool:
        happens = bool(self._rng.random() < self._mishaps.get(mishap, 0.0))
        if happens:
            self.happened.append(mishap)
        return happens

    def _perhaps_kill_server(self) -> None:
        if self._happens("server killed"):
            raise ServerKilled


def run_to_the_end(config: RunConfig, out: Path, grid: InProcessGrid) -> dict[str, Any]:
    """Run, and go on as often as the server is killed; what summary.json holds."""
    directory = RunDirectory(out)
    while (coordinator := prepare(config, out, directory.begun, Observer())) is not None:
        try:
            coordinator.run(grid)
        except ServerKilled:
            continue
        finally:
            coordinator.directory.unlock()
    return directory.summary()


def outcome(out: Path, sites: Sequence[SiteFolder]) -> dict[str, Any]:
    """What a run has led to, to the byte: metrics, who was left out, shared parameters, and each site's own.

    Raises:
        UserError: a site's state is not whole.
    """
    directory = RunDirectory(out)
    summary, name = directory.summary(), str(directory.deployed_name())
    checkpoint = directory.checkpoints.newest(0, summary["fingerprint"])
    assert checkpoint is not None
    identity = {"method": summary["method"], "fingerprint": summary["fingerprint"]}
    states = [PersonalState(site.state / name / "000", identity) for site in sites]
    personal = [state.load(summary["rounds"]) for state in states]
    return {
        "metrics": summary["metrics"],
        "left_out": [(row["round"], row["site"]) for row in directory.rows() if row["scope"] == "left_out"],
        "shared": {name: array.tobytes() for name, array in {**checkpoint.arrays, **checkpoint.state}.items()},
        "personal": [own and {name: tensor.numpy().tobytes() for name, tensor in own.items()} for own in personal],
        "rounds": [state.rounds() for state in states],
    }
