"""What is cached between runs, where, how large it is, and how it is cleared. All of it can be made again.

Only folders that fedgraft makes below the cache folder are counted or removed; Hugging Face's cache is shared with
other programs, so it is shown and left alone.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedgraft.core.errors import unknown
from fedgraft.core.files import cache_root
from fedgraft.doctor.finding import Finding

KINDS = {
    "features": "image features of frozen backbones",
    "keys": "SHA-256 of image files and rows",
    "tickets": "pruned image towers and the stages of their making",
    "backbones": "assembled backbones",
    "web": "the runtime of pages for browsers",
}
_AREA = "caches"


@dataclass(frozen=True)
class Cache:
    """A folder of the cache, and its size."""

    name: str
    holds: str
    path: Path
    files: int
    bytes: int


def caches() -> list[Cache]:
    """All that exist, in the order of `KINDS`."""
    return [
        Cache(name, holds, path, *_measured(path))
        for name, holds in KINDS.items()
        if (path := cache_root() / name).is_dir()
    ]


def clear(names: Iterable[str] = ()) -> list[Cache]:
    """Remove caches, all unless some are named, and return what they were.

    Raises:
        UserError: there is no cache of that name.
        OSError: a file cannot be removed.
    """
    chosen = list(names)
    require_known(chosen)
    cleared = [cache for cache in caches() if not chosen or cache.name in chosen]
    for cache in cleared:
        if cache.path.is_symlink():
            cache.path.unlink()
        else:
            shutil.rmtree(cache.path)
    return cleared


def require_known(names: Iterable[str]) -> None:
    """Raise UserError for a name that no cache has."""
    for name in names:
        if name not in KINDS:
            raise unknown("cache", name, KINDS)


def findings() -> Iterator[Finding]:
    """The size of each cache."""
    found = caches()
    for cache in found:
        yield Finding(_AREA, cache.name, "fine", f"{size(cache.bytes)}: {cache.holds}")
    total = sum(cache.bytes for cache in found)
    yield Finding(_AREA, "total", "fine", f"{size(total)} in {cache_root()}; fedgraft cache clear empties it")
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    if hub.is_dir():
        yield Finding(_AREA, "Hugging Face", "fine", f"{size(_measured(hub)[1])} in {hub}, which fedgraft leaves alone")


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _measured(folder: Path) -> tuple[int, int]:
    """The number of files below a folder, and what they occupy together; links count as themselves."""
    count, total = 0, 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:  # another process is at work
                continue
            count += 1
    return count, total
