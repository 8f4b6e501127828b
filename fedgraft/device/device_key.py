"""A device's own Ed25519 key (RFC 8032, section 5.1.6) in plain Python, by which a fleet's registry knows it.

Python's integers have no constant running time. So the scalar of each signature is blinded by a random multiple of the
group order and multiplied in a fixed number of equal steps; the key signs once for each session, over TLS, and is good
for nothing but this device's place in its fleet.
"""

import hashlib
import os
import secrets
from pathlib import Path

from fedgraft.device.ed25519 import KEY_BYTES, scalar_multiple_of_base
from fedgraft.device.errors import DeviceError

ORDER = 2**252 + 27742317777372353535851937790883648493
_BLINDING = 2**64
_BITS = 253 + 64


class DeviceKey:
    """A private key.

    Args:
        seed: 32 secret bytes.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise DeviceError(f"A device's key has {KEY_BYTES} bytes, not {len(seed)}.")
        digest = hashlib.sha512(seed).digest()
        self._prefix = digest[32:]
        self._scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
        self.public = scalar_multiple_of_base(_blinded(self._scalar % ORDER), _BITS)

    @classmethod
    def in_file(cls, path: Path) -> "DeviceKey":
        """The key in a file that only its owner may read, created if missing; raises DeviceError if others may."""
        try:
            if not path.exists():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            if path.stat().st_mode & 0o077:
                raise DeviceError(f"Others may read the device's key {path}; make it private (chmod 600).")
            with path.open("rb") as file:
                return cls(file.read(KEY_BYTES + 1))
        except OSError as error:
            raise DeviceError(f"The device's key {path} cannot be used: {error.strerror}.") from error

    def sign(self, message: bytes) -> bytes:
        """The signature (64 bytes) of a message."""
        nonce = int.from_bytes(hashlib.sha512(self._prefix + message).digest(), "little") % ORDER
        point = scalar_multiple_of_base(_blinded(nonce), _BITS)
        challenge = int.from_bytes(hashlib.sha512(point + self.public + message).digest(), "little") % ORDER
        answer = (nonce + challenge * self._scalar) % ORDER
        return point + answer.to_bytes(32, "little")


def _blinded(scalar: int) -> int:
    """A larger scalar with the same multiple of the base point."""
    return scalar + ORDER * secrets.randbelow(_BLINDING)
