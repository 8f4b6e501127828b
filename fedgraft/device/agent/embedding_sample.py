"""Embeddings of images that were called unknown, kept only where a device's owner shares them.

What no class covers can so be looked at together: embeddings of one new thing lie together. A sample of bounded size is
uniform over all such images, and so is what two samples become: each entry draws a number, and the smallest stay.
"""

import base64
import binascii
import random
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

SHARED_EMBEDDINGS = 16
"""The most in one report."""
_LARGEST = 64 * 1024
"""The most characters in one report."""

Entry = tuple[float, str]
"""A random number and an embedding as text."""


def entry_of(embedding: NDArray[np.float32]) -> Entry:
    """An embedding (dim,) in half precision, with its number."""
    return random.random(), base64.b64encode(np.asarray(embedding, "<f2").tobytes()).decode()


def smallest(entries: Iterable[Entry]) -> list[Entry]:
    """Those that stay."""
    ranked = sorted(entries)[:SHARED_EMBEDDINGS]
    return ranked[: _LARGEST // max((len(text) for _, text in ranked), default=1)]


def as_embedding(text: object, dim: int) -> NDArray[np.float16]:
    """An embedding (dim,) of about unit norm from text; raises ValueError if it is none."""
    if not isinstance(text, str) or len(text) > _LARGEST:
        raise ValueError("an embedding is not a text")
    try:
        found = np.frombuffer(base64.b64decode(text, validate=True), "<f2")
    except binascii.Error as error:
        raise ValueError("an embedding is not base64") from error
    norm = float(np.linalg.norm(found.astype(np.float64)))
    if found.shape != (dim,) or not abs(norm - 1) < 0.01:
        raise ValueError(f"an embedding is not one of {dim} numbers and unit norm")
    return found
