"""Why a site cannot reach its server is told as what it is, so that the right person changes the right thing."""

import datetime
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import format_datetime
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedgraft.deployment.connection_check import Obstacle, find_obstacle
from fedgraft.deployment.local import admit_here
from fedgraft.runs.certificates import _alternative, _authority
from fedgraft.runs.server_folder import ServerFolder
from fedgraft.runs.site_folder import SiteFolder

Listen = Callable[..., int]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerFolder:
    return ServerFolder.create(tmp_path_factory.mktemp("check") / "server", ["127.0.0.1"], 1)


@pytest.fixture(scope="module")
def site(server: ServerFolder) -> SiteFolder:
    folder = SiteFolder.create(server.path.parent / "north", "north")
    admit_here(server, folder)
    return folder


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listens with a certificate, or without TLS, and returns the port; the first connections may end early."""
    listening: list[socket.socket] = []

    def start(
        certificate: Path | None,
        server: ServerFolder,
        answer: bytes = b"HTTP/1.0 404 Not Found\r\n\r\n",
        unheard: int = 0,
        unanswered: int = 0,
    ) -> int:
        plain = socket.create_server(("127.0.0.1", 0))
        listening.append(plain)
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(server.authority))
            context.load_cert_chain(certificate, server.private_key)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(server.revocation_list)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

        def serve() -> None:
            with suppress(OSError):
                for number in count():
                    connection, _ = plain.accept()
                    with suppress(OSError), connection:
                        if number < unheard:
                            connection.recv(65536)
                            continue
                        heard = context.wrap_socket(connection, server_side=True) if context else connection
                        heard.recv(1)
                        if number >= unanswered:
                            heard.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return int(plain.getsockname()[1])

    yield start
    for plain in listening:
        plain.close()


def _certificate(server: ServerFolder, path: Path, host: str, first: int, last: int, of: ServerFolder) -> Path:
    """A certificate of a server's authority for the key of another's folder, valid from and to a day from now."""
    authority, signing = _authority(server.path)
    key = x509.load_pem_x509_certificate(of.certificate.read_bytes()).public_key()
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
        .issuer_name(authority.subject)
        .public_key(key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=first))
        .not_valid_after(now + datetime.timedelta(days=last))
        .add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def _found(server: ServerFolder, site: SiteFolder, port: int, host: str = "127.0.0.1") -> Obstacle | None:
    return find_obstacle(f"{host}:{port}", server.authority, site.certificate, site.tls_key)


def test_a_server_that_hears_the_site_is_no_obstacle(server: ServerFolder, site: SiteFolder, listen: Listen) -> None:
    assert _found(server, site, listen(server.certificate, server)) is None


def test_nothing_listens_at_the_address(server: ServerFolder, site: SiteFolder) -> None:
    assert _found(server, site, 1) == Obstacle("Nothing listens at port 1 of 127.0.0.1 (connection refused).", True)


def test_a_name_that_nobody_knows(server: ServerFolder, site: SiteFolder) -> None:
    found = _found(server, site, 9092, "fed.example.invalid")
    assert found is not None
    assert found.passes
    assert "The name 'fed.example.invalid' of the server is unknown here" in found.reason


def test_an_address_without_a_port(server: ServerFolder, site: SiteFolder) -> None:
    found = find_obstacle("fed.example.org", server.authority, site.certificate, site.tls_key)
    assert found == Obstacle("The server's address 'fed.example.org' is not HOST:PORT, such as fed.example.org:9092.")


@pytest.mark.parametrize(
    ("host", "first", "last", "said"),
    [
        ("fed.example.org", -1, 1, r"certificate is not for '127.0.0.1'; use a name that was given"),
        ("127.0.0.1", -9, -2, "has expired, or a clock is wrong: this machine's clock says 2"),
        ("127.0.0.1", 2, 9, "is not valid yet, or a clock is wrong: this machine's clock says 2"),
    ],
)
def test_a_certificate_of_the_server_that_does_not_fit(
    host: str, first: int, last: int, said: str, server: ServerFolder, site: SiteFolder, listen: Listen, tmp_path: Path
) -> None:
    certificate = _certificate(server, tmp_path / "server.pem", host, first, last, of=server)
    found = _found(server, site, listen(certificate, server))
    assert found is not None
    assert not found.passes
    assert said in found.reason


def _dated(**later: float) -> bytes:
    """What the gateway answers while its clock says that so much more time has passed than this machine's."""
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(**later)
    return f"HTTP/1.1 404 Not Found\r\ndate: {format_datetime(then, usegmt=True)}\r\n\r\nNot Found".encode()


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"minutes": 90}, "This machine's clock is 90 minutes behind the server's: 2"),
        ({"minutes": -119}, "This machine's clock is 119 minutes ahead of the server's: 2"),
        ({"hours": 26}, "This machine's clock is 26 hours behind the server's: 2"),
        ({"days": -400}, "This machine's clock is 400 days ahead of the server's: 2"),
        ({"seconds": 200}, None),
        ({"seconds": -2}, None),
    ],
)
def test_a_clock_that_differs_from_the_servers_is_told_as_that(
    later: dict[str, float], said: str | None, server: ServerFolder, site: SiteFolder, listen: Listen
) -> None:
    found = _found(server, site, listen(server.certificate, server, _dated(**later)))
    assert (found is None) == (said is None)
    if found is not None and said is not None:
        assert not found.passes
        assert found.reason.startswith(said)


@pytest.mark.parametrize("date", [b"yesterday", b"Tue, 99 Foo 2026 25:00:00 GMT", b"\xff", b""])
def test_a_date_that_is_none_is_no_obstacle(
    date: bytes, server: ServerFolder, site: SiteFolder, listen: Listen
) -> None:
    assert (
        _found(server, site, listen(server.certificate, server, b"HTTP/1.1 404\r\ndate: " + date + b"\r\n\r\n")) is None
    )


@pytest.mark.parametrize(
    ("first", "last", "days", "said"),
    [(2, 9, 3, "clock is 3 days behind the server's"), (-9, -2, -3, "clock is 3 days ahead of the server's")],
)
def test_a_certificate_that_is_not_valid_by_a_wrong_clock_is_told_as_the_clock(
    first: int,
    last: int,
    days: float,
    said: str,
    server: ServerFolder,
    site: SiteFolder,
    listen: Listen,
    tmp_path: Path,
) -> None:
    certificate = _certificate(server, tmp_path / "server.pem", "127.0.0.1", first, last, of=server)
    found = _found(server, site, listen(certificate, server, _dated(days=days)))
    assert found is not None
    assert said in found.reason


def test_another_servers_authority(server: ServerFolder, site: SiteFolder, listen: Listen, tmp_path: Path) -> None:
    other = ServerFolder.create(tmp_path / "other", ["127.0.0.1"], 1)
    found = _found(other, site, listen(server.certificate, server))
    assert found is not None
    assert "its ca.pem is not the server's" in found.reason


def test_what_listens_is_no_fedgraft_server(server: ServerFolder, site: SiteFolder, listen: Listen) -> None:
    found = _found(server, site, listen(None, server))
    assert found is not None
    assert "does not speak TLS as a fedgraft server does" in found.reason


def test_a_connection_that_ends_during_the_handshake_may_pass(
    server: ServerFolder, site: SiteFolder, listen: Listen
) -> None:
    """As behind a proxy, while the gateway is being restarted."""
    found = _found(server, site, listen(server.certificate, server, unheard=1))
    assert found is not None
    assert found.passes
    assert "closed the connection during the TLS handshake" in found.reason


def test_a_connection_that_is_lost_once_is_no_refusal(server: ServerFolder, site: SiteFolder, listen: Listen) -> None:
    assert _found(server, site, listen(server.certificate, server, unanswered=1)) is None


def test_a_certificate_of_the_site_from_another_server(
    server: ServerFolder, site: SiteFolder, listen: Listen, tmp_path: Path
) -> None:
    other = ServerFolder.create(tmp_path / "other", ["127.0.0.1"], 1)
    stranger = SiteFolder.create(tmp_path / "stranger", "stranger")
    admit_here(other, stranger)
    found = _found(server, stranger, listen(server.certificate, server))
    assert found is not None
    assert f"The server does not accept the certificate {stranger.certificate}" in found.reason


def test_a_certificate_that_was_revoked(listen: Listen, tmp_path: Path) -> None:
    own, revoked = (
        ServerFolder.create(tmp_path / "own", ["127.0.0.1"], 1),
        SiteFolder.create(tmp_path / "south", "south"),
    )
    admit_here(own, revoked)
    assert _found(own, revoked, listen(own.certificate, own)) is None
    own.revoke("south")
    found = _found(own, revoked, listen(own.certificate, own))
    assert found is not None
    assert f"The server does not accept the certificate {revoked.certificate}" in found.reason
    assert len(found.reason.splitlines()) == 1


def test_a_certificate_for_another_key(server: ServerFolder, site: SiteFolder, listen: Listen, tmp_path: Path) -> None:
    other = SiteFolder.create(tmp_path / "other", "other")
    shutil.copy(site.certificate, other.certificate)
    found = _found(server, other, listen(server.certificate, server))
    assert found is not None
    assert "is not for this site's key" in found.reason


def test_a_certificate_of_the_site_that_has_expired(server: ServerFolder, site: SiteFolder, tmp_path: Path) -> None:
    expired = _certificate(server, tmp_path / "site.pem", "north", -9, -2, of=server)
    found = find_obstacle("127.0.0.1:1", server.authority, expired, site.tls_key)
    assert found is not None
    assert f"The site's certificate {expired} expired on 2" in found.reason
