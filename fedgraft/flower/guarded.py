"""Flower's own commands with what a deployment cannot do without: `python -m fedgraft.flower.guarded NAME ...`.

flower-superlink   opens the control interface to the operator alone, and the fleet interface to the gateway alone
flwr               sends the operator's secret
flower-supernode   shows the site's certificate to the gateway
flower-superexec   starts an app's process with its token on standard input, where no process list shows it
zygote             is what the processes for messages are forked from, where the kernel is Linux
flwr-clientapp     runs the app of the installed package, whatever the server hands out, confined to what it needs
flwr-serverapp     the same at the server; why it cannot begin stands in the run's ended.json

Settings come from the environment, since the arguments are Flower's.
"""

import ctypes
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from fedgraft.core.errors import RunFailed, reason_of
from fedgraft.flower import internals
from fedgraft.flower.confinement import confine, landlock_version, python_paths
from fedgraft.flower.node_status import NodeStatusFile
from fedgraft.flower.run_state import Ended, Outcome, RunState
from fedgraft.flower.zygote import Zygote, serve

OPERATOR_FILE, GATEWAY_FILE = "FEDGRAFT_OPERATOR_FILE", "FEDGRAFT_GATEWAY_FILE"
"""Environment variables that name the files of the two secrets."""
CERTIFICATE, PRIVATE_KEY = "FEDGRAFT_CERTIFICATE", "FEDGRAFT_PRIVATE_KEY"
"""Environment variables that name the files of a site's certificate and its key, both PEM."""
APP_SHA256 = "FEDGRAFT_APP_SHA256"
"""The environment variable that holds the hash of the one app that may run."""
READABLE, WRITABLE = "FEDGRAFT_READABLE", "FEDGRAFT_WRITABLE"
"""Environment variables with a JSON list of what an app's process may read, or change, beside Python's libraries."""
SUBMITTED = "FEDGRAFT_SUBMITTED"
"""The environment variable that names the folder of the settings-*.toml of the runs that a server was asked for."""
NODE_STATUS = "FEDGRAFT_NODE_STATUS"
"""The environment variable that names the file in which a SuperNode says what it is doing."""
OPERATOR_HEADER, GATEWAY_HEADER = "x-fedgraft-operator", "x-fedgraft-gateway"
FLEET = "/v1/fleet/"
_PARENT_DEATH_SIGNAL, _SET_NAME = 1, 15
_WORDS, _ZYGOTE = [sys.executable, "-P", "-m", "fedgraft.flower.guarded"], "zygote"
_RUNTIME = "/v1/runtime/"  # Flower checks a token of its own there

Scope = dict[str, Any]


class Door:
    """ASGI middleware: who comes with which secret may use which of a SuperLink's interfaces."""

    def __init__(self, app: Callable[..., Any], operator: str, gateway: str) -> None:
        self._app, self._operator, self._gateway = app, operator, gateway

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass a request on, or answer it with 403."""
        if scope["type"] != "http" or self._admits(scope):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"This interface is not open to you."})

    def _admits(self, scope: Scope) -> bool:
        if scope["path"].startswith(_RUNTIME):
            return True
        fleet = scope["path"].startswith(FLEET)
        name, secret = (GATEWAY_HEADER, self._gateway) if fleet else (OPERATOR_HEADER, self._operator)
        given = dict(scope["headers"]).get(name.encode(), b"")
        return hmac.compare_digest(given, secret.encode())


def secret_text(path: Path) -> str:
    """A secret file's bytes as a header can carry them."""
    return path.read_bytes().hex()


def install_app(app: Path, home: Path) -> str:
    """Install the app of a folder in Flower's own folder, as processes of apps find it, and return its hash."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.install import install_from_fab

    content = build_fab_from_disk(app)
    with redirect_stdout(StringIO()):
        install_from_fab(content, home, skip_prompt=True)
    return hashlib.sha256(content).hexdigest()


# --- the commands ---------------------------------------------------------------------------------


def _superlink(command: str) -> None:
    internals.open_superlink_with(Door, operator=_secret(OPERATOR_FILE), gateway=_secret(GATEWAY_FILE))


def _flwr(command: str) -> None:
    internals.add_request_header(OPERATOR_HEADER, _secret(OPERATOR_FILE))


def _supernode(command: str) -> None:
    internals.show_certificate(os.environ[CERTIFICATE], os.environ[PRIVATE_KEY])
    internals.observe_messages(NodeStatusFile(Path(os.environ[NODE_STATUS])))


def _superexec(command: str) -> None:
    zygote = Zygote([*_WORDS, _ZYGOTE]) if sys.platform == "linux" else None
    internals.launch_tasks_with(partial(_launch, zygote))


def _launch(zygote: Zygote | None, command: str, arguments: list[str], token: str) -> None:
    """Start an app's process; other tasks than apps have no place in a federation.

    There is a process for every message, so these are forked; that of a run, which lives long, is started anew.
    """
    if command not in internals.RUNTIMES:
        raise RuntimeError(f"A task of the kind {command!r} is not fedgraft's.")
    if zygote is not None and command == "flwr-clientapp":
        zygote.start(arguments, token)
        return
    process = subprocess.Popen([*_WORDS, command, *arguments], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{token}\n".encode())
    process.stdin.close()


def _forked() -> str:
    """Serve as a zygote; in each child, take the place of the command that it is for, and return its name."""
    command, zygote = "flwr-clientapp", os.getpid()
    internals.flower_command(command)
    arguments = serve()
    if "--parent-pid" in arguments:
        arguments[arguments.index("--parent-pid") + 1] = str(zygote)
    sys.argv[1:] = arguments
    ctypes.CDLL(None).prctl(_SET_NAME, command.encode())
    return command


def _app(command: str) -> None:
    """Confine the process, refuse any app but the known one, and read the token from standard input.

    A ServerApp's process that cannot be confined goes on as far as to know its run, refuses the app, and so leaves a
    reason where one that ended at once would be started again.
    """
    _end_with_parent()
    unconfined: RunFailed | None = None
    try:
        if landlock_version():
            _confine(command)
    except Exception as error:
        if command != "flwr-serverapp":
            raise
        unconfined = RunFailed(f"The process of the run cannot be confined, so nothing was run: {reason_of(error)}")

    def check(content: bytes) -> None:
        if unconfined is not None:
            raise unconfined
        _check_app(content)

    internals.install_apps_after(check, internals.RUNTIMES[command])
    if command == "flwr-serverapp":
        internals.observe_failures(_record_failure)
    sys.argv += ["--token", sys.stdin.readline().strip()]


def _record_failure(given: dict[str, Any], error: Exception) -> None:
    """Write into ended.json why a submitted run ends, unless fedgraft's own code has done so or the server is lost."""
    if "settings" not in given or internals.is_lost_server(error):
        return
    state, submission = RunState(Path(given["out"])), json.loads(given["settings"])["submission"]
    ended = state.ended
    if ended is None or ended.submission != submission or ended.outcome is Outcome.RUNNING:
        begun = ended.round if ended is not None else 0
        state.end(Ended(Outcome.FAILED, submission, begun, reason_of(error), type(error).__name__))


def _confine(command: str) -> None:
    readable, writable = ([Path(path) for path in json.loads(os.environ[name])] for name in (READABLE, WRITABLE))
    port = None
    if command == "flwr-clientapp":
        port = int(sys.argv[sys.argv.index("--runtime-api-address") + 1].rpartition(":")[2])
    else:
        for settings in Path(os.environ[SUBMITTED]).glob("settings-*.toml"):
            out, others = _places(settings)
            out.mkdir(parents=True, exist_ok=True)
            writable.append(out)
            readable.extend(others)
    confine([*python_paths(), *readable], writable, port)


def _places(settings: Path) -> tuple[Path, list[Path]]:
    """The run directory of a submitted run, and what else it has to read: the backbone, and who is admitted."""
    given = tomllib.loads(settings.read_text())
    run = json.loads(given["settings"])
    admitted = Path(run["admitted"])
    return Path(given["out"]), [Path(run["config"]["backbone"]).expanduser(), admitted, admitted.parent / "replaced"]


def _end_with_parent() -> None:
    """End with the parent, by the kernel: a confined process may not send the signal by which Flower looks."""
    if sys.platform != "linux" or "--parent-pid" not in sys.argv:
        return
    place = sys.argv.index("--parent-pid")
    parent = int(sys.argv[place + 1])
    del sys.argv[place : place + 2]
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGINT)
    if os.getppid() != parent:
        sys.exit("The process that has started this one has ended.")


def _check_app(content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != os.environ[APP_SHA256]:
        raise RunFailed(
            "The app of this run is not the app of the installed fedgraft; nothing of it was run. After an upgrade, "
            "start the server and its sites again."
        )


_PREPARED: dict[str, Callable[[str], None]] = {
    "flower-superlink": _superlink,
    "flower-supernode": _supernode,
    "flower-superexec": _superexec,
    "flwr-clientapp": _app,
    "flwr-serverapp": _app,
    "flwr": _flwr,
}


def _secret(variable: str) -> str:
    return secret_text(Path(os.environ[variable]))


def main() -> None:
    """Run the command that the first argument names."""
    command = sys.argv.pop(1)
    if command == _ZYGOTE:
        command = _forked()
    sys.argv[0] = command
    _PREPARED[command](command)
    internals.flower_command(command)()


if __name__ == "__main__":
    main()
