"""The weights of a TorchScript archive, such as OpenAI's published ones, without running what is in it.

`torch.jit.load` compiles the archive's code and runs its `__setstate__` methods, with all operators of torch at their
disposal: such an archive is a program. Its weights are records of plain numbers in a zip, and `data.pkl` says which
record is which tensor of which module. That pickle is read here with a closed list of names, none of which does more
than note down what it was given: modules, tensors and lists. Any other name is refused, and `code/` is never read.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgraft.backbones.checkpoints.weights import Weight, Weights
from fedgraft.core.errors import UserError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; one of `torch.save` is a zip too, without constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def torchscript_weights(path: Path) -> Weights:
    """Parameters and buffers by name, as `torch.jit.load(path).state_dict()` names them.

    Raises:
        UserError: the archive's pickle names anything but modules, tensors and lists, or is damaged.
        OSError, zipfile.BadZipFile: the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).split("/")[0]
        if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
        reader = _Reader(archive.read(f"{root}/data.pkl"), path, root)
    try:
        return dict(_named(reader.load(), ""))
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is damaged: its data.pkl cannot be read ({type(error).__name__}: {error}).") from error


@dataclass(frozen=True)
class _Storage:
    record: str
    dtype: torch.dtype


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    path: Path

    def read(self) -> Tensor:
        """The tensor alone, from its record."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self.storage.record) as record:
            content = bytearray(archive.getinfo(self.storage.record).file_size)
            view = memoryview(content)
            while view and (read := record.readinto(view)):  # type: ignore[attr-defined]
                view = view[read:]
        if not content:
            return torch.empty(self.shape, dtype=self.storage.dtype)
        flat = torch.frombuffer(content, dtype=self.storage.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset)


class _Module:
    """A module, whatever its class: only its state is kept."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle.Unpickler):
    """Reads `data.pkl`; every name resolves to something in this file, or is refused."""

    def __init__(self, content: bytes, path: Path, root: str) -> None:
        super().__init__(io.BytesIO(content))
        self._path, self._root = path, root
        self._module = type("Module", (_Module,), {})  # a pickle can set attributes of the class: of its own only

    def find_class(self, module: str, name: str) -> Any:
        """What a name of the pickle stands for."""
        if module.split(".")[0] == "__torch__":
            return self._module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) not in known:
            raise UserError(f"{self._path} needs {module}.{name}, which is code; only its weights would be read.")
        return known[module, name]

    def persistent_load(self, saved: Any) -> _Storage:
        """The record of a storage."""
        _, dtype, key, *_ = saved
        return _Storage(f"{self._root}/data/{key}", dtype)

    def _tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
        return _Tensor(storage, offset, tuple(size), tuple(stride), self._path)


def _named(module: Any, prefix: str) -> Iterator[tuple[str, Weight]]:
    state = module.state if isinstance(module, _Module) else None
    if not isinstance(state, dict):
        return
    for name, value in state.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", Weight(f"{prefix}{name}", value.shape, value.storage.dtype, value.read)
        else:
            yield from _named(value, f"{prefix}{name}.")
