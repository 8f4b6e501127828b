"""The only module that imports Flower's unstable internals: `flwr.common`, `flwr.proto`, `flwr.super*`.

tests/flower/test_internals.py names what breaks here when Flower moves something. Heavy parts are imported when used.
"""

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from fedgraft.core.errors import RunFailed

__all__ = ["LOST_CODES", "SUPERLINK_NODE_ID"]

LOST_CODES = frozenset(
    {
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    }
)
"""Errors that Flower returns in place of a site that may still be there, or come back."""
UNREADABLE = 101
"""Error code of a reply that cannot be read; Flower's own codes are lower."""
COMMANDS = {
    "flwr": "flwr.cli.app:app",
    "flower-superlink": "flwr.superlink.cli.flower_superlink:flower_superlink",
    "flower-supernode": "flwr.supernode.cli.flower_supernode:flower_supernode",
    "flower-superexec": "flwr.supercore.cli.flower_superexec:flower_superexec",
    "flwr-clientapp": "flwr.supernode.cli.flwr_clientapp:flwr_clientapp",
    "flwr-serverapp": "flwr.superlink.cli.flwr_serverapp:flwr_serverapp",
}
RUNTIMES = {
    "flwr-clientapp": "flwr.supernode.runtime.run_clientapp",
    "flwr-serverapp": "flwr.superlink.runtime.run_serverapp",
}
"""The modules that install an app before it runs."""


def record_bytes(content: RecordDict) -> bytes:
    """A message's content for the wire."""
    data: bytes = recorddict_to_proto(content).SerializeToString()
    return data


def record_from_bytes(data: bytes) -> RecordDict:
    """A message's content from the wire."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def message_bytes(message: Message) -> bytes:
    """A whole message for the wire."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def message_from_bytes(data: bytes) -> Message:
    """A whole message from the wire."""
    return message_from_proto(ProtoMessage.FromString(data))


def set_message_id(message: Message, identifier: str) -> None:
    """Set the identifier that a message's reply refers to; Flower's own grids do so when they push it."""
    message.metadata.__dict__["_message_id"] = identifier


def identify(run: int, node: int) -> None:
    """Set the sender named in the messages of this process, as Flower's engines do."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node


def take_replies_by_envelope() -> None:
    """Let the grid of this process take a reply's sender, and what it replies to, from its envelope.

    Flower takes them from the content, which the site has written, where the SuperLink has compared only the envelope
    with the message that was sent; and a content that cannot be read raises an exception there, after other replies
    have been fetched and are lost with it. Here such a reply is an error of its site.
    """
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
    from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
    from flwr.superlink.grid.http_grid import HttpGrid

    def pulled(self: HttpGrid, message_ids: Iterable[str]) -> list[Message]:
        client, node, run = self._runtime_client, self.node, self.run.run_id
        fetch = make_pull_object_fn_protobuf(pull_object_protobuf=client.PullObject, node=node, run_id=run)
        replies = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        received = []
        for envelope, tree in zip(replies.messages_list, replies.message_object_trees, strict=True):
            metadata = message_from_proto(envelope).metadata
            try:
                objects = pull_objects([each.object_id for each in iterate_object_tree(tree)], fetch)
            except ObjectPullError as error:
                received.append(make_message(metadata, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, str(error))))
                continue
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=metadata.message_id)
            )
            received.append(_opened(metadata, objects))
        return received

    HttpGrid.pull_messages = pulled  # type: ignore[method-assign]


def _opened(metadata: Metadata, objects: dict[str, bytes]) -> Message:
    """A reply of its objects, under the metadata of its envelope; an error where they are no message."""
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    try:
        inner = inflate_object_from_contents(metadata.message_id, objects)
        if isinstance(inner, Message) and inner.has_error():
            return make_message(metadata, error=Error(int(inner.error.code), str(inner.error.reason)))
        if isinstance(inner, Message) and isinstance(inner.content, RecordDict):
            return make_message(metadata, inner.content)
    except Exception:  # whatever a site has sent, it is only its own answer that is lost
        pass
    return make_message(metadata, error=Error(UNREADABLE, "its answer cannot be read: it is no message of Flower's"))


# --- nodes and their keys -------------------------------------------------------------------------


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


def noise_deviation(noise_multiplier: float, clipping_norm: float, sampled: int) -> float:
    """Standard deviation of the noise on the mean of clipped updates."""
    from flwr.supercore.differential_privacy import compute_stdv

    return compute_stdv(noise_multiplier, clipping_norm, sampled)


def adaptive_noise(noise_multiplier: float, sampled: int, count_deviation: float) -> tuple[float, float]:
    """The count's standard deviation and the sum's multiplier that together cost as much as the given multiplier."""
    from flwr.supercore.differential_privacy import compute_adaptive_noise_params

    deviations: Any = compute_adaptive_noise_params(noise_multiplier, sampled, count_deviation)
    return float(deviations[0]), float(deviations[1])


# --- Flower's own processes, changed before they start --------------------------------------------


def show_certificate(certificate: str, key: str) -> None:
    """Let Flower's HTTP clients of this process authenticate with a client certificate, both files PEM."""
    from flwr.supercore.protobuf.client import ProtobufClient

    begin = ProtobufClient.__init__

    def initialize(self: ProtobufClient, base_url: str, *, verify: Any = True, **more: Any) -> None:
        if isinstance(verify, str):
            verify = ssl.create_default_context(cafile=verify)
        if isinstance(verify, ssl.SSLContext):
            verify.load_cert_chain(certificate, key)
        begin(self, base_url, verify=verify, **more)

    ProtobufClient.__init__ = initialize  # type: ignore[method-assign]


def add_request_header(name: str, value: str) -> None:
    """Let Flower's HTTP clients of this process send a header with every request."""
    from flwr.supercore.protobuf.client import ProtobufClient

    begin = ProtobufClient.__init__

    def initialize(self: ProtobufClient, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        self._client.headers[name] = value

    ProtobufClient.__init__ = initialize  # type: ignore[method-assign]


class MessageObserver(Protocol):
    """What wants to know what a SuperNode does."""

    def on_connected(self) -> None:
        """It asks the server for messages; called again and again."""

    def on_received(self, kind: str) -> None:
        """It has received a message."""

    def on_sending(self) -> None:
        """Its app has answered."""

    def on_answered(self) -> None:
        """The answer has been sent, or given up."""


def observe_messages(observer: MessageObserver) -> None:
    """Let a SuperNode of this process tell an observer of its messages."""
    from flwr.supernode import start_client_internal as supernode

    pull, push = supernode._pull_and_store_message, supernode._push_messages
    kinds: list[str] = []

    def pulled(**arguments: Any) -> int | None:
        receive = arguments["receive"]

        def received() -> Any:
            observer.on_connected()
            found = receive()
            if found is not None:
                kinds.append(found[0].metadata.message_type)
            return found

        run = pull(**{**arguments, "receive": received})
        if run is not None:
            observer.on_received(kinds[-1])
        kinds.clear()
        return run

    def pushed(**arguments: Any) -> None:
        send = arguments["send"]

        def sending(*given: Any) -> Any:
            observer.on_sending()
            return send(*given)

        push(**{**arguments, "send": sending})
        observer.on_answered()

    supernode._pull_and_store_message = pulled  # type: ignore[assignment]
    supernode._push_messages = pushed  # type: ignore[assignment]


def launch_tasks_with(launch: Callable[[str, list[str], str], None]) -> None:
    """Let a SuperExec of this process start tasks another way.

    Args:
        launch: from Flower's command, its arguments but for the token, and the token.
    """
    from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TASK_TYPE_TO_COMMAND
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

    def launched(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
        arguments = [TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address]
        if spec.insecure:
            arguments.append("--insecure")
        elif spec.root_certificates_path is not None:
            arguments += ["--root-certificates", spec.root_certificates_path]
        if spec.parent_pid is not None:
            arguments += ["--parent-pid", str(spec.parent_pid)]
        launch(TASK_TYPE_TO_COMMAND[spec.task_type], arguments, spec.token)
        return LaunchResult.accepted()

    SubprocessExecutor.launch = launched  # type: ignore[method-assign]


def install_apps_after(check: Callable[[bytes], None], module: str) -> None:
    """Let a process check an app, a FAB's bytes, before anything of it is unpacked.

    Args:
        check: raises an exception for an app that may not run.
        module: the one of `RUNTIMES` that installs apps in this process.
    """
    runtime = import_module(module)
    install = runtime.install_from_fab

    def checked(content: bytes, *arguments: Any, **more: Any) -> Any:
        check(content)
        return install(content, *arguments, **more)

    runtime.install_from_fab = checked  # type: ignore[attr-defined]


def observe_failures(failed: Callable[[dict[str, Any], Exception], None]) -> None:
    """Let the ServerApp's process tell why its app cannot be installed, read or loaded, or how it ends with an error.

    Args:
        failed: from the settings that the run was submitted with, and the error.
    """
    runtime: Any = import_module(RUNTIMES["flwr-serverapp"])
    settings: dict[str, Any] = {}
    read = runtime.run_from_proto

    def known(proto: Any) -> Any:
        run = read(proto)
        settings.update(run.override_config)
        return run

    def told(function: Callable[..., Any]) -> Callable[..., Any]:
        def tried(*arguments: Any, **more: Any) -> Any:
            try:
                return function(*arguments, **more)
            except Exception as error:
                failed(settings, error)
                raise

        return tried

    runtime.run_from_proto = known
    for name in ("install_from_fab", "get_fab_metadata", "get_project_config", "get_fused_config_from_dir", "run_"):
        setattr(runtime, name, told(getattr(runtime, name)))


def open_superlink_with(middleware: Any, **settings: str) -> None:
    """Let the SuperLink of this process send its requests through an ASGI middleware."""
    from flwr.superlink import main as superlink

    create = superlink.create_app

    def created(*arguments: Any, **more: Any) -> Any:
        app = create(*arguments, **more)
        app.add_middleware(middleware, **settings)
        return app

    superlink.create_app = created


def flower_command(name: str) -> Callable[[], None]:
    """Flower's command of the name, such as "flower-superlink"."""
    module, _, function = COMMANDS[name].rpartition(":")
    command: Callable[[], None] = getattr(import_module(module), function)
    return command
