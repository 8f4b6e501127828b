"""What a registry answers to its devices: enrolment, sessions, what to run, parts of files, reports."""

import json
import secrets
import time
from typing import Any

from fedgraft.core.plain_text import plain
from fedgraft.device.agent.messages import (
    CHUNK,
    LATENCY_BOUNDS,
    PROTOCOL,
    REPORTED_CLASSES,
    digest,
    enrol_text,
    login_text,
    name,
    number,
    text,
    whole,
)
from fedgraft.device.agent.metadata import Channel
from fedgraft.fleet.database import Database, Row, now
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.rollouts import Rollout, advance, target
from fedgraft.fleet.sessions import Sessions, is_signed
from fedgraft.fleet.shared_embeddings import keep_embeddings
from fedgraft.fleet.tokens import token_hash

_ADVANCE_SECONDS = 1.0
_HEALTH = ("new", "ok", "failed")
_LARGEST_CATCH_UP = 1000
"""The most trust documents in one answer."""


class RefusedRequest(Exception):
    """A request that is not answered; the message is for the device."""


class NoSession(Exception):
    """A request without a session that counts."""


class Requests:
    """Answers the requests of devices; threads share one.

    Args:
        next_seconds: how long devices wait before they ask again; None leaves it to them.
    """

    def __init__(self, folder: FleetFolder, database: Database, next_seconds: float | None = None) -> None:
        self._folder, self._database, self._next = folder, database, next_seconds
        self._sessions = Sessions()
        self._advanced, self._written = 0.0, -1
        self._rollouts: list[Rollout] = []
        self._channels: dict[str, tuple[int, Channel, dict[str, Any]]] = {}

    def enrol(self, content: dict[str, Any]) -> dict[str, Any]:
        """Let a device in by a token that nobody has used; the same device may ask again, if it lost the answer."""
        if content.get("protocol") != PROTOCOL:
            raise RefusedRequest(f"this registry speaks version {PROTOCOL} of the protocol; install the same version")
        secret, key, signature = text(content, "token"), digest(content, "key"), text(content, "signature")
        if not is_signed(key, enrol_text(secret, key), signature):
            raise RefusedRequest("the request is not signed by the key that it names")
        database = self._database
        with database.transaction():
            token = database.row("SELECT * FROM tokens WHERE hash = ?", token_hash(secret))
            if token is None:
                raise RefusedRequest("the token is unknown")
            known = database.row("SELECT * FROM devices WHERE key = ?", key)
            if token["used_by"] is not None:
                if known is None or known["id"] != token["used_by"]:
                    raise RefusedRequest("the token was used already; each lets one device in")
            elif token["expires"] < now():
                raise RefusedRequest("the token has expired")
            elif known is not None:
                raise RefusedRequest("a device with this key is enrolled already")
            else:
                device = f"d-{secrets.token_hex(8)}"
                database.execute(
                    "INSERT INTO devices (id, key, grp, tags, channel, enrolled, last_seen) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    device, key, token["grp"], token["tags"], token["channel"], now(), now(),
                )  # fmt: skip
                database.execute("UPDATE tokens SET used_by = ? WHERE hash = ?", device, token_hash(secret))
                known = database.device(device)
        assert known is not None
        trusts = database.trusts()[-_LARGEST_CATCH_UP:]
        return {"device": known["id"], "channel": known["channel"], "trust": trusts}

    def challenge(self, content: dict[str, Any]) -> dict[str, Any]:
        """A text for a device to sign; also for one that nobody knows, so that nothing is told about who is known."""
        return {"challenge": self._sessions.challenge(name(content, "device"))}

    def login(self, content: dict[str, Any]) -> dict[str, Any]:
        """Open a session for a device that has signed its challenge."""
        device, challenge = name(content, "device"), text(content, "challenge", 500)
        signature = text(content, "signature")
        known = self._database.device(device)
        signed = known is not None and is_signed(
            known["key"], login_text(self._folder.fleet, device, challenge), signature
        )
        if known is None or not signed or not self._sessions.take_challenge(device, challenge):
            raise RefusedRequest(f"the device {device} is not enrolled here with the key that signed")
        if known["revoked"]:
            raise RefusedRequest(f"the device {device} was revoked")
        return {"session": self._sessions.session(device)}

    def check(self, session: str, content: dict[str, Any]) -> dict[str, Any]:
        """What a device should know and run."""
        device = self._device(session)
        trust, current = whole(content, "trust"), text(content, "current")
        self._settle(device, current)
        self._advance()
        answer: dict[str, Any] = {"channel": device["channel"], "trust": self._database.trusts(trust)}
        if self._next is not None:
            answer["next_seconds"] = self._next
        found = self._channel(device["channel"])
        if found is not None:
            channel, document = found
            same = content.get("channel") == channel.name and content.get("sequence") == channel.sequence
            answer["document"] = None if same else document
            here = [rollout for rollout in self._rollouts if rollout.channel == channel.name]
            answer["target"] = target(channel, here, device["id"], current)
        if now() - device["last_seen"] > _ADVANCE_SECONDS:
            self._database.execute("UPDATE devices SET last_seen = ? WHERE id = ?", now(), device["id"])
        return answer

    def fetch(self, session: str, content: dict[str, Any]) -> bytes:
        """A part of a file of a release of the device's channel."""
        device = self._device(session)
        sha256, offset, length = digest(content, "sha256"), whole(content, "offset"), whole(content, "length", CHUNK)
        found = self._channel(device["channel"])
        offered = found is not None and any(
            file.sha256 == sha256 for release in found[0].releases for file in release.files
        )
        if not offered:
            raise RefusedRequest("no release of the device's channel has this file")
        try:
            with self._folder.blob(sha256).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise RefusedRequest("the registry lacks this file of the release") from error

    def report(self, session: str, content: dict[str, Any]) -> dict[str, Any]:
        """Store what a device tells, once for each number of a report."""
        device = self._device(session)
        serial, health = whole(content, "serial"), text(content, "health")
        if health not in _HEALTH:
            raise ValueError(f"health is not one of {', '.join(_HEALTH)}")
        release = text(content, "release")
        known = self._database.row("SELECT version FROM releases WHERE id = ?", release)
        version = None if known is None else known["version"]
        with self._database.transaction():
            stored = self._database.device(device["id"])
            assert stored is not None
            if serial <= stored["serial"]:
                return {"stored": False}
            self._database.execute(
                "UPDATE devices SET serial = ?, release = ?, version = ?, health = ?, proving = ?, problem = ?, "
                "agent = ?, clock_skew = ?, last_seen = ? WHERE id = ?",
                serial, release, version, health, whole(content, "proving", 1000), _said(content, "problem"),
                _said(content, "agent"), number(content, "clock", 1e11) - now(), now(), device["id"],
            )  # fmt: skip
            if release:
                self._outcome(device["id"], release, "tried", "")
            for refused, reason in _table(content, "refused", 64).items():
                self._outcome(device["id"], refused, "failed", plain(reason))
                self._advanced = 0.0
            for counted, tally in _table(content, "tallies", 16).items():
                self._count(device["id"], counted, tally)
        return {"stored": True}

    def _outcome(self, device: str, release: str, result: str, reason: str) -> None:
        """A failure stays one: a device that went back has tried and failed, whatever it runs later."""
        if self._database.row("SELECT 1 FROM releases WHERE id = ?", release) is not None:
            self._database.execute(
                "INSERT INTO outcomes VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET result = excluded.result, "
                "reason = excluded.reason WHERE excluded.result = 'failed'",
                device, release, result, reason,
            )  # fmt: skip

    def _settle(self, device: Row, current: str) -> None:
        """A device that comes back with the release that it has reported runs it."""
        if current and current == device["release"]:
            where = "WHERE device = ? AND release = ? AND result = 'tried'"
            if self._database.row(f"SELECT 1 FROM outcomes {where}", device["id"], current) is not None:
                self._database.execute(f"UPDATE outcomes SET result = 'settled' {where}", device["id"], current)
                self._advanced = 0.0

    def _count(self, device: str, release: str, tally: Any) -> None:
        row = self._database.row("SELECT * FROM releases WHERE id = ?", release)
        if row is None or not isinstance(tally, dict):
            return
        predictions, unknown, failed = (whole(tally, key, 10**12) for key in ("predictions", "unknown", "failed"))
        confidence = number(tally, "confidence", 1e12)
        latency = _counts_of(tally.get("latency"), len(LATENCY_BOUNDS) + 1)
        labels = len(json.loads(row["labels"]))
        pairs = tally.get("counts")
        if not isinstance(pairs, list) or len(pairs) > REPORTED_CLASSES:
            raise ValueError("counts is not a list of pairs")
        counts: dict[str, int] = {}
        for pair in pairs:
            position, count = _counts_of(pair, 2)
            if position >= labels:
                raise ValueError(f"a class {position} is counted, and the release has {labels}")
            counts[str(position)] = counts.get(str(position), 0) + count
        if unknown + sum(counts.values()) > predictions or confidence > predictions:
            raise ValueError("more is counted than was predicted")
        before = self._database.row("SELECT * FROM telemetry WHERE device = ? AND release = ?", device, release)
        if before is not None:
            predictions, unknown = predictions + before["predictions"], unknown + before["unknown"]
            failed = failed + before["failed"]
            latency = [mine + theirs for mine, theirs in zip(latency, json.loads(before["latency"]), strict=True)]
            for position, count in json.loads(before["counts"]).items():
                counts[position] = counts.get(position, 0) + count
        recent = confidence / tally["predictions"] if tally["predictions"] else None
        total = confidence + (before["confidence"] if before is not None else 0.0)
        reference = number(tally, "reference", 1.0) if tally.get("reference") is not None else None
        self._database.execute(
            "INSERT OR REPLACE INTO telemetry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            device, release, predictions, unknown, failed, total, reference, recent, json.dumps(latency),
            json.dumps(counts),
        )  # fmt: skip
        keep_embeddings(self._folder, self._database, device, row, tally.get("embeddings", []))

    def _device(self, session: str) -> Row:
        device = self._sessions.device(session)
        known = None if device is None else self._database.device(device)
        if known is None or known["revoked"]:
            raise NoSession
        return known

    def _channel(self, channel: str) -> tuple[Channel, dict[str, Any]] | None:
        row = self._database.row("SELECT MAX(sequence) AS newest FROM channels WHERE name = ?", channel)
        if row is None or row["newest"] is None:
            return None
        kept = self._channels.get(channel)
        if kept is None or kept[0] != row["newest"]:
            document = self._database.channel(channel)
            assert document is not None
            parsed = Channel.parse(document)
            kept = (parsed.sequence, parsed, document)
            self._channels[channel] = kept
        return kept[1], kept[2]

    def _advance(self) -> None:
        """Once a second, after a failure, and when another process has published."""
        written = self._database.written_elsewhere()
        if written == self._written and time.monotonic() - self._advanced < _ADVANCE_SECONDS:
            return
        self._advanced, self._written = time.monotonic(), written
        with self._database.transaction():
            self._rollouts = advance(self._database, now())


def _said(content: dict[str, Any], key: str) -> str:
    said = text(content, key, 400)
    return plain(said) if said else ""


def _table(content: dict[str, Any], key: str, most: int) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict) or len(value) > most:
        raise ValueError(f"{key} is not an object of at most {most} entries")
    return value


def _counts_of(value: Any, length: int) -> list[int]:
    if not isinstance(value, list) or len(value) != length:
        raise ValueError(f"a list of {length} counts is not one")
    return [whole({"count": count}, "count", 10**12) for count in value]
