"""The only module that imports Flower's unstable internals: `flwr.common`, `flwr.proto`, `flwr.super*`.

tests/flower/test_internals.py names what breaks here when Flower moves something. Heavy parts are imported when used.
"""

import ssl
from collections.abc import Callable
from importlib import import_module
from typing import Any

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

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
