"""A folder that a backbone family opens: configuration, preprocessing, tokenizer and weights as safetensors.

Weights are written one at a time, so memory holds only the largest of them. The folder appears under its name when all
of it is on disk.
"""

import errno
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from fedgraft.backbones.checkpoints.weights import Weights
from fedgraft.core.errors import UserError

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8
_SLACK = 16 << 20
"""Room for the other files: tokenizers of large vocabularies."""


def require_new(out: Path) -> None:
    """Raise UserError if something is at the place of a new folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give --out a new folder.")


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A scratch folder beside `out` that becomes `out` if all goes well, and vanishes if not.

    Args:
        size: the bytes of weights to come.

    Raises:
        UserError: `out` is not empty, cannot be made, or its disk has no room.
    """
    require_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size + _SLACK:
            raise UserError(f"{out} needs {(size + _SLACK) / 1e6:.0f} MB, but its disk has {free / 1e6:.0f} MB left.")
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror or error}.") from error
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        scratch.replace(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{out} cannot be written: its disk is full.") from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: object) -> None:
    """A JSON file as Hugging Face writes its own."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write weights in the safetensors format: a length, a JSON header with offsets, and the values.

    Raises:
        UserError: a weight cannot be read, or has another shape than its checkpoint said.
    """
    ordered = sorted(weights.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in ordered:
        begin, end = end, end + weight.bytes
        header[name] = {"dtype": _NAMES[weight.dtype], "shape": list(weight.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, weight in ordered:
            try:
                tensor = weight.read().contiguous()
            except (RuntimeError, ValueError, KeyError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"The weight {weight.name} cannot be read: {reason}") from error
            if tuple(tensor.shape) != weight.shape or tensor.dtype != weight.dtype:
                raise UserError(f"The weight {weight.name} is {tuple(tensor.shape)}, not {weight.shape} as announced.")
            file.write(tensor.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
