"""A site's folder: its configuration, its keys, its personal state, its feature cache and its logs.

site.toml      name, image folder, labels, what may be told to the server
keys/site      private key (P-384, OpenSSH format), mode 0600; it never leaves the site
keys/site.pub  public key, for `fedgraft server admit`
keys/superexec what SuperNode and SuperExec share, mode 0600
state/         personal parameters, a folder a run
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


class SiteSettings(BaseModel):
    """What site.toml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=64, description="how the server calls the site")
    data: str = Field(default="", description="the folder of images: class/image or domain/class/image")
    backbone: str = Field(default="", description="the site's copy of the backbone; what the server names unless given")
    share_counts: bool = Field(
        default=True, description="whether the server learns how many images of each class there are"
    )
    task_seconds: float = Field(
        default=3600.0, gt=0, description="a worker that is longer at one message is started again"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="the federation's class by the name of a folder")


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder and what its site.toml says."""

    path: Path
    settings: SiteSettings

    @classmethod
    def create(cls, path: Path, name: str, data: Path | None = None) -> Self:
        """Make the folder with new keys.

        Raises:
            UserError: there is something already.
        """
        new_private_folder(path, "a site", ("keys", "state", "cache", "logs"))
        key = ec.generate_private_key(ec.SECP384R1())
        openssh = serialization.PrivateFormat.OpenSSH
        write_private(
            path / "keys" / "site",
            key.private_bytes(serialization.Encoding.PEM, openssh, serialization.NoEncryption()),
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_text(path / "keys" / "site.pub", f"{public.decode()} {name}\n")
        settings = SiteSettings(name=name, data=str(data.absolute()) if data else "")
        write_text(path / "site.toml", tomli_w.dumps(settings.model_dump()))
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing folder.

        Raises:
            UserError: it is no site's folder, or its site.toml has a mistake.
        """
        file = path / "site.toml"
        try:
            return cls(path, SiteSettings.model_validate(tomllib.loads(file.read_text())))
        except OSError as error:
            raise UserError(f"{path} is no site's folder: {file} cannot be read ({error.strerror}).") from error
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{file} is not TOML: {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"{file}: {place!r} has the value {first['input']!r}: {first['msg']}.") from error

    @property
    def data(self) -> Path:
        """The folder of images.

        Raises:
            UserError: site.toml names none.
        """
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
