"""A device's own signatures are those of the library, whatever the blinding."""

import secrets

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgraft.device.device_key import DeviceKey
from fedgraft.device.ed25519 import is_signed_by
from fedgraft.device.errors import DeviceError
from fedgraft.edge_export.signing import public_bytes


@pytest.mark.parametrize("seed", [bytes(32), bytes(range(32)), b"\xff" * 32, secrets.token_bytes(32)])
@pytest.mark.parametrize("message", [b"", b"a", bytes(1000)])
def test_a_signature_is_the_librarys_to_the_bit(seed: bytes, message: bytes) -> None:
    """RFC 8032 leaves nothing to choose, so blinding must not show."""
    key, library = DeviceKey(seed), Ed25519PrivateKey.from_private_bytes(seed)
    assert key.public == public_bytes(library)
    assert key.sign(message) == key.sign(message) == library.sign(message)
    assert is_signed_by(key.public, message, key.sign(message))
    assert not is_signed_by(key.public, message + b"x", key.sign(message))


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(DeviceError, match="32 bytes"):
        DeviceKey(bytes(31))
