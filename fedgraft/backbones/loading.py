"""Find a backbone by name: the embedded `mini`, a Hugging Face folder, or a Hugging Face id."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch

from fedgraft.backbones.base import Backbone, Precision
from fedgraft.backbones.clip import load_clip
from fedgraft.backbones.pruned import PrunedBackbone, TicketFile, is_ticket
from fedgraft.errors import UserError

FAMILIES = {"clip": load_clip}
"""Loaders by the `model_type` of config.json; a new family is one more file and one more line here."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def mini_folder() -> Path:
    """The folder of the embedded backbone."""
    return Path(str(files("fedgraft.backbones.mini"))) / "weights"


def best_device() -> torch.device:
    """The GPU that this process may use, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_backbone(name: str, precision: Precision = "float32", device: torch.device | None = None) -> Backbone:
    """Load "mini", a folder of a model or of a ticket, or a Hugging Face id such as "openai/clip-vit-base-patch16".

    Args:
        name: which.
        precision: of the weights in memory; the fingerprint is that of the weights on disk.
        device: where they go, the CPU unless given.

    Raises:
        UserError: it is not there, has no weights, or is of a family that fedgraft does not know.
    """
    device = device or torch.device("cpu")
    folder = mini_folder() if name == "mini" else Path(name).expanduser()
    if is_ticket(folder):
        ticket = TicketFile.read(folder)
        return PrunedBackbone(name, load_backbone(ticket.source, precision, device), ticket)
    if folder.is_dir():
        return _load_folder(folder, name, precision, device)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"There is no backbone {name!r}: give mini, a Hugging Face folder, "
            "or an id such as openai/clip-vit-base-patch16."
        )
    return FAMILIES[_family(_downloaded_config(name), f"backbone {name!r}")](name, name, precision, device)


def _load_folder(folder: Path, name: str, precision: Precision, device: torch.device) -> Backbone:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"The backbone folder {folder} has no config.json; expected a Hugging Face model folder.")
    family = _family(config, f"backbone folder {folder}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The backbone folder {folder} holds no weights (*.safetensors).")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(f"The backbone folder {folder} has no tokenizer ({' or '.join(_TOKENIZER_FILES)}).")
    with _no_progress_bar():
        return FAMILIES[family](str(folder), name, precision, device)


def _family(config: Path, what: str) -> str:
    try:
        family = json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{config} is not a Hugging Face configuration: {error}.") from error
    if family not in FAMILIES:
        raise UserError(f"The {what} is of the family {family!r}; known: {', '.join(FAMILIES)}.")
    return str(family)


def _downloaded_config(name: str) -> Path:
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(name, "config.json")))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"The backbone {name!r} cannot be loaded: {reason}") from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Reading a local folder takes a moment and needs no bar; a download keeps its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
