"""The signed documents of a fleet: whose signature counts, and what a channel offers.

After The Update Framework (theupdateframework.io/specification): the trust document is its root, a channel's document
its targets and snapshot in one. Both are signed by a publisher's key, which the registry does not have:

- *trust* lists the publishers' keys. A new one counts if a key of the one before has signed it, and versions have no
  gaps. The first comes with the token of enrolment, which holds its SHA-256.
- *channel* lists releases with the SHA-256 and size of every file, and the versions that were withdrawn. Its sequence
  number never falls, and it expires, so that a registry cannot hold a newer one back for ever.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from fedgraft.device.agent.messages import digest, name, text, whole
from fedgraft.device.ed25519 import is_signed_by
from fedgraft.device.errors import DeviceError
from fedgraft.device.manifest import LARGEST_VERSION, MANIFEST, OTHER_LIMIT, SIGNATURE, SIZE_LIMITS, canonical

FORMAT = 1
BUNDLE, BANK = "bundle", "classes"
"""The folders of a release: the bundle, and a class bank alone that replaces the bundle's."""
_PATH = re.compile(rf"({BUNDLE}|{BANK})/[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_LARGEST_LIST, _LARGEST_SIGNATURES, _LARGEST_FILES = 64, 8, 512
_MANIFEST_LIMIT = 2**20

Document = dict[str, Any]
"""{"signed": an object, "signatures": [{"key": ..., "signature": ...}]}; signatures are of the canonical JSON."""


class MetadataError(DeviceError):
    """A document that is not signed by whom it should be, older than one that is known, expired or invalid."""


@dataclass(frozen=True)
class FileOfRelease:
    """A file: where it belongs in the release, and what it must be."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Release:
    """What a device installs as one.

    Attributes:
        id: SHA-256 of all else.
        version: of the class bank alone if there is one, else of the bundle.
        signer: the public key of the bundle's own signature.
        bank_signer: that of the class bank alone; "" without one.
    """

    id: str
    version: int
    signer: str
    bank_signer: str
    files: tuple[FileOfRelease, ...]

    @classmethod
    def of(cls, version: int, signer: str, bank_signer: str, files: tuple[FileOfRelease, ...]) -> Self:
        """A release with its id."""
        return cls(release_id(version, signer, bank_signer, files), version, signer, bank_signer, files)

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)

    def content(self) -> dict[str, Any]:
        """As in a document."""
        return {"id": self.id, **_identified(self.version, self.signer, self.bank_signer, self.files)}

    @classmethod
    def parse(cls, content: Any) -> Self:
        """From a document; raises ValueError if it is invalid."""
        if not isinstance(content, dict):
            raise ValueError("a release is not an object")
        files = tuple(_file(entry) for entry in _list(content, "files", _LARGEST_FILES))
        if len({file.path for file in files}) < len(files):
            raise ValueError("a release has two files of one path")
        if f"{BUNDLE}/{MANIFEST}" not in {file.path for file in files}:
            raise ValueError("a release has no bundle")
        bank = digest(content, "bank_signer") if content.get("bank_signer") != "" else ""
        release = cls.of(whole(content, "version", LARGEST_VERSION), digest(content, "signer"), bank, files)
        if content.get("id") != release.id:
            raise ValueError("the id of a release is not that of its files")
        return release


def release_id(version: int, signer: str, bank_signer: str, files: tuple[FileOfRelease, ...]) -> str:
    """The SHA-256 by which a release is known."""
    return hashlib.sha256(canonical(_identified(version, signer, bank_signer, files))).hexdigest()


def _identified(version: int, signer: str, bank_signer: str, files: tuple[FileOfRelease, ...]) -> dict[str, Any]:
    entries = [{"path": file.path, "sha256": file.sha256, "bytes": file.bytes} for file in files]
    return {"version": version, "signer": signer, "bank_signer": bank_signer, "files": entries}


def _file(entry: Any) -> FileOfRelease:
    if not isinstance(entry, dict):
        raise ValueError("a file of a release is not an object")
    path = text(entry, "path")
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} is not a path in a release")
    file = path.partition("/")[2]
    limit = _MANIFEST_LIMIT if file in (MANIFEST, SIGNATURE) else SIZE_LIMITS.get(file, OTHER_LIMIT)
    return FileOfRelease(path, digest(entry, "sha256"), whole(entry, "bytes", limit))


# --- trust ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trust:
    """The keys whose signatures count in a fleet.

    Attributes:
        fleet: the id of the fleet.
        publishers: public keys in hexadecimal.
    """

    fleet: str
    version: int
    publishers: tuple[str, ...]

    def content(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "type": "trust", "format": FORMAT, "fleet": self.fleet, "version": self.version,
            "publishers": list(self.publishers),
        }  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(canonical(self.content())).hexdigest()

    @classmethod
    def parse(cls, document: Any) -> Self:
        """From a document, whoever signed it; raises MetadataError if it is invalid."""
        try:
            signed = _signed(document, "trust")
            publishers = _list(signed, "publishers", _LARGEST_LIST)
            keys = tuple(digest({"key": key}, "key") for key in publishers)
            if not keys:
                raise ValueError("it lists no publisher")
            return cls(digest(signed, "fleet"), whole(signed, "version"), keys)
        except ValueError as error:
            raise MetadataError(f"The fleet's trust document is invalid: {error}.") from error

    def successor(self, document: Any) -> "Trust":
        """The next trust, which a key of this one has signed; raises MetadataError if it is no successor."""
        following = Trust.parse(document)
        if following.fleet != self.fleet or following.version != self.version + 1:
            raise MetadataError(
                f"The fleet's trust document {following.version} does not follow the known one, {self.version}."
            )
        _require_signature(document, self.publishers, f"The fleet's trust document {following.version}")
        return following


# --- channels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Channel:
    """What a channel offers.

    Attributes:
        sequence: grows with each document of the channel.
        made, expires: seconds since 1970.
        releases: those that a device may run, the oldest first.
        withdrawn: the versions from which a device may go back to a lower one of the releases.
        digest: SHA-256 of the signed content.
    """

    fleet: str
    name: str
    sequence: int
    made: int
    expires: int
    releases: tuple[Release, ...]
    withdrawn: tuple[int, ...]

    def content(self) -> dict[str, Any]:
        """What is signed."""
        return {
            "type": "channel", "format": FORMAT, "fleet": self.fleet, "channel": self.name,
            "sequence": self.sequence, "made": self.made, "expires": self.expires,
            "releases": [release.content() for release in self.releases], "withdrawn": list(self.withdrawn),
        }  # fmt: skip

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(canonical(self.content())).hexdigest()

    def release(self, wanted: str) -> Release:
        """The release of an id; raises MetadataError if the channel does not offer it."""
        for release in self.releases:
            if release.id == wanted:
                return release
        raise MetadataError(
            f"The registry names a release {wanted[:12]} that the signed document of the channel {self.name!r} lacks."
        )

    @classmethod
    def parse(cls, document: Any) -> Self:
        """From a document, whoever signed it; raises MetadataError if it is invalid."""
        try:
            signed = _signed(document, "channel")
            return cls(
                fleet=digest(signed, "fleet"),
                name=name(signed, "channel"),
                sequence=whole(signed, "sequence"),
                made=whole(signed, "made"),
                expires=whole(signed, "expires"),
                releases=tuple(Release.parse(entry) for entry in _list(signed, "releases", _LARGEST_LIST)),
                withdrawn=tuple(whole({"version": each}, "version") for each in _list(signed, "withdrawn", 1000)),
            )
        except ValueError as error:
            raise MetadataError(f"The document of a channel is invalid: {error}.") from error


@dataclass(frozen=True)
class Seen:
    """The newest document of a channel that a device has accepted."""

    sequence: int
    digest: str


def accepted_channel(document: Any, expected: str, trust: Trust, seen: Mapping[str, Seen], now: float) -> Channel:
    """A channel's document after all checks.

    Args:
        expected: the name of the device's channel.
        seen: what was accepted before, by the name of the channel.
        now: seconds since 1970, by a clock that is not behind any document that was accepted.

    Raises:
        MetadataError: a check fails.
    """
    channel = Channel.parse(document)
    what = f"The document of the channel {channel.name!r}"
    _require_signature(document, trust.publishers, what)
    if channel.fleet != trust.fleet or channel.name != expected:
        raise MetadataError(f"{what} is not for this fleet's channel {expected!r}.")
    known = seen.get(channel.name)
    if known is not None and channel.sequence < known.sequence:
        raise MetadataError(f"{what} has the sequence number {channel.sequence}, and {known.sequence} is known.")
    if known is not None and channel.sequence == known.sequence and channel.digest != known.digest:
        raise MetadataError(f"{what} differs from the known one of the same sequence number {known.sequence}.")
    check_fresh(channel, now)
    return channel


def check_fresh(channel: Channel, now: float) -> None:
    """Raise MetadataError if a channel's document has expired."""
    if now > channel.expires:
        days = (now - channel.expires) / 86400
        raise MetadataError(
            f"The document of the channel {channel.name!r} expired {days:.1f} days ago by this device's clock: nobody "
            "has renewed it, somebody holds a newer one back, or the clock is wrong."
        )


def _require_signature(document: Document, keys: tuple[str, ...], what: str) -> None:
    try:
        content = canonical(document["signed"])
    except ValueError as error:
        raise MetadataError(f"{what} is not JSON: {error}.") from error
    for entry in _list(document, "signatures", _LARGEST_SIGNATURES):
        if isinstance(entry, dict) and entry.get("key") in keys:
            try:
                signature = bytes.fromhex(text(entry, "signature"))
            except ValueError:
                continue
            if is_signed_by(bytes.fromhex(entry["key"]), content, signature):
                return
    raise MetadataError(f"{what} is not signed by a publisher of this fleet.")


def _signed(document: Any, kind: str) -> dict[str, Any]:
    if not isinstance(document, dict) or not isinstance(document.get("signed"), dict):
        raise ValueError("it is not a signed document")
    _list(document, "signatures", _LARGEST_SIGNATURES)
    signed: dict[str, Any] = document["signed"]
    if signed.get("type") != kind:
        raise ValueError(f"its type is not {kind!r}")
    if signed.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; install a newer fedgraft-device")
    return signed


def _list(content: Mapping[str, Any], key: str, most: int) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{key} is not a list of at most {most} entries")
    return value
