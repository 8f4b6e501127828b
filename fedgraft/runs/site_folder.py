"""A site's folder: its configuration, its keys, its personal state, its feature cache and its logs.

site.toml      name, image folder, labels, what the server may learn
keys/site      private key (P-384, OpenSSH format), mode 0600; it never leaves the site
keys/site.pub  public key, for `fedgraft server admit`
keys/superexec the secret that SuperNode and SuperExec share, mode 0600
state/         personal parameters, one folder per run
cache/         image features
logs/          of the worker and of Flower's SuperNode
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedgraft.core.errors import UserError
from fedgraft.core.files import new_private_folder, secret_file, write_private, write_text
from fedgraft.runs.flower_app_folder import write_app


class SiteSettings(BaseModel):
    """What site.toml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=64, description="the site's name on the server")
    data: str = Field(default="", description="the folder of images: class/image or domain/class/image")
    backbone: str = Field(default="", description="the site's copy of the backbone, by default as the server names it")
    share_counts: bool = Field(default=True, description="whether the server learns the number of images per class")
    smallest_sum: int = Field(default=3, ge=2, description="the fewest sites in a sum of secure aggregation")
    task_seconds: float = Field(default=3600.0, gt=0, description="a worker that takes longer over a message restarts")
    labels: dict[str, str] = Field(default_factory=dict, description="the federation's class for a folder's name")


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder and the settings in its site.toml."""

    path: Path
    settings: SiteSettings

    @classmethod
    def create(cls, path: Path, name: str, data: Path | None = None) -> Self:
        """Create the folder with new keys; raises UserError if it exists and is not empty."""
        new_private_folder(path, "a site", ("keys", "state", "cache", "logs"))
        key = ec.generate_private_key(ec.SECP384R1())
        pem, openssh = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        write_private(path / "keys" / "site", key.private_bytes(pem, openssh, serialization.NoEncryption()))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_text(path / "keys" / "site.pub", f"{public.decode()} {name}\n")
        settings = SiteSettings(name=name, data=str(data.absolute()) if data else "")
        write_text(path / "site.toml", tomli_w.dumps(settings.model_dump()))
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing folder; raises UserError if it is not a site's or its site.toml is invalid."""
        file = path / "site.toml"
        try:
            return cls(path, SiteSettings.model_validate(tomllib.loads(file.read_text())))
        except OSError as error:
            raise UserError(f"{path} is not a site's folder: {file} cannot be read ({error.strerror}).") from error
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{file} is not TOML: {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(f"{file}: {key!r} has the value {first['input']!r}: {first['msg']}.") from error

    @property
    def data(self) -> Path:
        """The folder of images; raises UserError if site.toml names none."""
        if not self.settings.data:
            raise UserError(f'{self.path / "site.toml"} names no folder of images; give data = "/absolute/path".')
        return Path(self.settings.data).expanduser()

    @property
    def private_key(self) -> Path:
        """The private key's file."""
        return self.path / "keys" / "site"

    @property
    def public_key(self) -> Path:
        """The public key's file."""
        return self.path / "keys" / "site.pub"

    @property
    def certificate(self) -> Path:
        """The certificate that the server issued for the public key."""
        return self.path / "site.pem"

    @property
    def tls_key(self) -> Path:
        """The private key in the format that TLS libraries read, made from the other where missing."""
        path = self.path / "keys" / "site.pem"
        if not path.exists():
            key = serialization.load_ssh_private_key(self.private_key.read_bytes(), password=None)
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            write_private(path, key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        return path

    @property
    def app(self) -> Path:
        """The folder of the one Flower app that the site runs."""
        return write_app(self.path / "app")

    def write_secret(self) -> Path:
        """The file of the secret that SuperNode and SuperExec share."""
        return secret_file(self.path / "keys" / "superexec")

    @property
    def state(self) -> Path:
        """Where personal parameters are kept."""
        return self.path / "state"

    @property
    def cache(self) -> Path:
        """Where image features are kept."""
        return self.path / "cache"

    @property
    def logs(self) -> Path:
        """Where logs are kept."""
        return self.path / "logs"
