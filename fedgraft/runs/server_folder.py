"""A server's folder: its certificate authority, its certificate, the keys of the admitted sites, Flower's database.

server.toml      port
ca.pem           what a site needs to verify the server
keys/            private keys of authority and server, and the secret of SuperLink and SuperExec, mode 0600
admitted/        public keys of sites, by name
superlink.db     Flower's state
flwr/            Flower's configuration for the commands that talk to this server
app/             the Flower app that a run submits to the SuperLink
logs/
"""

import datetime
import ipaddress
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tomli_w
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedgraft.core.errors import UserError
from fedgraft.core.files import new_private_folder, secret_file, write_private, write_text

_VALID_DAYS = 825
_CONNECTION = "fedgraft"
_APP = """[project]
name = "fedgraft-app"
version = "{version}"
description = "Server and client of the installed package fedgraft"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedgraft"
fab-include = ["graft/*.py"]

[tool.flwr.app.components]
serverapp = "graft.server_app:app"
clientapp = "graft.client_app:app"

[tool.flwr.app.config]
out = ""
settings = ""
"""
_MODULE = """from {} import {}

__all__ = ["app"]
"""


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder and the port in its server.toml."""

    path: Path
    port: int

    @classmethod
    def create(cls, path: Path, hosts: list[str], port: int) -> Self:
        """Create the folder with a new authority, and a certificate for the given host names and addresses.

        Raises:
            UserError: the folder exists and is not empty.
        """
        new_private_folder(path, "a server", ("keys", "admitted", "flwr", "logs"))
        _write_certificates(path, hosts)
        write_text(path / "server.toml", tomli_w.dumps({"port": port}))
        return cls(path, port)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing folder; raises UserError if it is not a server's."""
        file = path / "server.toml"
        try:
            return cls(path, int(tomllib.loads(file.read_text())["port"]))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a server's folder: {file} cannot be read ({error}).") from error

    @property
    def authority(self) -> Path:
        """The authority's certificate, which every site needs."""
        return self.path / "ca.pem"

    def admit(self, key: Path) -> str:
        """Store a site's public key and return the site's name, the comment of the key.

        Raises:
            UserError: it is not a suitable public key, or another site has the name.
        """
        try:
            text = key.read_text().strip()
            public = serialization.load_ssh_public_key(text.encode())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise UserError(f"{key} is not a public key; give the keys/site.pub of the site ({error}).") from error
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise UserError(f"{key} is of a type that Flower does not accept; give the keys/site.pub of the site.")
        name = text.split(maxsplit=2)[2] if len(text.split()) > 2 else key.stem
        if not re.fullmatch(r"[\w.@ -]{1,64}", name) or name.startswith("."):
            raise UserError(f"{key} names the site {name!r}; a name may have letters, digits, spaces and . - _ @ only.")
        kept = self.path / "admitted" / f"{name}.pub"
        if kept.exists() and kept.read_text().split()[1] != text.split()[1]:
            raise UserError(f"Another site named {name!r} is already admitted; remove {kept} first.")
        write_text(kept, text + "\n")
        return name

    def admitted(self) -> list[Path]:
        """The public keys of all admitted sites."""
        return sorted((self.path / "admitted").glob("*.pub"))

    def write_secret(self) -> Path:
        """The file of the secret that SuperLink and SuperExec share."""
        return secret_file(self.path / "keys" / "superexec")

    def write_connection(self) -> str:
        """Configure Flower's commands for this server, in $FLWR_HOME = flwr/, and return the connection's name."""
        connection = {"address": f"127.0.0.1:{self.port}", "root-certificates": str(self.authority.absolute())}
        text = tomli_w.dumps({"superlink": {"default": _CONNECTION, _CONNECTION: connection}})
        write_text(self.path / "flwr" / "config.toml", text)
        return _CONNECTION

    def write_app(self, version: str) -> Path:
        """Write the Flower app, two modules that refer to the installed package, and return its folder."""
        app = self.path / "app"
        write_text(app / "pyproject.toml", _APP.format(version=version))
        graft = app / "graft"
        write_text(graft / "__init__.py", "")
        write_text(graft / "server_app.py", _MODULE.format("fedgraft.deployment.flower_app", "server_app as app"))
        write_text(graft / "client_app.py", _MODULE.format("fedgraft.client.app", "app"))
        return app


def _write_certificates(path: Path, hosts: list[str]) -> None:
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedgraft authority")])
    authority = (
        _certificate(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        _certificate(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]), authority_name, server_key.public_key()
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    for name, key in (("ca.key", authority_key), ("server.key", server_key)):
        secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        write_private(path / "keys" / name, secret)
    write_text(path / "ca.pem", authority.public_bytes(pem).decode())
    write_text(path / "server.pem", server.public_bytes(pem).decode())


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
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


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
