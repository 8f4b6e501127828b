"""A server's folder: its certificate authority, its certificate, the keys of the admitted sites, Flower's database.

server.toml      port, and the port of the SuperLink on loopback
ca.pem           what a site needs to verify the server
keys/            private keys of authority and server, and the secrets of the server's processes, mode 0600
admitted/        public keys and certificates of sites, by name
replaced/        the same that still count beside a newer key or certificate of the same site
revoked/         the same that count no longer
revoked.pem      the authority's revocation list
superlink.db     Flower's state
flwr/            Flower's configuration for the commands that talk to this server
app/             the Flower app that a run submits to the SuperLink
runs/            the runs that were submitted, and their queue
logs/
"""

import os
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.core.errors import UserError
from fedgraft.core.files import free_port, locked, new_private_folder, secret_file, write_bytes, write_text
from fedgraft.core.plain_text import name_problem
from fedgraft.runs.certificates import (
    certificate_hosts,
    certificate_serial,
    is_old_list,
    require_hosts,
    signed_revocation_list,
    site_certificate,
    validity,
    write_certificates,
    write_server_certificate,
)
from fedgraft.runs.flower_app_folder import write_app

if TYPE_CHECKING:
    from fedgraft.runs.run_queue import RunQueue

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
            UserError: the folder exists and is not empty, or a host is none.
        """
        require_hosts(hosts)
        new_private_folder(path, "a server", ("keys", "admitted", "replaced", "revoked", "flwr", "logs"))
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
    def queue(self) -> "RunQueue":
        """The runs that were submitted to the server."""
        from fedgraft.runs.run_queue import RunQueue  # with what run directories need, which most commands do not

        return RunQueue(self.path / "runs")

    @property
    def app(self) -> Path:
        """The folder of the Flower app that runs are submitted with."""
        return write_app(self.path / "app")

    def certificate_of(self, name: str) -> Path:
        """The client certificate of an admitted site."""
        return self.path / "admitted" / f"{name}.pem"

    def admit(self, key: Path, replace: bool = False) -> str:
        """Store a site's public key, issue its certificate, and return its name, the comment of the key.

        Args:
            replace: whether it may be a new key of a site that is admitted; the old one counts beside it for a time.

        Raises:
            UserError: it is not a suitable public key, it was revoked, or another site has the name.
        """
        try:
            text = key.read_text().strip()
            public = serialization.load_ssh_public_key(text.encode())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise UserError(f"{key} is not a public key; give the keys/site.pub of the site ({error}).") from error
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise UserError(f"{key} is of a type that Flower does not accept; give the keys/site.pub of the site.")
        name = text.split(maxsplit=2)[2] if len(text.split()) > 2 else key.stem
        if problem := name_problem(name):
            raise UserError(f"{key} names no site: {problem}.")
        if any(_same_key(path, text) for folder in ("revoked", "replaced") for path in self._keys(folder)):
            raise UserError(f"The key {key} was revoked or replaced; `fedgraft site rotate` makes the site a new one.")
        kept = self.path / "admitted" / f"{name}.pub"
        if kept.exists() and not _same_key(kept, text):
            if not replace:
                raise UserError(
                    f"Another site named {name!r} is already admitted; `fedgraft server revoke` takes its admission "
                    "back, and --replace says that this is a new key of the same site."
                )
            if any(own == name for own, _ in self.replaced()):
                self.retire(name)
            self._set_aside(name, "replaced", with_key=True)  # the key stays until the new one takes its place at once
        write_text(kept, text + "\n")
        if not self.certificate_of(name).exists():
            write_text(self.certificate_of(name), site_certificate(self.path, name, public))
        return name

    def renew(self, name: str) -> Path:
        """Issue a new certificate for an admitted site's key; the one before stays valid until its own last day."""
        key = serialization.load_ssh_public_key(self._admitted_key(name).read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        self._set_aside(name, "replaced", with_key=False)
        write_text(self.certificate_of(name), site_certificate(self.path, name, key))
        return self.certificate_of(name)

    def revoke(self, name: str) -> list[Path]:
        """Take a site's admission back and return its public keys; raises UserError if no such site is admitted."""
        self._admitted_key(name)
        self._set_aside(name, "revoked", with_key=True)
        self.retire(name)
        return [path for path in self._keys("revoked") if _site_of(path) == name]

    def retire(self, name: str) -> None:
        """Let a site's replaced keys and certificates count no more."""
        (self.path / "revoked").mkdir(exist_ok=True)
        for path in [path for path in (self.path / "replaced").glob("*.p*") if _site_of(path) == name]:
            path.replace(self.path / "revoked" / path.name)
        self.write_revocation_list()

    def replaced(self) -> list[tuple[str, Path]]:
        """The replaced keys that still count, each with its site's name; not one whose successor is not there yet."""
        named = [(_site_of(path), path) for path in self._keys("replaced")]
        return [(name, path) for name, path in named if not self._is_admitted(name, path)]

    def write_revocation_list(self, now: datetime | None = None) -> None:
        """Write the list anew from the certificates of revoked sites, one process at a time, so that none is lost."""
        with locked(self.path / "keys" / "revoked.lock"):
            serials = [certificate_serial(path) for path in sorted((self.path / "revoked").glob("*.pem"))]
            write_text(self.revocation_list, signed_revocation_list(self.path, serials, now))

    def renew_revocation_list(self, now: datetime | None = None) -> None:
        """Write the list anew if it is more than a day old: one that has expired would shut out every site."""
        if is_old_list(self.revocation_list, now):
            self.write_revocation_list(now)

    def rotate(self, hosts: list[str]) -> None:
        """Issue a new certificate to the server; for the hosts that it had, or others; raises UserError as `create`."""
        require_hosts(hosts)
        write_server_certificate(self.path, hosts or certificate_hosts(self.certificate))

    def complaints(self) -> list[str]:
        """A sentence for each certificate that is not valid, or not for long."""
        named = [("The authority's certificate ca.pem", self.authority)]
        named += [("The server's certificate server.pem", self.certificate)]
        named += [
            (f"The certificate of the site {key.stem!r}", self.certificate_of(key.stem)) for key in self.admitted()
        ]
        return [said for what, path in named if path.exists() and (said := validity(path).complaint(what))]

    def admitted(self) -> list[Path]:
        """The public keys of all admitted sites."""
        return self._keys("admitted")

    def _keys(self, folder: str) -> list[Path]:
        return sorted((self.path / folder).glob("*.pub"))

    def _is_admitted(self, name: str, key: Path) -> bool:
        """Whether a site is still admitted by a key."""
        try:
            return _same_key(key, (self.path / "admitted" / f"{name}.pub").read_text())
        except OSError:  # the site was revoked meanwhile
            return False

    def _admitted_key(self, name: str) -> Path:
        """The public key of a site; raises UserError if it is not admitted."""
        if (key := self.path / "admitted" / f"{name}.pub") not in self.admitted():
            known = ", ".join(path.stem for path in self.admitted()) or "none"
            raise UserError(f"No site named {name!r} is admitted; admitted: {known}.")
        return key

    def _set_aside(self, name: str, folder: str, with_key: bool) -> None:
        """Move a site's certificate, and its key if that goes as well, into another folder.

        The key of a site that is to have another one is copied: a run that looks between both would take a site
        without any key for one that has left.
        """
        (self.path / folder).mkdir(exist_ok=True)
        certificate = self.certificate_of(name)
        serial = certificate_serial(certificate) if certificate.exists() else 0
        moved = [certificate, *([self.path / "admitted" / f"{name}.pub"] if with_key else [])]
        for path in filter(Path.exists, moved):
            os.utime(path)
            aside = self.path / folder / f"{name}-{serial:x}{path.suffix}"
            if folder == "replaced" and path.suffix == ".pub":
                if not any(_same_key(path, kept.read_text()) for kept in self._keys(folder)):
                    write_bytes(aside, path.read_bytes())
            else:
                path.replace(aside)

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


def _site_of(path: Path) -> str:
    """The name of the site that a replaced or revoked file belongs to."""
    return path.stem.rpartition("-")[0]


def _same_key(path: Path, text: str) -> bool:
    return path.read_text().split()[1] == text.split()[1]


def admitted_key_files(folder: Path, name: str) -> list[Path]:
    """The files of the keys that a site may use, given the folder `admitted/`: its key, and replaced ones."""
    replaced = [path for path in (folder.parent / "replaced").glob("*.pub") if _site_of(path) == name]
    return [path for path in (folder / f"{name}.pub", *sorted(replaced)) if path.exists()]


def admitted_names(folder: Path) -> set[str] | None:
    """The names of the sites whose keys are in a folder `admitted/`; None if there is no such folder."""
    return {path.stem for path in folder.glob("*.pub")} if folder.is_dir() else None
