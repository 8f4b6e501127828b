"""A server's or site's folder is run by one process at a time; the next one cleans what a killed one has left.

`.running` in the folder is locked while the process lives, and says which processes it has started and which folders
outside it has made. The lock ends with the process, however it ends.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from fedgraft.core.errors import UserError
from fedgraft.core.files import take_lock

TEMPORARY_PREFIX = "fedgraft-"
_FILE = ".running"
_PATIENCE_SECONDS = 1.0
"""`status` holds the lock for a moment, to see whether it is free."""


class FolderLock:
    """Locks a folder until `release` or the end of the process.

    Raises:
        UserError: another process runs the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / _FILE).open("a+")
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not take_lock(self._file):
            if time.monotonic() >= deadline:
                pid = _content(self._file).get("pid", "unknown")
                self._file.close()
                raise UserError(f"{folder} is already running, as process {pid}; stop that before you start it again.")
            time.sleep(0.1)
        self._clean(_content(self._file))
        self._folders: list[str] = []
        self.record([])

    def add_folder(self, path: Path) -> None:
        """Remember a temporary folder outside, to be deleted by `release` or by the next process."""
        self._folders.append(str(path))
        self.record([])

    def record(self, groups: Iterable[int]) -> None:
        """Remember the process groups that have been started."""
        content = {"pid": os.getpid(), "groups": sorted(groups), "folders": self._folders}
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(content))
        self._file.flush()

    def release(self) -> None:
        """Delete what was remembered, and let another process run the folder."""
        if not self._file.closed:
            for path in self._folders:
                shutil.rmtree(path, ignore_errors=True)
            self._file.truncate(0)
            self._file.close()

    def _clean(self, left: dict[str, Any]) -> None:
        for group in left.get("groups", []):
            if _belongs_to(group, self._folder):
                with suppress(OSError):
                    os.killpg(group, signal.SIGKILL)
        for name in left.get("folders", []):
            path = Path(name)
            with suppress(OSError):
                own = path.name.startswith(TEMPORARY_PREFIX) and path.lstat().st_uid == os.getuid()
                if own and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)


def running_pid(folder: Path) -> int | None:
    """The process that runs a folder, or None."""
    try:
        with (folder / _FILE).open("r") as file:
            return None if take_lock(file) else int(_content(file).get("pid", 0))
    except OSError:
        return None


def _content(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        return dict(json.loads(file.read()))
    except ValueError:
        return {}


def _belongs_to(pid: int, folder: Path) -> bool:
    """Whether a process of the folder still has the ID, which another may have got since; Linux only."""
    try:
        return f"FLWR_HOME={folder.absolute() / 'flwr'}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
            b"\0"
        )
    except OSError:
        return False
