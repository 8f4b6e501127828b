"""Fetching a release beside the one that runs: in chunks that go on after a cut, each file checked before it counts."""

import hashlib
import os
import shutil
from pathlib import Path

from fedgraft.device.agent.device_folder import DeviceFolder
from fedgraft.device.agent.messages import CHUNK
from fedgraft.device.agent.metadata import FileOfRelease, Release
from fedgraft.device.agent.registry_client import Registry
from fedgraft.device.errors import DeviceError

_SPARE_BYTES = 8 * 2**20
"""What stays free on the disk."""


class Download:
    """Fetches what a device lacks of a release.

    Attributes:
        moved: bytes that were fetched.
    """

    def __init__(self, folder: DeviceFolder, registry: Registry) -> None:
        self._folder, self._registry = folder, registry
        self.moved = 0

    def fetch(self, release: Release) -> Path:
        """The folder of a release, complete; files that the device has already are not fetched again.

        Raises:
            DeviceError: the disk is full, a file is not what was signed, or the registry does not answer.
        """
        target = self._folder.release(release.id)
        if target.is_dir():
            if all(_is_whole(target / file.path, file) for file in release.files):
                return target
            shutil.rmtree(target)
        lacking = {file.sha256: file for file in release.files if not _is_whole(self._blob(file), file)}
        self._require_space(sum(file.bytes for file in lacking.values()))
        for file in lacking.values():
            self._fetch_file(file)
        scratch = target.with_name(f".{release.id}.{os.getpid()}.tmp")
        try:
            for file in release.files:
                _link(self._blob(file), scratch / file.path)
            scratch.replace(target)
        except OSError as error:
            raise DeviceError(f"The release cannot be put together in {scratch}: {error.strerror}.") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target

    def _fetch_file(self, file: FileOfRelease) -> None:
        part = self._folder.path / "parts" / file.sha256
        for attempt in (1, 2):  # a part that was damaged on the disk is fetched once more from its start
            resumed = self._fill(part, file)
            if _is_whole(part, file):
                part.replace(self._blob(file))
                return
            part.unlink(missing_ok=True)
            if attempt == 2 or not resumed:
                break
        raise DeviceError(f"The registry sent {file.path} with another content than was signed.")

    def _fill(self, part: Path, file: FileOfRelease) -> bool:
        """Fetch what a file still lacks; whether there was a part of it before."""
        try:
            began = part.stat().st_size if part.exists() else 0
            if began > file.bytes:
                part.unlink()
                began = 0
            with part.open("ab") as out:
                place = began
                while place < file.bytes:
                    chunk = self._registry.fetch(file.sha256, place, min(CHUNK, file.bytes - place))
                    out.write(chunk)
                    place += len(chunk)
                    self.moved += len(chunk)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DeviceError(f"{file.path} cannot be stored in {part.parent}: {error.strerror}.") from error
        return began > 0

    def _blob(self, file: FileOfRelease) -> Path:
        return self._folder.path / "blobs" / file.sha256

    def _require_space(self, wanted: int) -> None:
        free = shutil.disk_usage(self._folder.path).free
        if wanted and free < wanted + _SPARE_BYTES:
            raise DeviceError(
                f"The disk of {self._folder.path} is full: the release needs {wanted / 1e6:.1f} MB more, and "
                f"{free / 1e6:.1f} MB are free; the device goes on with what it has."
            )


def _is_whole(path: Path, file: FileOfRelease) -> bool:
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        target.unlink()
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
