"""Find a backbone by name: the embedded `mini`, a Hugging Face folder, or a Hugging Face id."""

import json
from importlib.resources import files
from pathlib import Path

from fedgraft.backbones.base import Backbone
from fedgraft.backbones.clip import load_clip
from fedgraft.errors import UserError

FAMILIES = {"clip": load_clip}
"""Loaders by the `model_type` of config.json; a new family is one more file and one more line here."""


def mini_folder() -> Path:
    """The folder of the embedded backbone."""
    return Path(str(files("fedgraft.backbones.mini"))) / "weights"


def load_backbone(name: str) -> Backbone:
    """Load "mini", a local folder, or a Hugging Face id such as "openai/clip-vit-base-patch16".

    Raises:
        UserError: it is not there, has no weights, or is of a family that fedgraft does not know.
    """
    folder = mini_folder() if name == "mini" else Path(name).expanduser()
    if folder.is_dir():
        return _load_folder(folder, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"There is no backbone {name!r}: give mini, a Hugging Face folder, "
            "or an id such as openai/clip-vit-base-patch16."
        )
    return load_clip(name, name)


def _load_folder(folder: Path, name: str) -> Backbone:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"The backbone folder {folder} has no config.json; expected a Hugging Face model folder.")
    try:
        family = json.loads(config.read_text()).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{config} is not a Hugging Face configuration: {error}.") from error
    if family not in FAMILIES:
        raise UserError(f"The backbone folder {folder} is of the family {family!r}; known: {', '.join(FAMILIES)}.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The backbone folder {folder} holds no weights (*.safetensors).")
    return FAMILIES[family](str(folder), name)
