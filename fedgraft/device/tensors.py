"""A strict reader for small safetensors files: eight bytes of length, a JSON header, raw values."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER_LIMIT = 1024 * 1024
_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U8": np.dtype("u1")}


def read_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The tensors in a file's content by name.

    Raises:
        ValueError: it is incomplete, or its values have gaps or overlap.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(_HEADER_LIMIT, len(content) - 8):
        raise ValueError("its header is incomplete")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    header.pop("__metadata__", None)
    values, end, tensors = content[8 + length :], 0, {}
    for name, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        dtype, shape = _TYPES.get(str(entry.get("dtype"))), entry.get("shape")
        begin, stop = _offsets(name, entry)
        if dtype is None:
            raise ValueError(f"{name!r} has the dtype {entry.get('dtype')!r}; known: {', '.join(_TYPES)}")
        if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError(f"{name!r} has the invalid shape {shape!r}")
        count = 1
        for side in shape:
            count *= side
        if begin != end or stop - begin != count * dtype.itemsize:
            raise ValueError(f"the values of {name!r} do not match its shape {shape}")
        tensors[name] = np.frombuffer(values[begin:stop], dtype).reshape(shape)
        end = stop
    if end != len(values):
        raise ValueError("its size does not match its tensors")
    return tensors


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise ValueError(f"{name!r} has no data_offsets")
    return offsets[0], offsets[1]
