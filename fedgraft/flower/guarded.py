"""Flower's own commands with what a deployment cannot do without: `python -m fedgraft.flower.guarded NAME ...`.

flower-superlink   opens the control interface to the operator alone, and the fleet interface to the gateway alone
flwr               sends the operator's secret
flower-supernode   shows the site's certificate to the gateway
flower-superexec   starts an app's process with its token on standard input, where no process list shows it
flwr-clientapp     runs the app of the installed package, whatever the server hands out
flwr-serverapp     the same at the server

Settings come from the environment, since the arguments are Flower's.
"""

import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedgraft.flower import internals

OPERATOR_FILE, GATEWAY_FILE = "FEDGRAFT_OPERATOR_FILE", "FEDGRAFT_GATEWAY_FILE"
"""Environment variables that name the files of the two secrets."""
CERTIFICATE, PRIVATE_KEY = "FEDGRAFT_CERTIFICATE", "FEDGRAFT_PRIVATE_KEY"
"""Environment variables that name the files of a site's certificate and its key, both PEM."""
APP_SHA256 = "FEDGRAFT_APP_SHA256"
"""The environment variable that holds the hash of the one app that may run."""
OPERATOR_HEADER, GATEWAY_HEADER = "x-fedgraft-operator", "x-fedgraft-gateway"
FLEET = "/v1/fleet/"
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


def app_sha256(app: Path) -> str:
    """The hash by which Flower knows an app that is built from a folder."""
    from flwr.cli.build import build_fab_from_disk

    return hashlib.sha256(build_fab_from_disk(app)).hexdigest()


# --- the commands ---------------------------------------------------------------------------------


def _superlink(command: str) -> None:
    internals.open_superlink_with(Door, operator=_secret(OPERATOR_FILE), gateway=_secret(GATEWAY_FILE))


def _flwr(command: str) -> None:
    internals.add_request_header(OPERATOR_HEADER, _secret(OPERATOR_FILE))


def _supernode(command: str) -> None:
    internals.show_certificate(os.environ[CERTIFICATE], os.environ[PRIVATE_KEY])


def _superexec(command: str) -> None:
    internals.launch_tasks_with(_launch)


def _launch(command: str, arguments: list[str], token: str) -> None:
    """Start an app's process; other tasks than apps have no place in a federation."""
    if command not in internals.RUNTIMES:
        raise RuntimeError(f"A task of the kind {command!r} is not fedgraft's.")
    words = [sys.executable, "-m", __spec__.name, command, *arguments]
    process = subprocess.Popen(words, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(f"{token}\n".encode())
    process.stdin.close()


def _app(command: str) -> None:
    """Refuse any app but the known one, and read the token from standard input."""
    internals.install_apps_after(_check_app, internals.RUNTIMES[command])
    sys.argv += ["--token", sys.stdin.readline().strip()]


def _check_app(content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != os.environ[APP_SHA256]:
        raise PermissionError("The app of this run is not the app of the installed fedgraft; nothing of it was run.")


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
    sys.argv[0] = command
    _PREPARED[command](command)
    internals.flower_command(command)()


if __name__ == "__main__":
    main()
