"""Why a site cannot reach its server, found by trying: address, name, TLS on both sides, clock."""

import re
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography import x509

_SECONDS = 10.0
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
"""X509_V_ERR_... of OpenSSL."""
_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL: everything about a certificate is checked but its days."""
_MOST_AHEAD, _MOST_BEHIND = timedelta(seconds=8), timedelta(seconds=300)
"""Flower accepts a signature 5 s from its future and 305 s from its past; a Date has whole seconds."""
_LONGEST_ANSWER = 4096


@dataclass(frozen=True)
class Obstacle:
    """What keeps a site from its server.

    Attributes:
        reason: a sentence.
        passes: whether it may pass without anybody's help.
        days: whether it is that the server's certificate is not valid today by this machine's clock.
    """

    reason: str
    passes: bool = False
    days: bool = False


def find_obstacle(server: str, authority: Path, certificate: Path, key: Path) -> Obstacle | None:
    """What keeps a site from being heard, or None.

    A refusal of the site's certificate looks like a connection that was lost at that moment, so it counts if a second
    attempt ends in the same way.

    Args:
        server: HOST:PORT.
        authority: the server's ca.pem.
        certificate: the site's.
        key: the certificate's private key.
    """
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        return Obstacle(f"The server's address {server!r} is not HOST:PORT, such as fed.example.org:9092.")
    host = host.strip("[]")
    if (expiry := _expiry(certificate)) < (now := datetime.now(UTC)):
        return Obstacle(
            f"The site's certificate {certificate} expired on {expiry:%Y-%m-%d} (this machine's clock says "
            f"{now:%Y-%m-%d %H:%M} UTC); the server's operator issues a new one."
        )
    found = _tried(host, port, server, authority, certificate, key)
    return found if found is None or found.passes else _tried(host, port, server, authority, certificate, key)


def _tried(host: str, port: str, server: str, authority: Path, certificate: Path, key: Path) -> Obstacle | None:
    try:
        plain = socket.create_connection((host, int(port)), _SECONDS)
    except OSError as error:
        return _without_connection(host, port, error)
    with plain:
        found = _with_tls(plain, host, server, authority, certificate, key)
    if found is not None and found.days:
        return _clock_obstacle(host, int(port), authority, certificate, key) or found
    return found


def _without_connection(host: str, port: str, error: OSError) -> Obstacle:
    if isinstance(error, socket.gaierror):
        return Obstacle(f"The name {host!r} of the server is unknown here ({error.strerror}).", passes=True)
    if isinstance(error, ConnectionRefusedError):
        return Obstacle(f"Nothing listens at port {port} of {host} (connection refused).", passes=True)
    if isinstance(error, TimeoutError):
        return Obstacle(
            f"{host} does not answer at port {port} within {_SECONDS:.0f} seconds; a firewall may drop it.", passes=True
        )
    return Obstacle(f"{host} cannot be reached at port {port}: {error.strerror or error}.", passes=True)


def _with_tls(
    plain: socket.socket, host: str, server: str, authority: Path, certificate: Path, key: Path
) -> Obstacle | None:
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except ssl.SSLError as error:
        return Obstacle(f"{authority} holds no certificate ({error.reason}); it is ca.pem in the server's folder.")
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        return Obstacle(f"The certificate {certificate} is not for this site's key {key} ({error.reason}).")
    try:
        connection = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return _of_wrong_certificate(error, host, server, authority)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return Obstacle(f"{server} closed the connection during the TLS handshake.", passes=True)
    except ssl.SSLError as error:
        return Obstacle(f"What listens at {server} does not speak TLS as a fedgraft server does ({error.reason}).")
    except OSError as error:
        return Obstacle(f"{server} closed the connection during the TLS handshake ({error}).", passes=True)
    with connection:
        return _unless_heard(connection, certificate)


def _of_wrong_certificate(error: ssl.SSLCertVerificationError, host: str, server: str, authority: Path) -> Obstacle:
    now = f"this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if error.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
        return Obstacle(
            f"The server's certificate is not for {host!r}; use a name that was given to `fedgraft server init --host`."
        )
    if error.verify_code == _EXPIRED:
        return Obstacle(f"The certificate of {server} has expired, or a clock is wrong: {now}.", days=True)
    if error.verify_code == _NOT_YET_VALID:
        return Obstacle(f"The certificate of {server} is not valid yet, or a clock is wrong: {now}.", days=True)
    return Obstacle(
        f"The certificate of {server} was not issued by {authority}: its ca.pem is not the server's "
        f"({error.verify_message})."
    )


def _unless_heard(connection: ssl.SSLSocket, certificate: Path) -> Obstacle | None:
    """An obstacle if the server closes the connection once it has seen the site's certificate, or its clock differs."""
    try:
        answer = _answer(connection)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    except OSError:
        return None
    if answer:
        return _of_clock(answer, datetime.now(UTC))
    return Obstacle(
        f"The server does not accept the certificate {certificate}: it was issued by another server, has been revoked "
        "or has expired by the server's clock."
    )


def _answer(connection: ssl.SSLSocket) -> bytes:
    """The head of what the server answers; empty if it closes the connection."""
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _LONGEST_ANSWER:
        if not (more := connection.recv(_LONGEST_ANSWER)):
            break
        answer += more
    return answer


def _of_clock(answer: bytes, now: datetime) -> Obstacle | None:
    """An obstacle if the server's clock, as its answer tells it, is so far from this one that it takes no signature."""
    said = re.search(rb"^date: *([^\r\n]+)", answer, re.IGNORECASE | re.MULTILINE)
    try:
        theirs = parsedate_to_datetime(said[1].decode("ascii")) if said else now
        ahead = now - theirs
    except (ValueError, TypeError):
        return None
    if -_MOST_BEHIND <= ahead <= _MOST_AHEAD:
        return None
    span = _span(abs(ahead))
    return Obstacle(
        f"This machine's clock is {span} {'ahead of' if ahead > timedelta() else 'behind'} the server's: "
        f"{now:%Y-%m-%d %H:%M} UTC here, {theirs:%Y-%m-%d %H:%M} UTC there; set the wrong one right."
    )


def _clock_obstacle(host: str, port: int, authority: Path, certificate: Path, key: Path) -> Obstacle | None:
    """What `_of_clock` finds at a server whose certificate is not valid by this machine's clock."""
    context = ssl.create_default_context(cafile=str(authority))
    context.load_cert_chain(certificate, key)
    context.verify_flags |= _NO_CHECK_TIME
    try:
        with (
            socket.create_connection((host, port), _SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            return _of_clock(_answer(connection), datetime.now(UTC))
    except OSError:
        return None


def _span(time: timedelta) -> str:
    seconds = time.total_seconds()
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _expiry(certificate: Path) -> datetime:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
