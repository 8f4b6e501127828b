"""Tokens of enrolment: each lets one device in, within its time; the database holds only their SHA-256."""

import base64
import hashlib
import json
import secrets

from fedgraft.core.errors import UserError
from fedgraft.device.agent.messages import NAME
from fedgraft.device.agent.metadata import Trust
from fedgraft.fleet.database import Database, now

DEFAULT_GROUP, DEFAULT_CHANNEL = "all", "stable"
_SECRET_BYTES, _FINGERPRINT = 20, 32


def new_token(
    database: Database,
    group: str = DEFAULT_GROUP,
    channel: str = DEFAULT_CHANNEL,
    tags: list[str] | None = None,
    seconds: float = 7 * 86400.0,
) -> str:
    """Make a token for one device: a secret, and the fingerprint of the publishers that the device is to believe.

    Raises:
        UserError: a name has other characters than letters, digits and . _ -
    """
    tags = tags or []
    for what, name in (("group", group), ("channel", channel), *(("tag", tag) for tag in tags)):
        check_name(what, name)
    secret = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().lower()
    with database.transaction():
        trust = Trust.parse(database.trusts()[-1])
        values = (token_hash(secret), group, channel, json.dumps(sorted(set(tags))), now() + seconds)
        database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, NULL)", *values)
    return f"{secret}.{trust.fingerprint[:_FINGERPRINT]}"


def token_hash(secret: str) -> str:
    """By what a token is known."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_name(what: str, name: str) -> str:
    """Return the name of a group, tag, channel or device; raises UserError if it is none."""
    if not NAME.fullmatch(name):
        raise UserError(f"{ascii(name)[:80]} is not the name of a {what}: at most 64 letters, digits and . _ -")
    return name
