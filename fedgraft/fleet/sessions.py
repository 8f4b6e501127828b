"""Who is at the other end: challenges that a device signs once, and the sessions that follow.

Both are texts of the registry itself, with a time and a keyed hash, under a key that lives as long as its process:
after a restart devices sign a new challenge. A challenge counts once and for a minute, so that what was overheard is
worth nothing.
"""

import hashlib
import hmac
import secrets
import threading
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_CHALLENGE_SECONDS, _SESSION_SECONDS = 60.0, 3600.0
_LARGEST_USED = 100_000


class Sessions:
    """The sessions of one registry's process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def challenge(self, device: str) -> str:
        """A text for a device to sign."""
        return self._sealed("challenge", device, _CHALLENGE_SECONDS)

    def take_challenge(self, device: str, text: str) -> bool:
        """Whether a challenge is this device's, is not too old, and was not taken before."""
        if not self._holds("challenge", device, text):
            return False
        with self._lock:
            now = time.monotonic()
            if len(self._used) >= _LARGEST_USED:
                self._used = {used: until for used, until in self._used.items() if until > now}
            if text in self._used or len(self._used) >= _LARGEST_USED:
                return False
            self._used[text] = now + _CHALLENGE_SECONDS
        return True

    def session(self, device: str) -> str:
        """What a device shows with each request from now on."""
        return f"{device}/{self._sealed('session', device, _SESSION_SECONDS)}"

    def device(self, session: str) -> str | None:
        """Whose session it is; None if it is nobody's, or has ended."""
        device, _, text = session.partition("/")
        return device if self._holds("session", device, text) else None

    def _sealed(self, purpose: str, device: str, seconds: float) -> str:
        until = f"{time.monotonic() + seconds:.3f}"
        nonce = secrets.token_hex(16)
        return f"{until}.{nonce}.{self._seal(purpose, device, until, nonce)}"

    def _holds(self, purpose: str, device: str, text: str) -> bool:
        parts = text.split(".")
        if len(parts) != 4 or len(text) > 200:
            return False
        until, nonce, seal = f"{parts[0]}.{parts[1]}", parts[2], parts[3]
        if not hmac.compare_digest(self._seal(purpose, device, until, nonce).encode(), seal.encode()):
            return False
        return time.monotonic() < float(until)

    def _seal(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()


def is_signed(public_key: str, text: bytes, signature: str) -> bool:
    """Whether a signature verifies under a public key, both in hexadecimal."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(bytes.fromhex(signature), text)
    except (InvalidSignature, ValueError):
        return False
    return True
