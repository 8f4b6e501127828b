"""Files that survive a kill: written beside, flushed to disk, and renamed."""

import os
from pathlib import Path


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace a file by new content; after a kill it holds either the old or the new, never a part.

    Args:
        mode: of the file, less what the process's umask takes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def write_private(path: Path, content: bytes) -> None:
    """`write_bytes` for what only the owner may read, such as a key."""
    write_bytes(path, content, 0o600)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def cache_root() -> Path:
    """Where image features are kept between runs: $FEDGRAFT_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("FEDGRAFT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedgraft"
