"""Content keys of the images in a Hugging Face table, from their bytes without decoding, kept between runs."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root, write_bytes
from fedgraft.data.examples import KEY_BYTES, content_key
from fedgraft.data.sources.file_keys import is_settled, state_of


def keys_of_rows(table: Any, column: str) -> NDArray[np.uint8]:
    """The SHA-256 of each image's file, (n, 32), from the cache where the table's files have not changed since."""
    store = _store(table, column)
    if store is not None:
        try:
            keys: NDArray[np.uint8] = load_file(store)["keys"]
            if keys.shape == (len(table), KEY_BYTES):
                return keys
        except (OSError, SafetensorError, KeyError):
            pass
    computed = list(_keys(table, column))
    keys = np.stack(computed) if computed else np.empty((0, KEY_BYTES), np.uint8)
    if store is not None:
        try:
            write_bytes(store, save({"keys": keys}))
        except OSError:
            return keys
    return keys


def _store(table: Any, column: str) -> Path | None:
    """Where the keys of a table are kept; None if it has no files or they have just changed."""
    files = [Path(each["filename"]) for each in table.cache_files]
    states = [state_of(file.stat()) for file in files]
    if not files or table._indices is not None or not all(map(is_settled, states)):
        return None
    identity = json.dumps(
        [column, len(table), [[str(file), *state] for file, state in zip(files, states, strict=True)]]
    )
    return cache_root() / "keys" / f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"


def _keys(table: Any, column: str) -> Iterator[NDArray[np.uint8]]:
    for chunk in table.data.column(column).chunks:
        for content, path in zip(chunk.field("bytes"), chunk.field("path"), strict=True):
            if content.is_valid:
                yield content_key(memoryview(content.as_buffer()))
                continue
            try:
                yield content_key(Path(path.as_py()).read_bytes())
            except (OSError, TypeError) as error:
                raise UserError(f"The image {path.as_py()} cannot be read: {error}.") from error
