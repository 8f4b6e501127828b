"""Opening a bundle: a directory or a zip in which the signed manifest lists every file.

Names and sizes are checked before anything is read, the signature before the manifest is trusted, and each file's
SHA-256 before its content is used; the bytes that were hashed are the bytes that are used.
"""

import hashlib
import json
import stat
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from fedgraft.device.ed25519 import is_signed_by
from fedgraft.device.errors import BundleError
from fedgraft.device.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MODEL,
    OTHER_LIMIT,
    SIGNATURE,
    SIZE_LIMITS,
    Manifest,
    canonical,
)
from fedgraft.device.onnx_file import check_self_contained

_MANIFEST_LIMIT, _SIGNATURE_LIMIT = 2**20, 2**12
_FILES_LIMIT = 256


class Bundle:
    """An opened bundle.

    Attributes:
        signer: the public key that verifies its signature.
        digest: SHA-256 of the manifest, and so of all that is signed.
        pinned: whether the caller required that key.
    """

    def __init__(self, files: "_Files", manifest: Manifest, digest: str, signer: bytes, pinned: bool) -> None:
        self.path, self.manifest, self.digest = files.path, manifest, digest
        self.signer, self.pinned = signer, pinned
        self._files = files

    def read(self, name: str) -> bytes:
        """The content of a file that the manifest lists.

        Raises:
            BundleError: it differs from what was signed, or is a model that refers to other files.
        """
        entry = self.manifest.files[name]
        content = self._files.read(name, entry.bytes)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{name} in the bundle {self.path} was changed after it was signed.")
        if name == MODEL:
            try:
                check_self_contained(content)
            except ValueError as error:
                raise BundleError(f"{name} in the bundle {self.path} is refused: {error}.") from error
        return content

    def raw(self, name: str) -> bytes:
        """The content of manifest.json or manifest.sig, which no manifest lists."""
        limit = _MANIFEST_LIMIT if name == MANIFEST else _SIGNATURE_LIMIT
        content = _small(self._files, name, self._files.sizes()[name], limit)
        if name == MANIFEST and hashlib.sha256(content).hexdigest() != self.digest:
            raise BundleError(f"{name} in the bundle {self.path} was changed while it was open.")
        return content

    def read_json(self, name: str) -> Any:
        """A JSON file's value; raises BundleError if it differs from what was signed, or is not JSON."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{name} in the bundle {self.path} is not JSON: {error}.") from error


def open_bundle(path: Path | str, key: bytes | None = None) -> Bundle:
    """Open a directory or a zip.

    Args:
        key: the required signer's public key. By default the key in the bundle is used, which detects every changed
            byte but not a different signer.

    Raises:
        BundleError: it is incomplete, unsigned, signed with another key, or has a newer format.
    """
    files = _opened(Path(path))
    sizes = files.sizes()
    for name in (MANIFEST, SIGNATURE):
        if name not in sizes:
            raise BundleError(f"{path} is not a bundle: it has no {name}.")
    content = _small(files, MANIFEST, sizes[MANIFEST], _MANIFEST_LIMIT)
    declared = _parsed(files, content)
    signer = _signer(files, content, sizes[SIGNATURE])
    if key is not None and signer != key:
        raise BundleError(f"The bundle {path} is signed by {signer.hex()}, not by the required key {key.hex()}.")
    try:
        manifest = Manifest.parse(declared)
    except ValueError as error:
        raise BundleError(f"The manifest of the bundle {path} is invalid: {error}.") from error
    listed = {name: entry.bytes for name, entry in manifest.files.items()}
    there = {name: size for name, size in sizes.items() if name not in (MANIFEST, SIGNATURE)}
    if missing := sorted(listed.keys() - there.keys()):
        raise BundleError(f"The bundle {path} lacks {missing[0]}, which its manifest lists.")
    if unlisted := sorted(there.keys() - listed.keys()):
        raise BundleError(f"The bundle {path} holds {unlisted[0]}, which its manifest does not list.")
    for name, size in sorted(there.items()):
        if size != listed[name]:
            raise BundleError(f"{name} in the bundle {path} has {size:,} bytes; the manifest lists {listed[name]:,}.")
    return Bundle(files, manifest, hashlib.sha256(content).hexdigest(), signer, key is not None)


def _parsed(files: "_Files", content: bytes) -> dict[str, Any]:
    try:
        declared = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"manifest.json in the bundle {files.path} is not JSON: {error}.") from error
    version = declared.get("format_version") if isinstance(declared, dict) else None
    if type(version) is not int:
        raise BundleError(f"manifest.json in the bundle {files.path} has no format version.")
    if version > FORMAT_VERSION:
        raise BundleError(
            f"The bundle {files.path} has format version {version}, and this runtime reads version {FORMAT_VERSION}; "
            "install a newer fedgraft-device."
        )
    if version < FORMAT_VERSION or canonical(declared) != content:
        raise BundleError(f"manifest.json in the bundle {files.path} is not canonical JSON, as fedgraft writes it.")
    return dict(declared)


def _signer(files: "_Files", manifest: bytes, size: int) -> bytes:
    try:
        stated = json.loads(_small(files, SIGNATURE, size, _SIGNATURE_LIMIT))
        signer, signature = bytes.fromhex(stated["public_key"]), bytes.fromhex(stated["signature"])
        algorithm = stated["algorithm"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"manifest.sig in the bundle {files.path} is not a signature.") from error
    if algorithm != "ed25519" or not is_signed_by(signer, manifest, signature):
        raise BundleError(f"The signature of the bundle {files.path} does not match its manifest.json.")
    return signer


def _small(files: "_Files", name: str, size: int, limit: int) -> bytes:
    if size > limit:
        raise BundleError(f"{name} in the bundle {files.path} has {size:,} bytes; the limit is {limit:,}.")
    return files.read(name, size)


# --- directory and zip ----------------------------------------------------------------------------


class _Files(ABC):
    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file by name, within the limits; no file is read."""

    @abstractmethod
    def read(self, name: str, size: int) -> bytes:
        """A file's content; at most one byte more than its size is read."""

    def checked(self, sizes: dict[str, int]) -> dict[str, int]:
        """Return the sizes, unless there are too many files or one is too large."""
        if len(sizes) > _FILES_LIMIT:
            raise BundleError(f"{self.path} is not a bundle: it holds more than {_FILES_LIMIT} files.")
        for name, size in sizes.items():
            if size > SIZE_LIMITS.get(name, OTHER_LIMIT):
                raise BundleError(f"{name} in the bundle {self.path} has {size:,} bytes, more than a bundle may have.")
        return sizes


class _Directory(_Files):
    def sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        folders = [self.path]
        while folders and len(sizes) <= _FILES_LIMIT:
            for entry in sorted(folders.pop().iterdir()):
                found = entry.lstat()
                if stat.S_ISDIR(found.st_mode):
                    folders.append(entry)
                elif stat.S_ISREG(found.st_mode):
                    sizes[entry.relative_to(self.path).as_posix()] = found.st_size
                else:
                    raise BundleError(f"{entry} is neither a file nor a folder; a bundle holds no links.")
        return self.checked(sizes)

    def read(self, name: str, size: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                return file.read(size + 1)
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error.strerror}.") from error


class _Zip(_Files):
    def sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        with self._archive() as archive:
            for entry in archive.infolist()[: 2 * _FILES_LIMIT]:
                name = entry.orig_filename
                parts = name.split("/")
                if "\\" in name or ":" in name or name.startswith("/") or ".." in parts:
                    raise BundleError(f"The bundle {self.path} holds {name!r}, a path outside the bundle.")
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise BundleError(f"{name} in the bundle {self.path} is a link; a bundle holds no links.")
                if name in sizes:
                    raise BundleError(f"The bundle {self.path} holds {name} twice.")
                if not entry.is_dir():
                    sizes[name] = entry.file_size
        return self.checked(sizes)

    def read(self, name: str, size: int) -> bytes:
        try:
            with self._archive() as archive, archive.open(name) as file:
                return file.read(size + 1)
        except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError) as error:
            raise BundleError(f"{name} in the bundle {self.path} cannot be read: {error}.") from error

    def _archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise BundleError(f"{self.path} is not a bundle: it is neither a directory nor a zip ({error}).") from error


def _opened(path: Path) -> _Files:
    if path.is_dir():
        return _Directory(path)
    if not path.exists():
        raise BundleError(f"There is no bundle {path}.")
    return _Zip(path)
