"""What a publisher does with its key: publish, roll back, renew, and hand over to another key.

The registry that serves the folder needs no key; a publisher's commands write signed documents into its database.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.core.errors import UserError
from fedgraft.device.agent.metadata import Channel, Document, Release, Trust
from fedgraft.device.bundle import Bundle, open_bundle
from fedgraft.device.manifest import MANIFEST, SIGNATURE, canonical
from fedgraft.edge_export.signing import public_bytes
from fedgraft.fleet.bundle_release import keep_file, labels_of_bundle, release_of_bundle
from fedgraft.fleet.database import Database, now
from fedgraft.fleet.fleet_folder import FleetFolder
from fedgraft.fleet.rollout import RolloutPlan
from fedgraft.fleet.tokens import check_name

EXPIRY_SECONDS = 30 * 86400.0
"""After which a device no longer believes a channel's document that nobody has renewed."""
_LARGEST_HISTORY = 1000


@dataclass(frozen=True)
class Published:
    """What was published."""

    channel: str
    version: int
    release: str
    sequence: int
    bytes: int
    expires: float


def publish(
    folder: FleetFolder,
    bundle: Path,
    channel: str,
    key: Ed25519PrivateKey,
    plan: RolloutPlan | None = None,
    expiry: float = EXPIRY_SECONDS,
) -> Published:
    """Publish a bundle, or a class bank alone for the encoder of a release of the channel.

    Raises:
        UserError: the key is no publisher's, or the version is not higher than the channel's newest.
        DeviceError: the bundle is unsigned, by another signer, damaged, or fails its self test.
    """
    check_name("channel", channel)
    with folder.database() as database:
        trust = _trust_of(database, key)
        opened = open_bundle(bundle)
        if opened.signer.hex() not in trust.publishers:
            raise UserError(
                f"The bundle {bundle} is signed by {opened.signer.hex()}, who is no publisher of this fleet "
                f"({', '.join(trust.publishers)})."
            )
        known = _channel(database, channel)
        _check_version(opened, known)
        release = release_of_bundle(opened, known)
        labels = labels_of_bundle(opened)
        contents = {name: opened.read(name) for name in opened.manifest.files}
        for name in (MANIFEST, SIGNATURE):
            contents[name] = opened.raw(name)
        for file in contents.values():
            keep_file(folder, file)
        with database.transaction():
            _check_version(opened, _channel(database, channel))
            other = database.row(
                "SELECT id FROM releases WHERE version = ? AND id != ?", release.version, release.id
            )  # across channels, between which a device may be moved
            if other is not None:
                raise UserError(
                    f"Another release of version {release.version} is in this fleet; a change needs a higher version."
                )
            content = json.dumps(release.content())
            database.execute(
                "INSERT OR IGNORE INTO releases VALUES (?, ?, ?, ?)", release.id, release.version, content, labels
            )
            kept = _still_offered(database, known)
            document = _next(database, trust, channel, [*kept, release], (), expiry, key)
            _begin_rollout(database, channel, release, plan or RolloutPlan())
    return Published(channel, release.version, release.id, document.sequence, release.bytes, document.expires)


def rollback(
    folder: FleetFolder,
    channel: str,
    key: Ed25519PrivateKey,
    version: int | None = None,
    expiry: float = EXPIRY_SECONDS,
) -> Published:
    """Withdraw the newest release of a channel, or all above a version, and let all its devices go back at once.

    Raises:
        UserError: there is nothing to go back to, or the key is no publisher's.
    """
    check_name("channel", channel)
    with folder.database() as database:
        trust = _trust_of(database, key)
        known = _require(database, channel)
        history = _history(database, channel)
        lower = [(each, state) for each, state in history if each.version < known.releases[-1].version]
        fitting = [each for each, state in lower if (state == "done" if version is None else each.version == version)]
        if not fitting:
            had = ", ".join(str(each.version) for each, _ in lower) or "none"
            raise UserError(
                f"The channel {channel!r} has no such version to go back to that all its devices may have; lower "
                f"ones: {had}."
            )
        target = fitting[-1]
        with database.transaction():
            withdrawn = {each.version for each, _ in history if each.version > target.version}
            document = _next(database, trust, channel, [target], sorted(withdrawn), expiry, key)
            for each, _ in history:
                if each.version > target.version:
                    database.execute(
                        "UPDATE rollouts SET state = 'withdrawn' WHERE channel = ? AND release = ?", channel, each.id
                    )
            _begin_rollout(database, channel, target, RolloutPlan())
    return Published(channel, target.version, target.id, document.sequence, target.bytes, document.expires)


def renew(folder: FleetFolder, channel: str, key: Ed25519PrivateKey, expiry: float = EXPIRY_SECONDS) -> Published:
    """Sign a channel's document anew with a later expiry; raises UserError if the channel or the key is unknown."""
    with folder.database() as database:
        trust = _trust_of(database, key)
        known = _require(database, channel)
        with database.transaction():
            document = _next(database, trust, channel, known.releases, known.withdrawn, expiry, key)
    newest = known.releases[-1]
    return Published(channel, newest.version, newest.id, document.sequence, newest.bytes, document.expires)


def rotate(folder: FleetFolder, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> int:
    """Hand over from one publisher's key to another, and sign every channel anew; returns the trust's version.

    Raises:
        UserError: the old key is no publisher's, or the new one is already.
    """
    with folder.database() as database:
        trust = _trust_of(database, old)
        replaced, added = public_bytes(old).hex(), public_bytes(new).hex()
        if added in trust.publishers:
            raise UserError(f"The key {added} is a publisher's of this fleet already.")
        publishers = tuple(added if each == replaced else each for each in trust.publishers)
        following = Trust(trust.fleet, trust.version + 1, publishers)
        with database.transaction():
            database.add_trust(following.version, signed_document(following.content(), old, new))
            for name in database.channel_names():
                known = _require(database, name)
                left = max(EXPIRY_SECONDS, known.expires - now())
                _next(database, following, name, known.releases, known.withdrawn, left, new)
    return following.version


def signed_document(content: dict[str, object], *keys: Ed25519PrivateKey) -> Document:
    """A document with the signatures of keys."""
    text = canonical(content)
    signatures = [{"key": public_bytes(key).hex(), "signature": key.sign(text).hex()} for key in keys]
    return {"signed": content, "signatures": signatures}


def _trust_of(database: Database, key: Ed25519PrivateKey) -> Trust:
    """The present trust; raises UserError if a key is no publisher's."""
    trust = Trust.parse(database.trusts()[-1])
    mine = public_bytes(key).hex()
    if mine not in trust.publishers:
        raise UserError(
            f"The key {mine} is no publisher's of this fleet ({', '.join(trust.publishers)}); give another --key."
        )
    return trust


def _channel(database: Database, name: str) -> Channel | None:
    document = database.channel(name)
    return None if document is None else Channel.parse(document)


def _require(database: Database, name: str) -> Channel:
    found = _channel(database, name)
    if found is None:
        known = ", ".join(database.channel_names()) or "none"
        raise UserError(f"Nothing was published in the channel {ascii(name)[:80]}; channels: {known}.")
    return found


def _check_version(opened: Bundle, known: Channel | None) -> None:
    version = opened.manifest.version
    newest = max((*(each.version for each in known.releases), *known.withdrawn), default=-1) if known else -1
    if version <= newest:
        raise UserError(
            f"The bundle {opened.path} has version {version}, and the channel has had version {newest}; export it "
            f"with --bundle-version {newest + 1} or higher."
        )


def release_of(database: Database, opened: Bundle, channel: str) -> Release:
    """The release that a bundle would make in a channel now; raises as `publish`."""
    return release_of_bundle(opened, _channel(database, channel))


def _still_offered(database: Database, known: Channel | None) -> Sequence[Release]:
    """The releases that stay in a channel's document: the newest that all devices may have, and those after it."""
    releases = known.releases if known else ()
    states = {
        row["release"]: row["state"]
        for row in database.rows("SELECT release, state FROM rollouts WHERE channel = ?", known.name if known else "")
    }
    complete = [n for n, release in enumerate(releases) if states.get(release.id) == "done"]
    return releases[complete[-1] if complete else 0 :]


def _history(database: Database, channel: str) -> list[tuple[Release, str]]:
    """Every release that was in a channel, by version, with the state of its rollout."""
    rows = database.rows(
        "SELECT r.content, o.state FROM rollouts o JOIN releases r ON r.id = o.release WHERE o.channel = ? "
        "ORDER BY r.version",
        channel,
    )
    return [(Release.parse(json.loads(row["content"])), row["state"]) for row in rows][-_LARGEST_HISTORY:]


def _next(
    database: Database,
    trust: Trust,
    name: str,
    releases: Sequence[Release],
    withdrawn: Sequence[int],
    expiry: float,
    key: Ed25519PrivateKey,
) -> Channel:
    """Sign and store the next document of a channel."""
    before = _channel(database, name)
    made = max(int(now()), 0 if before is None else before.made)  # also after a clock that was once ahead
    all_withdrawn = tuple(sorted({*withdrawn, *(before.withdrawn if before else ())}))[-_LARGEST_HISTORY:]
    sequence = 1 if before is None else before.sequence + 1
    channel = Channel(trust.fleet, name, sequence, made, made + int(expiry), tuple(releases), all_withdrawn)
    text = json.dumps(signed_document(channel.content(), key))
    database.execute("INSERT INTO channels VALUES (?, ?, ?)", name, sequence, text)
    return channel


def _begin_rollout(database: Database, channel: str, release: Release, plan: RolloutPlan) -> None:
    number = database.rows("SELECT COALESCE(MAX(number), 0) + 1 AS next FROM rollouts WHERE channel = ?", channel)
    database.execute(
        "UPDATE rollouts SET state = 'halted', reason = ? WHERE channel = ? AND state = 'going'",
        f"version {release.version} was published", channel,
    )  # fmt: skip
    state = "done" if plan.percents[0] >= 100 and not plan.halt.terms else "going"
    database.execute(
        "INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?, ?, 0, ?, ?, '')",
        channel, release.id, number[0]["next"], json.dumps(plan.content()), now(), state,
    )  # fmt: skip
