"""Files of weights: safetensors, what `torch.save` writes in both of its formats, and TorchScript archives.

Nothing in a file is run. `torch.load(weights_only=True)` reads tensors and plain containers alone, mapped into memory;
a checkpoint that needs anything else is refused with the name that it needs.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedgraft.backbones.checkpoints.torchscript import is_torchscript, torchscript_weights
from fedgraft.backbones.checkpoints.weights import Weight, Weights, some
from fedgraft.core.errors import UserError

_CONTAINERS = ("state_dict", "model_state_dict", "model", "module")
"""Where training checkpoints keep the weights, beside the state of an optimizer."""
_SCALES = ("logit_scale", "temperature")
"""The weight that every dual encoder has at its top."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_weights(path: Path) -> Weights:
    """The weights in a file, or in the files of an index (`*.index.json`), named as in the model itself.

    Raises:
        UserError: a file is missing, truncated, damaged, of another format, or needs code to be read.
    """
    if path.name.endswith(".index.json"):
        weights = {name: weight for shard in _shards(path) for name, weight in _file_weights(shard).items()}
    else:
        weights = _file_weights(path)
    if not weights:
        raise UserError(f"{path} holds no weights.")
    return _without_prefix(weights, path)


def _file_weights(path: Path) -> Weights:
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[:2] == b"PK":
            if not zipfile.is_zipfile(path):
                raise UserError(f"{path} is truncated: it has no directory of its parts.")
            return torchscript_weights(path) if is_torchscript(path) else _saved(path, mapped=True)
        if path.suffix == ".safetensors" or start[8:] == b"{":
            return _safetensors(path)
        return _saved(path, mapped=False)
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged: {error}.") from error
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _safetensors(path: Path) -> Weights:
    def reader(name: str) -> Tensor:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    weights = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            entry = file.get_slice(name)
            if (dtype := _DTYPES.get(entry.get_dtype())) is None:
                raise UserError(f"{path} holds {name} as {entry.get_dtype()}; expected a plain precision.")
            weights[name] = Weight(name, tuple(entry.get_shape()), dtype, partial(reader, name))
    return weights


def _saved(path: Path, mapped: bool) -> Weights:
    """What `torch.save` wrote; its older format is no zip and cannot be mapped."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        needed = re.search(r"(?:GLOBAL|global:?) `?([A-Za-z_][\w.]*)", str(error))
        if needed is None:
            raise UserError(f"{path} is no checkpoint of torch, or is damaged.") from error
        raise UserError(
            f"{path} needs code to be read ({needed.group(1)}), which is never run; where it was made, save its "
            "weights alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is truncated or damaged: {(str(error) or 'it ends early').splitlines()[0]}") from error
    return {name: Weight.of(name, tensor) for name, tensor in _tensors(loaded, path).items()}


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = [loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            return {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
        loaded = inner[0]
    raise UserError(f"{path} holds a {type(loaded).__name__}, not weights by name.")


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        paths = [index.parent / Path(name).name for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights: {error}.") from error
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(f"{index.parent} lacks {some(missing)}, which {index.name} names.")
    return paths


def _without_prefix(weights: Weights, path: Path) -> Weights:
    """Names without what a wrapper put in front, such as `module.`: a dual encoder's scale is at its top."""
    for scale in _SCALES:
        prefixes = {name.removesuffix(scale) for name in weights if name == scale or name.endswith(f".{scale}")}
        if len(prefixes) > 1 and "" not in prefixes:
            raise UserError(f"{path} holds more than one model: {some(sorted(prefixes))}; save one of them alone.")
        if prefixes:
            prefix = "" if "" in prefixes else prefixes.pop()
            return {name.removeprefix(prefix): weight for name, weight in weights.items()}
    return weights
