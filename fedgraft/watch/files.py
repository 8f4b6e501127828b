"""Files that are read again only when they have changed, and figures as JSON can hold them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

Content = TypeVar("Content")
Signature = tuple[int, int, int]


class Kept(Generic[Content]):
    """What a file holds, read again when its inode, size or time has changed.

    Args:
        read: reads the file; called only if it exists.
    """

    def __init__(self, path: Path, read: Callable[[Path], Content]) -> None:
        self._path, self._read = path, read
        self._seen: Signature | None = None
        self.content: Content | None = None

    def look(self) -> bool:
        """Whether the file has changed since the last look, which was then read; raises what `read` raises."""
        seen = signature(self._path)
        if seen == self._seen:
            return False
        self.content = None if seen is None else self._read(self._path)
        self._seen = seen
        return True


def signature(path: Path) -> Signature | None:
    """What changes when a file does; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def finite(value: Any, digits: int = 3) -> float | None:
    """A number rounded for the page; None for what is no finite number, which JSON cannot hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(float(value), digits)
