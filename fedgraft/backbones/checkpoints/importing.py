"""`fedgraft backbones import`: a checkpoint as people hold it becomes a folder that `--backbone` opens."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from fedgraft.backbones.checkpoints.conversion import Conversion
from fedgraft.backbones.checkpoints.hugging_face import hugging_face_conversion, require_loadable
from fedgraft.backbones.checkpoints.openclip import openai_conversion, openclip_conversion
from fedgraft.backbones.checkpoints.reading import read_weights
from fedgraft.backbones.checkpoints.sources import Source, locate
from fedgraft.backbones.checkpoints.tokenizers import find_tokenizer, require_tokenizer, write_tokenizer
from fedgraft.backbones.checkpoints.torchscript import is_torchscript
from fedgraft.backbones.checkpoints.writing import new_folder, require_new, write_json, write_safetensors
from fedgraft.config.registry import BACKBONES
from fedgraft.core.errors import UserError

Activation = Literal["quick_gelu", "gelu"]
WeightPrecision = Literal["kept", "float32"]


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        out: the folder.
        layout: what the checkpoint was.
        family: the backbone family that opens the folder.
        parameters: the number of values.
        bytes: the size of the weights on disk.
        precisions: of the weights.
    """

    out: Path
    layout: str
    family: str
    parameters: int
    bytes: int
    precisions: tuple[str, ...]


def import_checkpoint(
    source: str,
    out: Path,
    tokenizer: Path | None = None,
    config: Path | None = None,
    precision: WeightPrecision = "kept",
    activation: Activation | None = None,
) -> Imported:
    """Turn a checkpoint into a folder with a configuration, a tokenizer, preprocessing and safetensors.

    Args:
        source: a file of weights, a folder in Hugging Face's or OpenCLIP's layout, or a Hugging Face ID.
        out: a new folder, or an empty one.
        tokenizer: a folder with the tokenizer, or CLIP's `bpe_simple_vocab_16e6.txt.gz`.
        config: the configuration of a file that comes without one.
        precision: "kept" writes the weights as they are. Half precision is exact in float32, in which a backbone
            computes and is fingerprinted, so both give the same backbone, and the one is half as large on disk.
        activation: of weights with OpenAI's names and no configuration. OpenAI's own archives need none.

    Raises:
        UserError: the checkpoint cannot be read without running code, or does not fit its configuration, or no family
            opens what it holds, or there is no tokenizer, or the folder cannot be written.
    """
    require_new(out)
    found = locate(source, config)
    try:
        conversion = _converted(found, activation)
        words = find_tokenizer(tokenizer, found.folders, conversion.clip_vocabulary, conversion.layout)
    except UserError as error:
        raise UserError(f"{source} cannot be imported. {error}") from error
    if precision == "float32":
        raised = {name: weight.to(torch.float32) for name, weight in conversion.weights.items()}
        conversion = replace(conversion, weights=raised)
    return _written(conversion, words, out, source)


def _converted(found: Source, activation: Activation | None) -> Conversion:
    weights = read_weights(found.weights)
    settings = found.settings
    if settings is None:
        if is_torchscript(found.weights):
            return openai_conversion(weights, activation or "quick_gelu")
        if activation is None:
            raise UserError(
                "It has no configuration: give --config with one, or for weights with OpenAI's names --activation "
                "quick_gelu (OpenAI's own, and models named so) or gelu (OpenCLIP's others)."
            )
        return openai_conversion(weights, activation)
    if "model_type" in settings:
        return hugging_face_conversion(weights, settings, found.folders)
    return openclip_conversion(weights, settings)


def _written(conversion: Conversion, words: Path, out: Path, source: str) -> Imported:
    size = sum(weight.bytes for weight in conversion.weights.values())
    try:
        with new_folder(out, size) as folder:
            write_json(folder / "config.json", conversion.config)
            write_json(folder / "preprocessor_config.json", conversion.preprocessor)
            family = _family(folder, conversion)
            write_tokenizer(words, folder)
            require_tokenizer(folder, conversion.words, conversion.end)
            write_safetensors(folder / "model.safetensors", conversion.weights)
            if conversion.own_names:
                require_loadable(folder)
    except UserError as error:
        raise UserError(f"{source} cannot be imported. {error}") from error
    weights = conversion.weights.values()
    parameters = sum(torch.Size(weight.shape).numel() for weight in weights if weight.dtype.is_floating_point)
    precisions = {str(weight.dtype).removeprefix("torch.") for weight in weights if weight.dtype.is_floating_point}
    return Imported(out, conversion.layout, family, parameters, size, tuple(sorted(precisions)))


def _family(folder: Path, conversion: Conversion) -> str:
    """The name of the family that opens a folder."""
    for family in BACKBONES:
        if family.recognizes(folder):
            return str(family.name)
    known = ", ".join(BACKBONES.names())
    raise UserError(f"It is of the family {conversion.config['model_type']!r}, which none here opens; known: {known}.")
