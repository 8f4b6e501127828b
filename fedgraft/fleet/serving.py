"""The registry's process: gRPC over TLS on one port, with bounds on what a stranger can send and keep open."""

import logging
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain
from fedgraft.deployment.folder_lock import FolderLock
from fedgraft.device.agent.messages import (
    ANSWER_LIMIT,
    REQUEST_LIMIT,
    SERVICE,
    SESSION_HEADER,
    decoded,
    encoded,
)
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.requests import NoSession, RefusedRequest, Requests

_THREADS, _LARGEST_CONCURRENT = 16, 512
_GRACE_SECONDS = 5.0
_OPTIONS = [
    ("grpc.max_receive_message_length", REQUEST_LIMIT),
    ("grpc.max_send_message_length", ANSWER_LIMIT),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_connection_idle_ms", 120_000),
    ("grpc.so_reuseport", 0),
]
_TAKEN = "Port {port} is taken; give another --port."
_LOG = logging.getLogger(__name__)
Certificate = tuple[bytes, bytes]


class RunningRegistry:
    """A registry that serves until `stop`.

    Args:
        port: to listen on; 0 for any that is free.
        next_seconds: how long devices are told to wait before they ask again.

    Raises:
        UserError: the port is taken.
    """

    def __init__(
        self, folder: FleetFolder, port: int | None = None, address: str = "0.0.0.0", next_seconds: float | None = None
    ) -> None:
        self.folder = folder
        wanted = folder.port if port is None else port
        _require_free(address, wanted)
        self._database = folder.database()
        self._requests = Requests(folder, self._database, next_seconds)
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS), options=_OPTIONS, maximum_concurrent_rpcs=_LARGEST_CONCURRENT
        )
        handlers = {
            "enrol": _json(self._requests.enrol),
            "challenge": _json(self._requests.challenge),
            "login": _json(self._requests.login),
            "check": _json_in_session(self._requests.check),
            "fetch": _in_session(self._requests.fetch),
            "report": _json_in_session(self._requests.report),
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
        first = _configuration(_certificate(folder))
        credentials = grpc.dynamic_ssl_server_credentials(first, self._changed_certificate)
        self._shown = _certificate(folder)
        try:
            self.port = self._server.add_secure_port(f"{address}:{wanted}", credentials)
        except RuntimeError as error:
            self._database.close()
            raise UserError(_TAKEN.format(port=wanted)) from error
        self._server.start()
        if self.port != folder.port:
            self.folder = folder.at_port(self.port)

    def stop(self) -> None:
        """Let the requests in hand end, and stop."""
        self._server.stop(_GRACE_SECONDS).wait()
        self._database.close()

    def _changed_certificate(self) -> Any:
        """For whoever connects: the certificate that is on the disk now, if it is another one."""
        found = _certificate(self.folder)
        if found == self._shown:
            return None
        self._shown = found
        return _configuration(found)


def serve(folder: FleetFolder, port: int | None = None, ready: Callable[[RunningRegistry], None] | None = None) -> None:
    """Serve a folder until SIGTERM or Ctrl-C.

    Raises:
        UserError: another process serves the folder, or the port is taken.
    """
    stop = threading.Event()
    lock = FolderLock(folder.path)
    try:
        registry = RunningRegistry(folder, port)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        if ready is not None:
            ready(registry)
        stop.wait()
        registry.stop()
    finally:
        lock.release()


def _require_free(address: str, port: int) -> None:
    """Raise UserError where a port is taken; gRPC would print lines of its own."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            raise UserError(_TAKEN.format(port=port)) from error


def _certificate(folder: FleetFolder) -> Certificate:
    return folder.private_key.read_bytes(), folder.certificate.read_bytes()


def _configuration(pair: Certificate) -> Any:
    return grpc.ssl_server_certificate_configuration([pair])


def _json(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes, Any], bytes]:
    return lambda data, context: _guarded(context, lambda: encoded(answer(decoded(data, REQUEST_LIMIT))))


def _in_session(answer: Callable[[str, dict[str, Any]], bytes]) -> Callable[[bytes, Any], bytes]:
    return lambda data, context: _guarded(context, lambda: answer(_session(context), decoded(data, REQUEST_LIMIT)))


def _json_in_session(answer: Callable[[str, dict[str, Any]], dict[str, Any]]) -> Callable[[bytes, Any], bytes]:
    return _in_session(lambda session, content: encoded(answer(session, content)))


def _session(context: Any) -> str:
    found = dict(context.invocation_metadata()).get(SESSION_HEADER, "")
    return found if isinstance(found, str) else ""


def _guarded(context: Any, answer: Callable[[], bytes]) -> bytes:
    """The answer, or an end of the call with a sentence; nothing of the registry's inside leaves it."""
    try:
        return answer()
    except RefusedRequest as error:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{error}.")
    except NoSession:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "the session has ended.")
    except ValueError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the request is invalid: {plain(str(error))}.")
    except Exception:
        _LOG.exception("a request failed")
        context.abort(grpc.StatusCode.INTERNAL, "the registry failed; its log says why.")
    raise AssertionError("abort always raises")
