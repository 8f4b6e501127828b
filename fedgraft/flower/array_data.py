"""Arrays as Flower sends them, read without trusting their headers.

Flower's array is the bytes of a `.npy` file. NumPy would evaluate its header and allocate what that claims, so the
header is read here: by a pattern, in the one form in which arrays are sent, and its claim is compared with the bytes
that have arrived before anything is allocated.
"""

import math
import re

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

_STYPE = "numpy.ndarray"
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"\{'descr': '([<>|=]?\w{1,8})', 'fortran_order': False, 'shape': \(((?:\d{1,12}(?:, |,|(?=\))))*)\), \} *\n",
    re.DOTALL,
)
_LONGEST_HEADER = 1024
_DTYPE = "<f4"


def read_array(name: str, array: Array) -> NDArray[np.float32]:
    """A float32 array.

    Args:
        name: for the message.

    Raises:
        ValueError: it is no plain float32 array, or its header claims another size than what has arrived.
    """
    header = _HEADER.match(array.data[:_LONGEST_HEADER]) if array.stype == _STYPE else None
    if header is None:
        raise ValueError(f"{name} is not a plain array")
    dtype, begin = header[1].decode("latin-1"), header.end()
    if dtype != _DTYPE:
        raise ValueError(f"{name} has the dtype {dtype.replace('<', '').replace('>', 'big-endian ')}, not float32")
    shape = tuple(int(size) for size in header[2].decode().replace(" ", "").split(",") if size)
    claimed, arrived = 4 * math.prod(shape), len(array.data) - begin
    if claimed != arrived:
        raise ValueError(f"{name} claims the shape {shape}, which is {claimed} bytes, but has {arrived}")
    return np.frombuffer(array.data, _DTYPE, offset=begin).reshape(shape).copy()
