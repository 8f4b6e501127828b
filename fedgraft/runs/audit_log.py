"""A site's audit log: what it was asked, what its operator decided, what left it; a line of JSON per entry.

Entries are only appended, flushed to disk, and each holds the SHA-256 of the one before, so that a changed or missing
line is found. A whole log that was cut at its end is still sound in itself: whoever wants to see that too keeps the
hash that `fedgraft site log` prints, and gives it the next time.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fedgraft.core.errors import RunFailed
from fedgraft.core.files import locked

Entry = dict[str, Any]
"""One line: number, time (UTC), event, the event's own keys, the hash of the entry before, and its own."""
START = "0" * 64
"""The hash before the first entry."""


class AuditLog:
    """The log in a file; several processes may append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def append(self, event: str, content: Mapping[str, Any]) -> None:
        """Add an entry and flush it to disk; raises OSError if it cannot be written."""
        with locked(self.path, 0o600) as file:
            last = _last_entry(file)
            entry: Entry = {
                "number": last["number"] + 1 if last else 1,
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "event": event,
                **content,
                "previous": last["hash"] if last else START,
            }
            file.write(json.dumps({**entry, "hash": _hash(entry)}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def fresh(self) -> Iterator[Entry]:
        """The entries since the last call, of this and of other processes; raises RunFailed for a damaged line."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # torn by a kill; the next entry replaces it
                    return
                self._read += len(line)
                yield _parsed(line, self.path)

    def verified(self) -> list[Entry]:
        """All entries; raises RunFailed with the first line that was changed, or whose predecessor is missing."""
        entries: list[Entry] = []
        previous = START
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entry = dict(json.loads(line))
                own = entry.pop("hash")
                sound = entry["number"] == number and entry["previous"] == previous and own == _hash(entry)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise RunFailed(f"Line {number} of {self.path} was changed, or a line before it is missing.")
            entries.append({**entry, "hash": own})
            previous = own
        return entries


def _hash(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _parsed(line: bytes, path: object) -> Entry:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise RunFailed(f"A line of {path} is damaged; see `fedgraft site log`, and move the file away.") from error


def _last_entry(file: IO[bytes]) -> Entry | None:
    """The last whole entry; what a kill left behind it is removed, and the file stands at its end."""
    end = file.seek(0, os.SEEK_END)
    begin, tail = end, b""
    while begin > 0 and tail.count(b"\n") < 2:
        step = min(begin, 65536)
        begin -= step
        file.seek(begin)
        tail = file.read(step) + tail
    whole, newline, torn = tail.rpartition(b"\n")
    if torn:
        file.truncate(end - len(torn))
    file.seek(0, os.SEEK_END)
    return _parsed(whole.rpartition(b"\n")[2], file.name) if newline else None
