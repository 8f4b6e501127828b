"""A registry's folder: its certificates, its database, the files of the releases. A copy of it is a backup.

fleet.toml     format, id and port
ca.pem         what a device needs to verify the registry
server.pem     the registry's certificate; keys/ has the private keys of both, mode 0600
registry.db    devices, tokens, channels, rollouts and what devices reported, in SQLite
blobs/         files of releases by their SHA-256

No publisher's key is in it: a registry gives out what publishers signed, and can sign nothing itself.
"""

import secrets
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tomli_w

from fedgraft.core.errors import UserError
from fedgraft.core.files import new_private_folder, write_text
from fedgraft.device.agent.metadata import Trust
from fedgraft.fleet.database import Database
from fedgraft.runs.certificates import write_certificates

FORMAT = 1


@dataclass(frozen=True)
class FleetFolder:
    """A registry's folder and what its fleet.toml says.

    Attributes:
        fleet: the id of the fleet, 64 hexadecimal digits.
    """

    path: Path
    fleet: str
    port: int

    @classmethod
    def create(cls, path: Path, hosts: list[str], port: int, publisher: bytes) -> Self:
        """Create the folder with a new authority and a database.

        Args:
            hosts: names and addresses by which devices reach the registry.
            publisher: the public key that signs what is published.

        Raises:
            UserError: the folder exists and is not empty.
        """
        new_private_folder(path, "a fleet", ("keys", "blobs"))
        write_certificates(path, hosts)
        folder = cls(path, secrets.token_hex(32), port)
        with folder.database() as database:
            trust = Trust(folder.fleet, 1, (publisher.hex(),))
            database.add_trust(1, {"signed": trust.content(), "signatures": []})
        return folder.at_port(port)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing folder; raises UserError if it is not a registry's, or one of a newer version."""
        file = path / "fleet.toml"
        try:
            settings = tomllib.loads(file.read_text())
            version = settings["format"]
            if type(version) is not int or version > FORMAT:
                raise UserError(
                    f"{path} was written by a newer fedgraft (format {version}, and this one reads {FORMAT}); install "
                    "that version to use it."
                )
            return cls(path, str(settings["fleet"]), int(settings["port"]))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} is not a fleet's folder: {file} cannot be read ({error}); `fedgraft fleet serve` makes one."
            ) from error

    def at_port(self, port: int) -> Self:
        """The folder with another port in its fleet.toml."""
        write_text(self.path / "fleet.toml", tomli_w.dumps({"format": FORMAT, "fleet": self.fleet, "port": port}))
        return type(self)(self.path, self.fleet, port)

    @property
    def authority(self) -> Path:
        """The authority's certificate, which every device needs."""
        return self.path / "ca.pem"

    @property
    def certificate(self) -> Path:
        """The registry's certificate."""
        return self.path / "server.pem"

    @property
    def private_key(self) -> Path:
        """The key of the registry's certificate."""
        return self.path / "keys" / "server.key"

    def database(self) -> Database:
        """The database, opened; raises UserError if it is damaged or of a newer version."""
        return Database(self.path / "registry.db")

    def backup(self, out: Path) -> None:
        """Copy all of it as it is at one moment, while it is served; raises UserError if `out` is not empty."""
        new_private_folder(out, "a backup", ("keys", "blobs"))
        with self.database() as database:
            database.backup(out / "registry.db")  # first: files are added before the database names them
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            if path.is_file() and not path.name.startswith((".", "registry.db")) and path.suffix != ".log":
                shutil.copy2(path, out / name)

    def blob(self, sha256: str) -> Path:
        """A file of a release."""
        return self.path / "blobs" / sha256
