"""A device's folder: its key, what it knows of its fleet, the releases that it has, and which of them runs.

device.key     its private key, mode 0600
ca.pem         what it verifies the registry with
state.json     what it knows, and which release runs; replaced as a whole, so that a switch is atomic
channel.json   the newest signed document of its channel
blobs/         whole files by their SHA-256          parts/   files that are still fetched
releases/ID/   bundle/, and classes/ for a class bank alone
tally.json     what was predicted since the last report
report.json    a report that the registry has not yet acknowledged

The agent and the program that predicts are two processes; each changes the state under a lock.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

from fedgraft.device.agent.metadata import BANK, BUNDLE, Release, Seen
from fedgraft.device.device_key import DeviceKey
from fedgraft.device.errors import DeviceError

STATE_FORMAT = 1
PROVING_PREDICTIONS = 20
"""So many predictions must work before a new release counts as good."""
_LARGEST_STATE = 4 * 2**20


@dataclass(frozen=True)
class DeviceState:
    """What a device knows.

    Attributes:
        fleet, device, channel: ids, and the channel that the device is in.
        trust: the signed content of the trust document.
        seen: the newest document of each channel.
        latest: when the newest accepted document was made; the device's clock is not before it.
        current: the release that runs, or "".
        good: the last one that has proved itself, to go back to.
        floor_version, floor_id: the highest release that has run; nothing below runs unless it is withdrawn.
        proving: how many predictions the current release still has to prove itself by.
        tries: how often a release was begun without a result.
        refused: releases that this device does not take again, each with the reason.
        warnings: what a release's self test found, although the release allows it.
        serial: of the last report.
        told: SHA-256 of what the last report said beside counts.
        share_embeddings: whether the device's owner lets embeddings of unknown images be reported.
    """

    format: int = STATE_FORMAT
    fleet: str = ""
    device: str = ""
    channel: str = ""
    trust: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    latest: int = 0
    current: str = ""
    good: str = ""
    floor_version: int = -1
    floor_id: str = ""
    proving: int = 0
    tries: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    serial: int = 0
    told: str = ""
    share_embeddings: bool = False

    @property
    def health(self) -> str:
        """In one word: new (no release yet), failed (went back, or refuses what its channel names) or ok."""
        if self.refused:
            return "failed"
        return "ok" if self.current else "new"

    @classmethod
    def parse(cls, content: Any) -> Self:
        """From state.json; raises ValueError, TypeError or KeyError if it is invalid."""
        if not isinstance(content, dict) or content.get("format") != STATE_FORMAT:
            raise ValueError(f"its format is not {STATE_FORMAT}")
        return cls(**{**content, "seen": {name: Seen(**each) for name, each in content["seen"].items()}})


class DeviceFolder:
    """A device's folder, created if missing.

    Raises:
        DeviceError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for part in ("blobs", "parts", "releases"):
                (path / part).mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise DeviceError(f"The device's folder {path} cannot be written: {error.strerror}.") from error

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a path is a device's folder."""
        return (path / "state.json").is_file()

    @property
    def key(self) -> DeviceKey:
        """The device's key, made if missing."""
        return DeviceKey.in_file(self.path / "device.key")

    def state(self) -> DeviceState:
        """What the device knows; raises DeviceError if the file is damaged."""
        content = self.read_json("state.json")
        if content is None:
            return DeviceState()
        try:
            return DeviceState.parse(content)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DeviceError(f"The device's state {self.path / 'state.json'} cannot be used: {error}.") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes the state."""
        with open_lock(self.path / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def change(self, **changes: Any) -> DeviceState:
        """Change some of the state and write it; returns the new one."""
        with self.locked():
            state = replace(self.state(), **changes)
            self.write_state(state)
        return state

    def write_state(self, state: DeviceState) -> None:
        """Replace the state; the caller holds the lock."""
        self.write_json("state.json", asdict(state))

    # --- the release that runs --------------------------------------------------------------------

    def release(self, release: str) -> Path:
        """The folder of a release."""
        return self.path / "releases" / release

    def bundle(self, release: str) -> Path:
        """The bundle of a release."""
        return self.release(release) / BUNDLE

    def bank(self, release: str) -> Path | None:
        """The class bank alone that replaces the bundle's, or None."""
        path = self.release(release) / BANK
        return path if path.is_dir() else None

    def switch(self, release: Release, proving: int = PROVING_PREDICTIONS, warning: str | None = None) -> DeviceState:
        """Let a release run from now on; the one before stays as the last good one, unless it was still on trial.

        Args:
            warning: of its self test.
        """
        with self.locked():
            state = self.state()
            kept = {id: said for id, said in state.warnings.items() if id in (state.current, state.good)}
            state = replace(
                state,
                current=release.id,
                good=state.good if state.proving and state.good else state.current,
                floor_version=release.version,
                floor_id=release.id,
                proving=proving,
                tries={},
                refused={},
                warnings={**kept, release.id: warning} if warning else kept,
            )
            self.write_state(state)
        return state

    def prove(self, release: str, predictions: int) -> None:
        """Count predictions of a release that worked, until it has proved itself."""
        with self.locked():
            state = self.state()
            if state.current == release and state.proving:
                left = max(0, state.proving - predictions)
                good = state.good if left else release
                self.write_state(replace(state, proving=left, good=good, tries={}))

    def begin(self, release: str, most: int) -> bool:
        """Count that a release is about to be tried; whether it may be, having been tried less than `most` times."""
        with self.locked():
            state = self.state()
            tried = state.tries.get(release, 0)
            self.write_state(replace(state, tries={**state.tries, release: tried + 1}))
        return tried < most

    def refuse(self, release: str, reason: str) -> DeviceState:
        """Never take a release again; where it runs, go back to the last good one."""
        with self.locked():
            state = self.state()
            state = replace(state, refused={**state.refused, release: reason}, tries={})
            if state.current == release:
                state = replace(state, current=state.good, proving=0)
            self.write_state(state)
        return state

    def tidy(self, kept: set[str]) -> None:
        """Delete releases that are not kept, and files that no kept release has."""
        for folder in (self.path / "releases").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for blob in (self.path / "blobs").iterdir():
            if blob.stat().st_nlink < 2:
                blob.unlink(missing_ok=True)

    # --- files ------------------------------------------------------------------------------------

    def read_json(self, name: str) -> Any:
        """The value of a JSON file, or None if there is none; raises DeviceError if it is damaged."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                content = file.read(_LARGEST_STATE + 1)
            if len(content) > _LARGEST_STATE:
                raise ValueError("it is too large")
            return json.loads(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise DeviceError(f"{path} cannot be read: {error}.") from error

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file; after a kill or on a full disk it holds the old or the new value.

        Raises:
            DeviceError: it cannot be written.
        """
        write_whole(self.path / name, json.dumps(value).encode())


def open_lock(path: Path) -> IO[str]:
    """A file to lock, created if missing; raises DeviceError if it cannot be written."""
    try:
        return path.open("a")
    except OSError as error:
        raise DeviceError(f"{path} cannot be written: {error.strerror}.") from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file's content at once; raises DeviceError if it cannot be written."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise DeviceError(f"{path} cannot be written: {error.strerror}.") from error
