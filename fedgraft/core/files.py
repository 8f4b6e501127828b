"""Files that survive a kill: written under a temporary name, flushed to disk, then renamed; and locks on files."""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedgraft.core.errors import UserError


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace a file's content; after a kill, or on a full disk, it holds the old or the new content, never a part.

    Args:
        mode: permissions of the file, subject to the process's umask.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def write_private(path: Path, content: bytes) -> None:
    """`write_bytes` for what only the owner may read, such as a key."""
    write_bytes(path, content, 0o600)


def stored_key(path: Path) -> bytes:
    """The 32 random bytes in a file that only its owner may read, created if it does not exist yet."""
    return secret_file(path).read_bytes()


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def new_private_folder(path: Path, owner: str, parts: Sequence[str]) -> None:
    """Make a folder with subfolders `parts` that only its owner can enter.

    Args:
        owner: what the folder is for, for the message.

    Raises:
        UserError: it exists and is not an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is not empty; {owner} needs a folder of its own.")
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    for part in parts:
        (path / part).mkdir(mode=0o700)


def secret_file(path: Path) -> Path:
    """The path of such a file, created if it does not exist yet."""
    if not path.exists():
        write_private(path, os.urandom(32))
    return path


def cache_root() -> Path:
    """Where image features are kept between runs: $FEDGRAFT_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("FEDGRAFT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedgraft"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextmanager
def locked(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file, made if missing, opened for reading and writing under its exclusive lock, which is waited for.

    Args:
        mode: permissions of a new file, subject to the process's umask.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, mode), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def take_lock(file: IO[str]) -> bool:
    """Whether this process now has an open file's exclusive lock, which it keeps until the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
