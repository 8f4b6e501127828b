"""Serving the page: one port on loopback, or on an address that was asked for, then with a token; until Ctrl-C."""

import ipaddress
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from fedgraft.core.errors import UserError
from fedgraft.watch.app import application
from fedgraft.watch.guard import Access
from fedgraft.watch.source import Source

LOOPBACK = "127.0.0.1"
_GRACE_SECONDS = 3


def serve(source: Source, host: str, port: int, ready: Callable[[str], None], token: str = "") -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        port: 0 for any that is free.
        ready: told the address of the page, once it can be opened.
        token: to ask for on an address that others can reach; a new one if empty.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    bound = _bound(host, port)
    number = int(bound.getsockname()[1])
    loopback = is_loopback(host)
    token = "" if loopback else token or secrets.token_urlsafe(24)
    access = Access(frozenset({host.lower(), socket.gethostname().lower()}), token, f"fedgraft-{number}")
    server: uvicorn.Server | None = None

    def ended() -> bool:
        return server is not None and server.should_exit

    config = uvicorn.Config(
        application(source, access, ended=ended),
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        lifespan="off",
        ws="none",
    )
    server = uvicorn.Server(config)
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    ready(f"http://{shown}:{number}/{f'?token={token}' if token else ''}")
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after a clean end
        server.run(sockets=[bound])


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens from now on, so that a browser that is opened at once finds it."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise UserError(
            f"--host takes an address or a name of this machine, not {host!r}: {error.strerror}."
        ) from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()
    except OSError as error:
        bound.close()
        hint = "give another --port, or --port 0 for any that is free"
        raise UserError(f"The page cannot be served on {host}, port {port}: {error.strerror}; {hint}.") from error
    return bound
