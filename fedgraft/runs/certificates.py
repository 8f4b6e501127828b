"""A server's certificate authority: its own certificate, those of admitted sites, and the list of revoked ones."""

import datetime
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgraft.core.errors import UserError
from fedgraft.core.files import write_private, write_text
from fedgraft.core.plain_text import plain

_VALID_DAYS, _AUTHORITY_DAYS = 825, 3650
_SOON_DAYS = 30
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_PEM = serialization.Encoding.PEM


def write_certificates(path: Path, hosts: list[str]) -> None:
    """Write a new authority and a certificate for the given host names and addresses, with their keys."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedgraft authority")])
    authority = (
        _certificate(name, name, key.public_key(), _in_days(_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(path / "keys" / "ca.key", _private_pem(key))
    write_text(path / "ca.pem", authority.public_bytes(_PEM).decode())
    write_server_certificate(path, hosts)


def write_server_certificate(path: Path, hosts: list[str]) -> None:
    """Write a certificate of the folder's authority for the given host names and addresses, with a new key."""
    authority, signing = _authority(path)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    server = (
        _certificate(subject, authority.subject, key.public_key(), _end_under(authority))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .sign(signing, hashes.SHA256())
    )
    write_private(path / "keys" / "server.key", _private_pem(key))
    write_text(path / "server.pem", server.public_bytes(_PEM).decode())


def certificate_hosts(path: Path) -> list[str]:
    """The host names and addresses that a server's certificate is for."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _in_days(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _end_under(authority: x509.Certificate) -> datetime.datetime:
    """When a certificate of an authority ends: not after the authority's own."""
    return min(_in_days(_VALID_DAYS), authority.not_valid_after_utc)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_in_days(-1))
        .not_valid_after(end)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def is_host(host: str) -> bool:
    """Whether a certificate can name it: an IP address, or a DNS name in ASCII, whose first label may be `*`."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return len(host) <= 253 and _HOST.fullmatch(host) is not None
    return True


def require_hosts(hosts: list[str]) -> None:
    """Raise UserError for what no certificate can name."""
    for host in hosts:
        if not is_host(host):
            raise UserError(
                f"{plain(host, 80)!r} is no host name; give a DNS name such as fed.example.org (xn--... for one beyond "
                "ASCII), or an IP address."
            )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def site_certificate(path: Path, name: str, key: ec.EllipticCurvePublicKey) -> str:
    """A client certificate of the authority for a site's key, as PEM."""
    authority, signing = _authority(path)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        _certificate(subject, authority.subject, key, _end_under(authority))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signing, hashes.SHA256())
        .public_bytes(_PEM)
        .decode()
    )


@dataclass(frozen=True)
class Validity:
    """How long a certificate is valid by this machine's clock.

    Attributes:
        begins: in days from now; negative once it is valid.
        ends: in days from now; negative once it has expired.
        last_day: in words.
    """

    begins: float
    ends: float
    last_day: str

    def complaint(self, certificate: str) -> str:
        """A sentence about a certificate that is not valid, or not for long; "" about any other.

        Args:
            certificate: what it is called, such as "The server's certificate server.pem".
        """
        if self.begins > 0:
            return (
                f"{certificate} is valid only {_span(self.begins)} from now by this machine's clock; the clock is "
                "behind, set it right."
            )
        if self.ends < 0:
            return f"{certificate} expired {_span(-self.ends)} ago, on {self.last_day}, by this machine's clock."
        return f"{certificate} expires in {_span(self.ends)}, on {self.last_day}." if self.ends < _SOON_DAYS else ""

    @property
    def valid(self) -> bool:
        """Whether the certificate counts today."""
        return self.begins <= 0 <= self.ends


def validity(path: Path, now: datetime.datetime | None = None) -> Validity:
    """How long a certificate is valid from now on; raises UserError if it cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"The certificate {path} cannot be read: {error}.") from error
    now, day = now or datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Validity((begins - now) / day, (ends - now) / day, f"{ends:%Y-%m-%d}")


def _span(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"


def certificate_serial(path: Path) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def signed_revocation_list(path: Path, serials: list[int], now: datetime.datetime | None = None) -> str:
    """The authority's list of revoked certificates, as PEM; it counts for as many days from now as a certificate."""
    authority, signing = _authority(path)
    now = now or datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - datetime.timedelta(days=1))
        .next_update(now + datetime.timedelta(days=_VALID_DAYS))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(signing, hashes.SHA256()).public_bytes(_PEM).decode()


def is_old_list(path: Path, now: datetime.datetime | None = None) -> bool:
    """Whether a revocation list was signed more than a day ago, or cannot be read."""
    try:
        ends = x509.load_pem_x509_crl(path.read_bytes()).next_update_utc
    except (OSError, ValueError):
        return True
    left = None if ends is None else ends - (now or datetime.datetime.now(datetime.UTC))
    return left is None or left < datetime.timedelta(days=_VALID_DAYS - 1)


def _authority(path: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key((path / "keys" / "ca.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return x509.load_pem_x509_certificate((path / "ca.pem").read_bytes()), key
