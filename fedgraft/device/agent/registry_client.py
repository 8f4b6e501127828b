"""A device's connection to its registry: TLS by the fleet's own authority, a session by the device's key."""

from pathlib import Path
from typing import Any, Protocol

import grpc

from fedgraft.device.agent.messages import (
    ANSWER_LIMIT,
    CHUNK,
    METHODS,
    PROTOCOL,
    REQUEST_LIMIT,
    SERVICE,
    SESSION_HEADER,
    decoded,
    encoded,
    enrol_text,
    login_text,
    one_line,
    text,
)
from fedgraft.device.device_key import DeviceKey
from fedgraft.device.errors import DeviceError

PATIENCE_SECONDS = 60.0
"""For one answer. A chunk has 64 KB, so that a registry that sends less than about 1 KB a second is given up."""
OPTIONS = [
    ("grpc.max_receive_message_length", ANSWER_LIMIT),
    ("grpc.max_send_message_length", REQUEST_LIMIT),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]
_UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Unreachable(DeviceError):
    """The registry does not answer, or too slowly; the device tries again later."""

    exit_code = 1


class Refused(DeviceError):
    """The registry refuses a request, with its reason."""


class _SessionEnded(Exception):
    """The session counts no more: a new one is opened."""


class Registry(Protocol):
    """What an agent asks a registry for."""

    def enrol(self, token: str, key: DeviceKey) -> dict[str, Any]: ...
    def open_session(self, fleet: str, device: str, key: DeviceKey) -> None: ...
    def check(self, content: dict[str, Any]) -> dict[str, Any]: ...
    def fetch(self, sha256: str, offset: int, length: int) -> bytes: ...
    def report(self, content: dict[str, Any]) -> None: ...


def connected(server: str, authority: Path, patience: float = PATIENCE_SECONDS) -> "RegistryClient":
    """A client of the registry at HOST:PORT; raises DeviceError if the authority's certificate cannot be read."""
    try:
        pem = authority.read_bytes()
    except OSError as error:
        raise DeviceError(f"The authority's certificate {authority} cannot be read: {error.strerror}.") from error
    if b"BEGIN CERTIFICATE" not in pem:
        raise DeviceError(f"{authority} is not a certificate in PEM; give the ca.pem of the fleet's folder.")
    if not server.rpartition(":")[2].isdecimal() or not server.rpartition(":")[0]:
        raise DeviceError(f"{server!r} is not a registry's address; give HOST:PORT.")
    channel = grpc.secure_channel(server, grpc.ssl_channel_credentials(pem), OPTIONS)
    return RegistryClient(channel, server, patience)


class RegistryClient:
    """A client on a channel, which several devices of one process may share.

    Args:
        server: how the registry is called in messages.
        patience: seconds for one answer.
    """

    def __init__(self, channel: grpc.Channel, server: str, patience: float = PATIENCE_SECONDS) -> None:
        self._calls = {method: channel.unary_unary(f"/{SERVICE}/{method}") for method in METHODS}
        self._channel, self._server, self._patience = channel, server, patience
        self._session = ""
        self._identity: tuple[str, str, DeviceKey] | None = None

    @property
    def has_session(self) -> bool:
        """Whether a session was opened."""
        return bool(self._session)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def enrol(self, token: str, key: DeviceKey) -> dict[str, Any]:
        """Enrol by a token; the answer has the device's id, its channel and the fleet's trust documents.

        Raises:
            Refused: the token is unknown, was used or has expired.
            Unreachable: no answer.
        """
        signature = key.sign(enrol_text(token, key.public.hex())).hex()
        content = {"protocol": PROTOCOL, "token": token, "key": key.public.hex(), "signature": signature}
        return self._json("enrol", content)

    def open_session(self, fleet: str, device: str, key: DeviceKey) -> None:
        """Prove who this device is; later calls open a new session by themselves where one ends.

        Raises:
            Refused: the registry does not know the device, or it was revoked.
            Unreachable: no answer.
        """
        self._identity = (fleet, device, key)
        self._session = ""
        challenge = self._text(self._json("challenge", {"protocol": PROTOCOL, "device": device}), "challenge")
        signature = key.sign(login_text(fleet, device, challenge)).hex()
        answer = self._json("login", {"device": device, "challenge": challenge, "signature": signature})
        self._session = self._text(answer, "session")

    def check(self, content: dict[str, Any]) -> dict[str, Any]:
        """What the registry has for this device."""
        return self._json("check", content, session=True)

    def fetch(self, sha256: str, offset: int, length: int) -> bytes:
        """A part of a file, exactly as long as it was asked for; raises Refused if it is not."""
        data = self._call("fetch", {"sha256": sha256, "offset": offset, "length": min(length, CHUNK)}, session=True)
        if len(data) != min(length, CHUNK):
            raise Refused(f"The registry {self._server} sent {len(data):,} bytes, and {length:,} were asked for.")
        return data

    def report(self, content: dict[str, Any]) -> None:
        """Tell how the device is; the registry has stored it when this returns."""
        self._json("report", content, session=True)

    def _json(self, method: str, content: dict[str, Any], session: bool = False) -> dict[str, Any]:
        try:
            return decoded(self._call(method, content, session), ANSWER_LIMIT)
        except ValueError as error:
            raise Refused(f"The registry {self._server} gave an invalid answer: {error}.") from error

    def _call(self, method: str, content: dict[str, Any], session: bool = False) -> bytes:
        try:
            return self._once(method, content, session)
        except _SessionEnded:
            if self._identity is None:
                raise Refused(f"The registry {self._server} wants a session, and this device has none.") from None
        self.open_session(*self._identity)
        try:
            return self._once(method, content, session)
        except _SessionEnded as error:
            raise Refused(f"The registry {self._server} ends every session at once.") from error

    def _once(self, method: str, content: dict[str, Any], session: bool) -> bytes:
        metadata = [(SESSION_HEADER, self._session)] if session else []
        try:
            data = self._calls[method](encoded(content), timeout=self._patience, metadata=metadata)
        except grpc.RpcError as error:
            code, details = error.code(), one_line(error.details())
            if code in _UNREACHABLE:
                raise Unreachable(f"The registry {self._server} does not answer: {details}.") from error
            if code == grpc.StatusCode.UNAUTHENTICATED and session:
                raise _SessionEnded from error
            raise Refused(f"The registry {self._server} refuses: {details}") from error
        return bytes(data)

    def _text(self, answer: dict[str, Any], key: str) -> str:
        try:
            return text(answer, key, 500)
        except ValueError as error:
            raise Refused(f"The registry {self._server} gave an invalid answer: {error}.") from error
