"""Content keys of image files, kept between runs, so that only new and changed files are read.

A key is kept under the file's path together with its size, inode and the nanoseconds of its last change of content and
of status. The status time cannot be set by a program, so that an edit which restores the size and the time of change is
noticed as well. A file that changed within the last two seconds is never kept: the clocks of file systems are coarse,
and a second edit within the same tick would go unnoticed.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedgraft.core.errors import UserError
from fedgraft.core.files import cache_root, write_bytes
from fedgraft.data.examples import KEY_BYTES
from fedgraft.data.sources.decoding import decode

SETTLED_NS = 2_000_000_000
_AT_ONCE = 256
_READERS = 2
"""Threads that read and hash: more of them wait for each other on small files."""
_STATE_FIELDS = 4


@dataclass(frozen=True)
class FileKeys:
    """Keys (n, 32) of n files, and by position why a file cannot be read; its key is all zeros."""

    keys: NDArray[np.uint8]
    faults: dict[int, str]


class _Entry(NamedTuple):
    state: tuple[int, ...]
    key: bytes
    decoded: bool


def keys_of(paths: Sequence[str | Path], root: Path, decoding: bool = False, cache: Path | None = None) -> FileKeys:
    """The SHA-256 of each file, from the cache where the file has not changed since.

    Args:
        root: the folder or file that names the data set; its keys are kept together.
        decoding: whether to decode each image once as well, and report those that are damaged.
        cache: the folder of the cache, in place of the user's.
    """
    store = _store(root, cache or cache_root())
    known = _kept(store)
    now = time.time_ns()
    names = [os.fspath(path) for path in paths]
    chunks = [names[begin : begin + _AT_ONCE] for begin in range(0, len(names), _AT_ONCE)]
    with ThreadPoolExecutor(os.cpu_count() if decoding else _READERS) as pool:
        parts = list(pool.map(lambda chunk: [_entry(name, known, decoding) for name in chunk], chunks))
    entries = [entry for part in parts for entry in part]
    content = b"".join(bytes(KEY_BYTES) if isinstance(entry, str) else entry.key for entry in entries)
    keys = np.frombuffer(content, np.uint8).reshape(-1, KEY_BYTES)
    faults, kept, changed = {}, {}, False
    for position, (name, entry) in enumerate(zip(names, entries, strict=True)):
        if isinstance(entry, str):
            faults[position] = entry
            continue
        if known.get(name) is entry:
            kept[name] = entry
        elif is_settled(entry.state, now):
            kept[name], changed = entry, True
    if changed:
        _write(store, {**known, **kept})
    return FileKeys(keys, faults)


def _entry(name: str, known: dict[str, _Entry], decoding: bool) -> _Entry | str:
    """What is known of a file, or why it cannot be read."""
    try:
        entry = known.get(name)
        if entry is None or entry.state != state_of(os.stat(name)) or (decoding and not entry.decoded):  # noqa: PTH116
            state, content = _read(name)
            entry = _Entry(state, hashlib.sha256(content).digest(), decoding)
            if decoding:
                decode(Path(name))
        return entry
    except UserError as error:
        return str(error)
    except FileNotFoundError:
        target = f" links to {Path(name).readlink()}, which" if Path(name).is_symlink() else ""
        return f"The image {name}{target} does not exist."
    except OSError as error:
        return f"The image {name} cannot be read: {error.strerror}."


def _read(path: str) -> tuple[tuple[int, ...], bytes]:
    """A file's state and content, by the system's own calls: opening a Python file takes longer than reading it."""
    opened = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(opened)
        content = os.read(opened, found.st_size)
        while len(content) < found.st_size and (more := os.read(opened, found.st_size - len(content))):
            content += more
        return state_of(found), content
    finally:
        os.close(opened)


def state_of(found: os.stat_result) -> tuple[int, ...]:
    """What changes when a file does: size, time of change of content and of status in nanoseconds, and inode."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def is_settled(state: tuple[int, ...], now: int | None = None) -> bool:
    """Whether a file last changed so long ago that a later change gives it another state."""
    return max(state[1:3]) < (now or time.time_ns()) - SETTLED_NS


def _store(root: Path, cache: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:32]
    return cache / "keys" / f"{name}.safetensors"


def _kept(store: Path) -> dict[str, _Entry]:
    """What was kept; nothing if the file is missing or damaged."""
    try:
        arrays = load_file(store)
        names = os.fsdecode(arrays["names"].tobytes()).split("\0")
        states = map(tuple, arrays["states"].view(np.int64).reshape(-1, _STATE_FIELDS).tolist())
        content, decoded = arrays["keys"].tobytes(), arrays["decoded"].tolist()
        keys = (content[begin : begin + KEY_BYTES] for begin in range(0, len(content), KEY_BYTES))
        return {
            name: _Entry(state, key, bool(once))
            for name, state, key, once in zip(names, states, keys, decoded, strict=True)
        }
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def _write(store: Path, entries: dict[str, _Entry]) -> None:
    """Keep entries; where the cache cannot be written, the next run reads the images again."""
    arrays: dict[str, NDArray[Any]] = {
        "names": np.frombuffer(os.fsencode("\0".join(entries)), np.uint8),
        "states": np.asarray([entry.state for entry in entries.values()], np.int64),
        "keys": np.frombuffer(b"".join(entry.key for entry in entries.values()), np.uint8),
        "decoded": np.asarray([entry.decoded for entry in entries.values()], np.uint8),
    }
    try:
        write_bytes(store, save(arrays))
    except OSError:
        return
