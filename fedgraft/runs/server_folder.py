"""A server's folder: its certificate authority, its certificate, the keys of the admitted sites, Flower's database.

server.toml      port, and the port of the SuperLink on loopback
ca.pem           what a site needs to verify the server
keys/            private keys of authority and server, and the secrets of the server's processes, mode 0600
admitted/        public keys and certificates of sites, by name
revoked/         the same of sites that were admitted once
revoked.pem      the authority's revocation list
superlink.db     Flower's state
flwr/            Flower's configuration for the commands that talk to this server
app/             the Flower app that a run submits to the SuperLink
logs/
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.core.errors import UserError
from fedgraft.core.files import free_port, new_private_folder, secret_file, write_text
from fedgraft.runs.certificates import certificate_serial, signed_revocation_list, site_certificate, write_certificates
from fedgraft.runs.flower_app_folder import write_app

_CONNECTION = "fedgraft"


@dataclass(frozen=True)
class ServerFolder:
    """A server's folder and the ports in its server.toml: the exposed one, and the SuperLink's on loopback."""

    path: Path
    port: int
    superlink_port: int

    @classmethod
    def create(cls, path: Path, hosts: list[str], port: int) -> Self:
        """Create the folder with a new authority, and a certificate for the given host names and addresses.

        Raises:
            UserError: the folder exists and is not empty.
        """
        new_private_folder(path, "a server", ("keys", "admitted", "revoked", "flwr", "logs"))
        write_certificates(path, hosts)
        ports = {"port": port, "superlink_port": free_port()}
        write_text(path / "server.toml", tomli_w.dumps(ports))
        folder = cls(path, **ports)
        folder.write_revocation_list()
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing folder; raises UserError if it is not a server's."""
        file = path / "server.toml"
        try:
            settings = tomllib.loads(file.read_text())
            if "superlink_port" not in settings:
                raise UserError(
                    f"{path} was made by fedgraft 0.1.0, which issued no certificates to sites; make a new folder with "
                    "`fedgraft server init`, admit the sites again, and give them its ca.pem."
                )
            return cls(path, int(settings["port"]), int(settings["superlink_port"]))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not a server's folder: {file} cannot be read ({error}).") from error

    @property
    def authority(self) -> Path:
        """The authority's certificate, which every site needs."""
        return self.path / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "server.pem"

    @property
    def private_key(self) -> Path:
        """The key of the server's certificate."""
        return self.path / "keys" / "server.key"

    @property
    def revocation_list(self) -> Path:
        """The authority's list of certificates that count no longer."""
        return self.path / "revoked.pem"

    @property
    def operator_secret(self) -> Path:
        """What an operator's commands show to the SuperLink; made if missing."""
        return secret_file(self.path / "keys" / "operator")

    @property
    def gateway_secret(self) -> Path:
        """What the gateway shows to the SuperLink; made if missing."""
        return secret_file(self.path / "keys" / "gateway")

    @property
    def app(self) -> Path:
        """The folder of the Flower app that runs are submitted with."""
        return write_app(self.path / "app")

    def certificate_of(self, name: str) -> Path:
        """The client certificate of an admitted site."""
        return self.path / "admitted" / f"{name}.pem"

    def admit(self, key: Path) -> str:
        """Store a site's public key, issue its certificate, and return its name, the comment of the key.

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
            raise UserError(
                f"Another site named {name!r} is already admitted; `fedgraft server revoke` takes its admission back."
            )
        write_text(kept, text + "\n")
        if not self.certificate_of(name).exists():
            write_text(self.certificate_of(name), site_certificate(self.path, name, public))
        return name

    def revoke(self, name: str) -> Path:
        """Take a site's admission back and return its public key; raises UserError if no such site is admitted."""
        if not (key := self.path / "admitted" / f"{name}.pub").exists():
            known = ", ".join(path.stem for path in self.admitted()) or "none"
            raise UserError(f"No site named {name!r} is admitted; admitted: {known}.")
        gone = self.path / "revoked"
        gone.mkdir(exist_ok=True)
        serial = certificate_serial(self.certificate_of(name))
        self.certificate_of(name).replace(gone / f"{name}-{serial:x}.pem")
        kept = key.replace(gone / f"{name}.pub")
        self.write_revocation_list()
        return kept

    def write_revocation_list(self) -> None:
        """Write the list anew from the certificates of revoked sites."""
        serials = [certificate_serial(path) for path in sorted((self.path / "revoked").glob("*.pem"))]
        write_text(self.revocation_list, signed_revocation_list(self.path, serials))

    def admitted(self) -> list[Path]:
        """The public keys of all admitted sites."""
        return sorted((self.path / "admitted").glob("*.pub"))

    def write_secret(self) -> Path:
        """The file of the secret that SuperLink and SuperExec share."""
        return secret_file(self.path / "keys" / "superexec")

    def write_connection(self) -> str:
        """Configure Flower's commands for this server, in $FLWR_HOME = flwr/, and return the connection's name."""
        connection = {
            "address": f"127.0.0.1:{self.superlink_port}",
            "root-certificates": str(self.authority.absolute()),
        }
        text = tomli_w.dumps({"superlink": {"default": _CONNECTION, _CONNECTION: connection}})
        write_text(self.path / "flwr" / "config.toml", text)
        return _CONNECTION
