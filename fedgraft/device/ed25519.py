"""Verification of Ed25519 signatures (RFC 8032, section 5.1.7) in plain Python, and public keys in PEM.

A device has no cryptography package. Verification handles no secret, so its running time reveals nothing, and the
textbook formulas take a few milliseconds per bundle. Exports sign with the package `cryptography`; for a device's own
key see `device_key`.
"""

import base64
import hashlib
import re
from pathlib import Path

from fedgraft.device.errors import DeviceError

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_PRIME = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _PRIME) % _PRIME
_ROOT_OF_MINUS_ONE = pow(2, (_PRIME - 1) // 4, _PRIME)
_PEM_PREFIX = bytes.fromhex("302a300506032b6570032100")
"""What precedes the 32 bytes of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410)."""

_Point = tuple[int, int, int, int]
"""Extended coordinates (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z."""


def is_signed_by(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature (64 bytes) of a message verifies under a public key (32 bytes)."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    signer = _decoded(public_key)
    scalar = int.from_bytes(signature[32:], "little")
    if signer is None or scalar >= _ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    challenge = int.from_bytes(digest, "little") % _ORDER
    x, y, z, t = signer
    negated = (-x % _PRIME, y, z, -t % _PRIME)
    return _encoded(_add(_multiple(scalar, _BASE), _multiple(challenge, negated))) == signature[:32]


def read_public_key(text: str) -> bytes:
    """A public key from a PEM file, or from its 64 hexadecimal digits; raises DeviceError if it is neither."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text)
    try:
        lines = Path(text).read_text(encoding="ascii").splitlines()
        content = base64.b64decode("".join(line for line in lines if not line.startswith("-----")), validate=True)
    except (OSError, ValueError) as error:
        raise DeviceError(f"{text} is not a public key: give a PEM file or 64 hexadecimal digits ({error}).") from error
    if len(content) != len(_PEM_PREFIX) + KEY_BYTES or not content.startswith(_PEM_PREFIX):
        raise DeviceError(f"{text} is not an Ed25519 public key; `fedgraft export` writes one beside its signing key.")
    return content[len(_PEM_PREFIX) :]


def scalar_multiple_of_base(scalar: int, bits: int) -> bytes:
    """The encoding of a multiple of the base point, by as many doublings and additions whatever the scalar is.

    Args:
        bits: of the largest scalar.
    """
    result: _Point = (0, 1, 1, 0)
    for place in range(bits - 1, -1, -1):
        result = _add(result, result)
        result = (result, _add(result, _BASE))[scalar >> place & 1]
    return _encoded(result)


def _add(one: _Point, other: _Point) -> _Point:
    """The sum on the curve -x^2 + y^2 = 1 + d x^2 y^2 (RFC 8032, section 5.1.4)."""
    a = (one[1] - one[0]) * (other[1] - other[0]) % _PRIME
    b = (one[1] + one[0]) * (other[1] + other[0]) % _PRIME
    c = 2 * one[3] * other[3] * _D % _PRIME
    d = 2 * one[2] * other[2] % _PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _PRIME, g * h % _PRIME, f * g % _PRIME, e * h % _PRIME


def _multiple(scalar: int, point: _Point) -> _Point:
    result = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _encoded(point: _Point) -> bytes:
    inverse = pow(point[2], -1, _PRIME)
    x, y = point[0] * inverse % _PRIME, point[1] * inverse % _PRIME
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decoded(content: bytes) -> _Point | None:
    """The point that 32 bytes encode, or None (RFC 8032, section 5.1.3)."""
    number = int.from_bytes(content, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    if y >= _PRIME:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _PRIME) % _PRIME
    x = pow(square, (_PRIME + 3) // 8, _PRIME)
    if (x * x - square) % _PRIME:
        x = x * _ROOT_OF_MINUS_ONE % _PRIME
    if (x * x - square) % _PRIME or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _PRIME - x
    return x, y, 1, x * y % _PRIME


def _base_point() -> _Point:
    point = _decoded((4 * pow(5, -1, _PRIME) % _PRIME).to_bytes(32, "little"))
    assert point is not None
    return point


_BASE = _base_point()
