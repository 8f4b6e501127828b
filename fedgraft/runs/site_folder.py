"""A site's folder: its configuration, its keys, its personal state, its feature cache and its logs.

site.toml      name, image folder, labels, backbones, the site's policy, and its devices' report
keys/site      private key (P-384, OpenSSH format), mode 0600; it never leaves the site
keys/site.pub  public key, for `fedgraft server admit`
keys/new/      a new key pair that waits for its certificate, see key_rotation
peers          public keys of other sites, by which this one knows them in secure aggregation, see site_peers
keys/superexec the secret that SuperNode and SuperExec share, mode 0600
state/         personal parameters, one folder per run
cache/         image features
logs/          of the worker and of Flower's SuperNode
audit.jsonl    what servers asked, what was decided and what left the site, see `fedgraft site log`
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedgraft.core.errors import UserError
from fedgraft.core.files import new_private_folder, secret_file, write_private, write_text
from fedgraft.core.plain_text import name_problem
from fedgraft.runs.fleet_request import FleetSettings
from fedgraft.runs.flower_app_folder import write_app
from fedgraft.runs.site_policy import SitePolicy


class SiteSettings(BaseModel):
    """What site.toml holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(description="the site's name on the server")
    data: str = Field(default="", description="the folder of images: class/image or domain/class/image")
    backbone: str = Field(default="", description="a folder or Hugging Face ID, in place of what the server names")
    backbones: dict[str, str] = Field(default_factory=dict, description="folder or ID for a name that a server gives")
    task_seconds: float = Field(default=3600.0, gt=0, description="a worker that takes longer over a message restarts")
    on_bad_image: Literal["fail", "skip"] = Field(default="fail", description="skip: leave out what cannot be read")
    labels: dict[str, str] = Field(default_factory=dict, description="the federation's class for a folder's name")
    policy: SitePolicy = Field(default_factory=SitePolicy, description="which runs the site takes part in, and how")
    fleet: FleetSettings = Field(default_factory=FleetSettings, description="when the site's devices ask for a run")

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if problem := name_problem(name):
            raise ValueError(problem)
        return name


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder and the settings in its site.toml."""

    path: Path
    settings: SiteSettings

    @classmethod
    def create(cls, path: Path, name: str, data: Path | None = None, backbone: str = "") -> Self:
        """Create the folder with new keys; raises UserError if it exists and is not empty."""
        if problem := name_problem(name):
            raise UserError(f"{problem[0].upper()}{problem[1:]}.")
        new_private_folder(path, "a site", ("keys", "state", "cache", "logs"))
        key = ec.generate_private_key(ec.SECP384R1())
        pem, openssh = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
        write_private(path / "keys" / "site", key.private_bytes(pem, openssh, serialization.NoEncryption()))
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_text(path / "keys" / "site.pub", f"{public.decode()} {name}\n")
        settings = SiteSettings(name=name, data=str(data.absolute()) if data else "", backbone=backbone)
        write_text(path / "site.toml", tomli_w.dumps(settings.model_dump()))
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read an existing folder; raises UserError if it is not a site's or its site.toml is invalid."""
        file = path / "site.toml"
        try:
            content = tomllib.loads(file.read_text())
            if "share_counts" in content:
                raise UserError("'share_counts' belongs into the table [policy]; move it there")
            return cls(path, SiteSettings.model_validate(content))
        except UserError as error:
            raise UserError(f"{file}: {str(error).rstrip('.')}.") from error
        except OSError as error:
            raise UserError(f"{path} is not a site's folder: {file} cannot be read ({error.strerror}).") from error
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{file} is not TOML: {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "value_error":
                raise UserError(f"{file}: {key!r}: {first['ctx']['error']}.") from error
            raise UserError(f"{file}: {key!r} has the value {repr(first['input'])[:80]}: {first['msg']}.") from error

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
    def audit_log(self) -> Path:
        """The file of the audit log."""
        return self.path / "audit.jsonl"

    @property
    def peers(self) -> Path:
        """The file of the public keys of other sites; it need not exist."""
        return self.path / "peers"

    @property
    def logs(self) -> Path:
        """Where logs are kept."""
        return self.path / "logs"
