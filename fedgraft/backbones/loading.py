"""Load a backbone by name: the embedded `mini`, a folder that a family recognizes, or a Hugging Face ID."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from fedgraft.backbones.backbone import Backbone, Precision
from fedgraft.backbones.family import Family, Request, model_type
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError

MINI = "mini"


def mini_folder() -> Path:
    """The folder of the embedded backbone."""
    return Path(str(files("fedgraft.backbones.mini"))) / "weights"


def best_device() -> torch.device:
    """The GPU, if this process may use one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_backbone(
    name: str,
    precision: Precision = "float32",
    device: torch.device | None = None,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """Load "mini", a folder of a model or of a ticket, or a Hugging Face ID such as "openai/clip-vit-base-patch16".

    Args:
        precision: of the weights in memory; the fingerprint is that of the weights on disk.
        device: of the weights; the CPU by default.
        options: of the family.

    Raises:
        UserError: it does not exist, has no weights, or is of an unknown family.
    """
    folder, source = _located(name)
    family = _family(folder, f"backbone {name!r}")
    parsed = family.parse_options(options or {})
    return family.load(Request(name, folder, source, precision, device or torch.device("cpu"), parsed))


def require_backbone(name: str) -> None:
    """Raise UserError unless there is a backbone of the name, of a known family; its weights are not looked at."""
    _family(_located(name)[0], f"backbone {name!r}")


def _located(name: str) -> tuple[Path, str]:
    """The folder of a backbone, and the argument for Hugging Face's loaders."""
    folder = mini_folder() if name == MINI else Path(name).expanduser()
    if folder.is_dir():
        return folder, str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"There is no backbone {name!r}; give mini, a Hugging Face folder, "
            "or an ID such as openai/clip-vit-base-patch16."
        )
    return _snapshot(name), name


def _family(folder: Path, what: str) -> Family:
    for family in BACKBONES:
        if family.recognizes(folder):
            found: Family = family
            return found
    kind = model_type(folder)
    if kind is None:
        raise UserError(f"The {what} in {folder} has no config.json; expected a Hugging Face model folder.")
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
