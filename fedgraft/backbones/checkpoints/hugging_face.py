"""Hugging Face's own layout: names stay as they are, and transformers says whether they fit."""

from pathlib import Path
from typing import Any

from fedgraft.backbones.checkpoints.conversion import Conversion
from fedgraft.backbones.checkpoints.quiet import quietly
from fedgraft.backbones.checkpoints.sources import read_settings
from fedgraft.backbones.checkpoints.weights import Weights, some
from fedgraft.core.errors import UserError

_PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")


def hugging_face_conversion(weights: Weights, settings: dict[str, Any], folders: list[Path]) -> Conversion:
    """The conversion of a Hugging Face model, of which only the file format changes.

    Args:
        settings: its `config.json`.
        folders: where its preprocessing may lie.

    Raises:
        UserError: the preprocessing is missing, or transformers does not know the model.
    """
    kind = str(settings["model_type"])
    preprocessor = _preprocessor(folders)
    return Conversion(kind, settings, weights, preprocessor, words=_vocabulary(kind, settings), own_names=True)


def _preprocessor(folders: list[Path]) -> dict[str, Any]:
    for folder in folders:
        for name in _PREPROCESSOR:
            if (folder / name).is_file():
                described = read_settings(folder / name)
                return dict(described.get("image_processor", described))
    where = f"{folders[-1]} has" if folders else "It has"
    raise UserError(f"{where} no preprocessing ({_PREPROCESSOR[0]}); give --config with a folder that has it.")


def _vocabulary(kind: str, settings: dict[str, Any]) -> int:
    """The size of the text tower's vocabulary, which a configuration may leave to its model's default."""
    from transformers import AutoConfig

    try:
        with quietly():
            config = AutoConfig.for_model(kind, **{key: settings[key] for key in settings if key != "model_type"})
        return int(config.text_config.vocab_size)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"It is of the kind {kind!r}, which is no dual encoder of transformers.") from error


def require_loadable(folder: Path) -> None:
    """Raise UserError unless a written folder has all weights of its configuration, in their shapes, and no other.

    transformers reads the names itself, with all renamings that it knows of older versions, and no values.
    """
    from transformers import AutoModel

    try:
        with quietly():
            _, report = AutoModel.from_pretrained(
                folder, device_map="meta", ignore_mismatched_sizes=True, output_loading_info=True, use_safetensors=True
            )
    except Exception as error:  # whatever a configuration makes transformers raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"transformers cannot build the model of its configuration: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"The checkpoint lacks {len(missing)} weights of its configuration: {some(missing)}.")
    if extra := sorted(report["unexpected_keys"]):
        raise UserError(f"The checkpoint has {len(extra)} weights that its configuration has not: {some(extra)}.")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise UserError(
            f"The weight {name} does not fit the configuration: it is {tuple(found)}, expected {tuple(expected)}."
        )
