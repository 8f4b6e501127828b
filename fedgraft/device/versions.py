"""The highest version that a device has run, in a file beside the bundle, so that a fresh start takes no older one.

The encoder's bundle and the class bank have a version each: a bank may be replaced while the bundle stays. Two of one
version must be the same, by the SHA-256 of their manifests. In a folder that cannot be written nothing is remembered;
who may write there could remove the file as well.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgraft.device.errors import BundleError

_LARGEST_BYTES = 4096


@dataclass(frozen=True)
class Known:
    """A version that has run."""

    version: int
    digest: str


class Versions:
    """What has run from a path; `None` as the path remembers nothing.

    Args:
        bundle: the path of the bundle; the file lies beside it.
    """

    def __init__(self, bundle: Path | None) -> None:
        self._file = None if bundle is None else bundle.absolute().with_name(f".{bundle.absolute().name}.versions.json")

    def check(self, kind: str, version: int, digest: str, what: str) -> None:
        """Check that a version may run after those before it.

        Args:
            kind: "bundle" or "classes".
            what: how it is called in a message.

        Raises:
            BundleError: a higher version has run, or another one of the same version.
        """
        if (known := self._read().get(kind)) is not None:
            check_version(version, digest, known, what)

    def record(self, kind: str, version: int, digest: str) -> None:
        """Remember a version that runs now."""
        known = self._read()
        if self._file is None or known.get(kind) == Known(version, digest):
            return
        known[kind] = Known(version, digest)
        content = {name: {"version": each.version, "digest": each.digest} for name, each in sorted(known.items())}
        scratch = self._file.with_name(f"{self._file.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            scratch.write_text(json.dumps(content))
            scratch.replace(self._file)

    def _read(self) -> dict[str, Known]:
        if self._file is None:
            return {}
        try:
            with self._file.open("rb") as file:
                content: Any = json.loads(file.read(_LARGEST_BYTES))
            return {str(kind): Known(int(each["version"]), str(each["digest"])) for kind, each in content.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def check_version(version: int, digest: str, known: Known, what: str) -> None:
    """Check a version against the highest one that has run; raises BundleError if it is lower, or another of it."""
    if version < known.version:
        raise BundleError(
            f"{what} has version {version}, older than version {known.version} in use; a device never goes back."
        )
    if version == known.version and digest != known.digest:
        raise BundleError(
            f"{what} has version {version} as the one in use, but differs from it; a change needs a higher version."
        )
