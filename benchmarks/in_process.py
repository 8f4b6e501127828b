"""A deployment without processes: the workers of real site folders behind a grid that mishandles messages by a seed.

What a network and a kill can do to a message happens here in milliseconds, so that hundreds of schedules fit into a
test: messages and replies that vanish, nodes that are away, processes that crash, copies that come too late, workers
that are started again, and a server that is killed between any two calls.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

import grpc
import numpy as np
from flwr.app import Error, Message, MessageType
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedgraft.runs.site_folder import SiteFolder
from fedgraft.client.relay import from_bytes, to_bytes
from fedgraft.client.worker import Worker
from fedgraft.config.run_config import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.simulation.simulate import begin

MISHAPS = ("lost message", "lost reply", "node away", "crash", "late copy", "new worker", "server killed")
_KINDS = {MessageType.QUERY: "hello", MessageType.TRAIN: "train", MessageType.EVALUATE: "evaluate"}
_SITE_FAILED = 100


class ServerKilled(Exception):
    """What ends the server's process in a schedule."""


class _Refused(Exception):
    pass


class _Context:
    """What a worker answers a refusal to."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise _Refused(details)


Answering = Callable[[str, int, bytes], bytes]
"""Changes a site's answer to a kind of message; the number is of the site's node."""


class InProcessGrid:
    """Sites behind a grid of their own.

    Args:
        mishaps: the chance of each of `MISHAPS` at a message.
        answering: what becomes of answers on the way, for updates that are bad.
    """

    def __init__(
        self, sites: list[SiteFolder], seed: int, mishaps: dict[str, float], answering: Answering | None = None
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._sites = sites
        self._rng = np.random.default_rng(seed)
        self._mishaps, self._answering = mishaps, answering
        self._room = Path(tempfile.mkdtemp(prefix="fedgraft-"))
        self._workers = {node: Worker(site, self._room) for node, site in enumerate(sites, start=70)}
        self._replies: dict[str, Message] = {}
        self._late: dict[int, tuple[str, bytes]] = {}
        self._away: dict[int, int] = {}
        self._count = 0
        self.happened: list[str] = []

    def close(self) -> None:
        """Forget the sockets' folder."""
        shutil.rmtree(self._room)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are there; one that is away comes nearer with every look."""
        self._away = {node: looks - 1 for node, looks in self._away.items() if looks > 1}
        return [node for node in self._workers if node not in self._away]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand each message over, or not."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there."""
        self._perhaps_kill_server()
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def _push(self, message: Message) -> str:
        self._perhaps_kill_server()
        self._count += 1
        name, node = str(self._count), message.metadata.dst_node_id
        kind, data = _KINDS[message.metadata.message_type], to_bytes(message.content)
        if node in self._away or self._happens("node away"):
            self._away.setdefault(node, 3)
            return self._answered(name, message, Error(ErrorCode.NODE_UNAVAILABLE, "node away"))
        if self._happens("new worker"):
            self._workers[node] = Worker(self._sites[node - 70], self._room)
        if self._happens("lost message"):
            return name
        reply = self._ask(node, kind, data)
        if (late := self._late.pop(node, None)) is not None:
            self._ask(node, *late)  # nobody waits for this answer
        if self._happens("late copy"):
            self._late[node] = kind, data
        if self._happens("lost reply"):
            return name
        if self._happens("crash"):
            return self._answered(name, message, Error(ErrorCode.CLIENT_APP_CRASHED, "crash"))
        return self._answered(name, message, reply)

    def _ask(self, node: int, kind: str, data: bytes) -> Any:
        try:
            answer = self._workers[node].answer(kind, data, cast(grpc.ServicerContext, _Context()))
            return from_bytes(self._answering(kind, node, answer) if self._answering else answer)
        except _Refused as refusal:
            return Error(_SITE_FAILED, str(refusal))

    def _answered(self, name: str, message: Message, content: Any) -> str:
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = name
        self._replies[name] = reply
        return name

    def _happens(self, mishap: str) -> bool:
        happens = self._rng.random() < self._mishaps.get(mishap, 0.0)
        if happens:
            self.happened.append(mishap)
        return happens

    def _perhaps_kill_server(self) -> None:
        if self._happens("server killed"):
            raise ServerKilled


def run_to_the_end(config: RunConfig, out: Path, grid: InProcessGrid) -> dict[str, Any]:
    """Run, and go on as often as the server is killed; what summary.json holds."""
    while (coordinator := begin(config, out, (out / "config.toml").exists(), Observer())) is not None:
        try:
            coordinator.run(cast(Grid, grid))
        except ServerKilled:
            continue
        finally:
            coordinator.directory.unlock()
    return RunDirectory(out).summary()
