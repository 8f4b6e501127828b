"""The nodes that a SuperLink knows, their keys, and how it is told that the link is gone."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedgraft.core.errors import RunFailed


@dataclass(frozen=True)
class ConnectedNode:
    """What a SuperLink knows about a node that is connected.

    Attributes:
        name: under which the operator registered the node's key; "" where nodes have no registered keys.
        registered: when that was; sorts by time.
        since: when the node connected last; "" where that is not known.
    """

    name: str = ""
    registered: str = ""
    since: str = ""


def connected_nodes(grid: Any) -> dict[int, ConnectedNode]:
    """The connected nodes of a grid; only that of a SuperLink knows more than their numbers."""
    if not hasattr(grid, "get_nodes"):
        return {int(node): ConnectedNode() for node in grid.get_node_ids()}
    return {
        int(node.node_id): ConnectedNode(node.name, node.registered_at, node.last_activated_at)
        for node in grid.get_nodes()
    }


@dataclass(frozen=True)
class RegisteredNode:
    """A node as a SuperLink's operator sees it.

    Attributes:
        key: its public key, PEM.
        connected: whether it is connected or has ever been.
    """

    node: int
    name: str
    key: bytes
    connected: bool


class NodeRegistry:
    """The nodes that a SuperLink admits, through its control interface; a context manager.

    Args:
        address: HOST:PORT of the SuperLink.
        authority: PEM file that verifies it.
        headers: sent with every request.

    Raises:
        RunFailed: by every method, if the SuperLink does not answer or refuses.
    """

    def __init__(self, address: str, authority: str, headers: dict[str, str]) -> None:
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self._client = ControlHttpClient(
            f"https://{address}",
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            verify=ssl.create_default_context(cafile=authority),
        )
        self._client._client.headers.update(headers)

    def __enter__(self) -> "NodeRegistry":
        return self

    def __exit__(self, *raised: object) -> None:
        self._client.close()

    def nodes(self) -> list[RegisteredNode]:
        """All nodes that are registered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with _answered():
            known = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            RegisteredNode(int(node.node_id), node.name, bytes(node.public_key), bool(node.last_activated_at))
            for node in known
            if not node.unregistered_at
        ]

    def register(self, key: bytes, name: str) -> None:
        """Register a public key, PEM; one that was unregistered is refused for ever."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with _answered():
            self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def unregister(self, node: int) -> None:
        """Unregister a node, so that the SuperLink speaks with it no more."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with _answered():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))


@contextmanager
def _answered() -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise RunFailed(f"The SuperLink refuses: {error.response.text.strip()}") from error
    except httpx.HTTPError as error:
        raise RunFailed(f"The SuperLink does not answer: {error}.") from error


def is_lost_server(error: Exception) -> bool:
    """Whether an error in a ServerApp means that its SuperLink has ended, or has been started again since."""
    import httpx

    return isinstance(error, httpx.HTTPError)
