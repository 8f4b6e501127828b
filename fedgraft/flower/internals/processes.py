"""Flower's own processes, changed before they start."""

import ssl
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

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
