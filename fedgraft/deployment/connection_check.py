"""Why a site cannot reach its server, found by trying: address, name, TLS on both sides, clock."""

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

_SECONDS = 10.0
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
"""X509_V_ERR_... of OpenSSL."""


@dataclass(frozen=True)
class Obstacle:
    """What keeps a site from its server, as a sentence, and whether it may pass without anybody's help."""

    reason: str
    passes: bool = False


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
        return _with_tls(plain, host, server, authority, certificate, key)


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
        return Obstacle(f"The certificate of {server} has expired, or a clock is wrong: {now}.")
    if error.verify_code == _NOT_YET_VALID:
        return Obstacle(f"The certificate of {server} is not valid yet, or a clock is wrong: {now}.")
    return Obstacle(
        f"The certificate of {server} was not issued by {authority}: its ca.pem is not the server's "
        f"({error.verify_message})."
    )


def _unless_heard(connection: ssl.SSLSocket, certificate: Path) -> Obstacle | None:
    """An obstacle if the server closes the connection unanswered once it has seen the site's certificate."""
    try:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        refused = not connection.recv(1)
    except (ssl.SSLError, ConnectionError):
        refused = True
    except OSError:
        refused = False
    if not refused:
        return None
    return Obstacle(
        f"The server does not accept the certificate {certificate}: it was issued by another server, has been revoked "
        "or has expired by the server's clock."
    )


def _expiry(certificate: Path) -> datetime:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
