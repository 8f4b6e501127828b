"""The registry's state in SQLite, with a write-ahead log: what was answered to a device survives a kill."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from fedgraft.core.errors import UserError

VERSION = 1
_PATIENCE_MS = 20_000
_SCHEMA = """
CREATE TABLE trust (version INTEGER PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE tokens (
    hash TEXT PRIMARY KEY, grp TEXT NOT NULL, channel TEXT NOT NULL, tags TEXT NOT NULL, expires REAL NOT NULL,
    used_by TEXT);
CREATE TABLE devices (
    id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, grp TEXT NOT NULL, tags TEXT NOT NULL, channel TEXT NOT NULL,
    enrolled REAL NOT NULL, last_seen REAL NOT NULL, revoked INTEGER NOT NULL DEFAULT 0,
    release TEXT NOT NULL DEFAULT '', version INTEGER, health TEXT NOT NULL DEFAULT 'new',
    proving INTEGER NOT NULL DEFAULT 0, problem TEXT NOT NULL DEFAULT '', agent TEXT NOT NULL DEFAULT '',
    serial INTEGER NOT NULL DEFAULT 0, clock_skew REAL NOT NULL DEFAULT 0);
CREATE TABLE channels (
    name TEXT NOT NULL, sequence INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (name, sequence));
CREATE TABLE releases (id TEXT PRIMARY KEY, version INTEGER NOT NULL, content TEXT NOT NULL, labels TEXT NOT NULL);
CREATE TABLE rollouts (
    channel TEXT NOT NULL, release TEXT NOT NULL, number INTEGER NOT NULL, plan TEXT NOT NULL, stage INTEGER NOT NULL,
    began REAL NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (channel, release));
CREATE TABLE outcomes (
    device TEXT NOT NULL, release TEXT NOT NULL, result TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (device, release));
CREATE INDEX outcomes_of ON outcomes (release);
CREATE TABLE telemetry (
    device TEXT NOT NULL, release TEXT NOT NULL, predictions INTEGER NOT NULL, unknown INTEGER NOT NULL,
    failed INTEGER NOT NULL, confidence REAL NOT NULL, reference REAL, recent REAL, latency TEXT NOT NULL,
    counts TEXT NOT NULL, PRIMARY KEY (device, release));
CREATE INDEX telemetry_of ON telemetry (release);
"""
_ADDED = """
CREATE TABLE IF NOT EXISTS embeddings (
    device TEXT NOT NULL, release TEXT NOT NULL, received REAL NOT NULL, row BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS embeddings_of ON embeddings (device);
"""
"""Tables that a database of the same version may lack; who does not know them leaves them alone."""

Row = sqlite3.Row


class Database:
    """A connection that threads may share, and other processes' connections beside it.

    Raises:
        UserError: the file is damaged, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            for setting in (f"busy_timeout={_PATIENCE_MS}", "journal_mode=WAL", "synchronous=FULL"):
                self._connection.execute(f"PRAGMA {setting}")
            self._open()
        except sqlite3.DatabaseError as error:
            raise UserError(f"The registry's database {path} cannot be used: {error}.") from error

    def _open(self) -> None:
        with self.transaction():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise UserError(
                    f"The registry's database {self.path} was written by a newer fedgraft (version {version}, and this "
                    f"one reads {VERSION}); install that version to use it."
                )
            if version < VERSION:
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version={VERSION}")
            for statement in _ADDED.split(";"):
                self._connection.execute(statement)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is written inside is on the disk when it ends, all or nothing; nested ones are part of the outer."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._run("BEGIN IMMEDIATE")
            try:
                yield
                self._run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, statement: str, *values: Any) -> int:
        """Run a statement; returns how many rows it changed."""
        with self._lock:
            return self._run(statement, *values).rowcount

    def rows(self, statement: str, *values: Any) -> list[Row]:
        """All rows of a query."""
        with self._lock:
            return self._run(statement, *values).fetchall()

    def row(self, statement: str, *values: Any) -> Row | None:
        """The first row of a query."""
        with self._lock:
            found: Row | None = self._run(statement, *values).fetchone()
            return found

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Raises UserError where the disk is full, or another process has the database for long."""
        try:
            return self._connection.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise UserError(f"The registry's database {self.path} cannot be used: {error}.") from error

    def written_elsewhere(self) -> int:
        """A number that changes when another connection has written."""
        row = self.row("PRAGMA data_version")
        assert row is not None
        return int(row[0])

    # --- documents --------------------------------------------------------------------------------

    def add_trust(self, version: int, document: dict[str, Any]) -> None:
        """Add a trust document."""
        self.execute("INSERT INTO trust VALUES (?, ?)", version, json.dumps(document))

    def trusts(self, above: int = 0) -> list[dict[str, Any]]:
        """The trust documents above a version, the oldest first."""
        rows = self.rows("SELECT document FROM trust WHERE version > ? ORDER BY version", above)
        return [json.loads(row["document"]) for row in rows]

    def channel(self, name: str) -> dict[str, Any] | None:
        """The newest document of a channel; None where nothing was published in it."""
        row = self.row("SELECT document FROM channels WHERE name = ? ORDER BY sequence DESC LIMIT 1", name)
        return None if row is None else json.loads(row["document"])

    def channel_names(self) -> list[str]:
        """The channels in which something was published."""
        return [row["name"] for row in self.rows("SELECT DISTINCT name FROM channels ORDER BY name")]

    def device(self, device: str) -> Row | None:
        """A device."""
        return self.row("SELECT * FROM devices WHERE id = ?", device)

    def backup(self, path: Path) -> None:
        """Copy the database as it is at one moment, while it is used."""
        with sqlite3.connect(path) as target, self._lock:
            self._connection.backup(target)
        target.close()


def now() -> float:
    """Seconds since 1970."""
    return time.time()
