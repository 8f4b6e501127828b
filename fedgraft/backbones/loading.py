"""Load a backbone by name: an embedded one such as `mini`, a folder that a family recognizes, or a Hugging Face ID."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from fedgraft.backbones.abilities import Abilities, Needs, Sizes
from fedgraft.backbones.backbone import Backbone, Precision
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError

MINI = "mini"
_OTHER_WEIGHTS = ("open_clip_config.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
"""Weights that `fedgraft backbones import` turns into a folder."""


def mini_folder() -> Path:
    """The folder of the embedded backbone."""
    return Path(str(files("fedgraft.backbones.mini"))) / "weights"


def embedded_backbones() -> dict[str, Callable[[], Path]]:
    """Functions that return the folders of backbones that need none of the user's, by name."""
    return {name: folder for family in BACKBONES for name, folder in family.embedded.items()}


def best_device() -> torch.device:
    """The GPU, if this process may use one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_backbone(
    name: str,
    precision: Precision = "float32",
    device: torch.device | None = None,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """Load a backbone.

    Its name is that of an embedded one such as "mini", a folder of a model or of a ticket, or a Hugging Face ID such as
    "openai/clip-vit-base-patch16".

    Args:
        precision: of the weights in memory; the fingerprint is that of the weights on disk.
        device: of the weights; the CPU by default.
        options: of the family.

    Raises:
        UserError: it does not exist, has no weights, or is of an unknown family.
    """
    known = located(name)
    parsed = known.family.parse_options(options or {})
    known.sizes()  # a malformed configuration is refused before anything is loaded
    wanted = device or torch.device("cpu")
    return known.family.load(Request(name, known.folder, known.source, precision, wanted, parsed))


@dataclass(frozen=True)
class KnownFolder:
    """A backbone that was found and whose family is known; nothing of it was loaded.

    Attributes:
        name: as the user wrote it.
        folder: of its files.
        source: the argument for Hugging Face's loaders.
    """

    name: str
    folder: Path
    source: str
    family: Family

    def abilities(self) -> Abilities:
        """What it can do, from its configuration alone; raises UserError if that is malformed."""
        with self._configuration():
            return self.family.abilities_of(self.folder)

    def sizes(self) -> Sizes:
        """Its sizes, from its configuration alone; raises UserError if that is malformed."""
        with self._configuration():
            return self.family.sizes(self.folder)

    def require(self, needs: Needs) -> None:
        """Raise UserError for the first need that it does not meet."""
        needs.check(self.name, self.abilities(), self.sizes())

    @contextmanager
    def _configuration(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # transformers checks a configuration with errors of many kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            path = self.folder / "config.json"
            raise UserError(f"{path} is not a configuration of the family {self.family.name!r}: {reason}") from error


def located(name: str) -> KnownFolder:
    """Find a backbone and its family; raises UserError unless there is one, of a known family."""
    embedded = embedded_backbones()
    folder = embedded[name]() if name in embedded else Path(name).expanduser()
    source = str(folder)
    if not folder.is_dir():
        if folder.is_file():
            raise UserError(f"The backbone {name!r} is a file, not a folder.{import_hint(folder)}")
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise UserError(
                f"There is no backbone {name!r}; give {', '.join(sorted(embedded))}, a Hugging Face folder, "
                "or an ID such as openai/clip-vit-base-patch16."
            )
        folder, source = _snapshot(name), name
    return KnownFolder(name, folder, source, _family(folder, f"backbone {name!r}"))


def require_backbone(name: str, needs: Needs | None = None) -> None:
    """Raise UserError unless there is a backbone of the name that meets the needs; its weights are not looked at."""
    located(name).require(needs or Needs())


def import_hint(path: Path) -> str:
    """A sentence with the command that imports a file or a folder, with a space before it; empty if it holds nothing.

    Args:
        path: what the user named.
    """
    found = [path] if path.is_file() else [file for pattern in _OTHER_WEIGHTS for file in sorted(path.glob(pattern))]
    if not found:
        return ""
    return f" It has {found[0].name}: `fedgraft backbones import {path} --out FOLDER` makes a folder that opens."


def _family(folder: Path, what: str) -> Family:
    for family in BACKBONES:
        if family.recognizes(folder):
            found: Family = family
            return found
    kind = model_type(folder)
    if kind is None:
        hint = import_hint(folder)
        raise UserError(f"The {what} in {folder} has no config.json; expected a Hugging Face model folder.{hint}")
    faults = " ".join(BACKBONES.faults())
    raise UserError(f"The {what} is of the family {kind!r}; known: {', '.join(BACKBONES.names())}. {faults}".rstrip())


def _snapshot(name: str) -> Path:
    """The folder with the downloaded configuration of an ID."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, "config.json"))).parent
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The backbone {name!r} cannot be loaded: {reason}") from error
