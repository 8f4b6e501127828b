"""A site's secrets of one round, what two sites agree on with them, and the masks that both can draw.

Primitives are those of `cryptography`: X25519, HKDF with SHA-256, AES-256 in counter mode as the generator of masks,
and AES-GCM. A secret is 16 random bytes, which is what Shamir's scheme over GF(2^128) shares in one piece.
"""

import hashlib
import secrets
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedgraft.strategies.secagg.encoding import Integers

SECRET_BYTES, KEY_BYTES = 16, 32
_NONCE_BYTES = 12


def new_secret() -> bytes:
    """16 random bytes."""
    return secrets.token_bytes(SECRET_BYTES)


@dataclass(frozen=True)
class PublicKeys:
    """The public keys of a site's two key pairs, 32 bytes each."""

    sealing: bytes
    masking: bytes


@dataclass(frozen=True)
class SiteSecrets:
    """What a site keeps to itself in a round.

    Attributes:
        sealing: of the key pair that encrypts shares.
        masking: of the key pair that pairwise masks come from.
        own: the seed of the site's own mask.
    """

    sealing: bytes = field(default_factory=new_secret)
    masking: bytes = field(default_factory=new_secret)
    own: bytes = field(default_factory=new_secret)

    def public(self) -> PublicKeys:
        """The keys for the others."""
        return PublicKeys(public_key(self.sealing), public_key(self.masking))


def public_key(secret: bytes) -> bytes:
    """The public key that belongs to a secret."""
    return _private_key(secret).public_key().public_bytes_raw()


def is_public_key(key: bytes) -> bool:
    """Whether a key can be agreed on with another site's public key; keys of low order are none."""
    try:
        _private_key(bytes(SECRET_BYTES)).exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError:
        return False
    return True


def agreed_key(secret: bytes, other: bytes, purpose: str, place: bytes) -> bytes:
    """The key (32 bytes) that two sites derive from one's secret and the other's public key.

    Args:
        place: the run and round, so that no key serves two.

    Raises:
        ValueError: the public key is none.
    """
    shared = _private_key(secret).exchange(X25519PublicKey.from_public_bytes(other))
    return _derived(shared, f"fedgraft secagg {purpose}".encode() + place)


def own_mask_key(seed: bytes, place: bytes) -> bytes:
    """The key (32 bytes) of a site's own mask."""
    return _derived(seed, b"fedgraft secagg own mask" + place)


def commitment(seed: bytes, place: bytes) -> bytes:
    """What a site says of its seed beforehand, from which a wrong share is recognized later."""
    return hashlib.sha256(b"fedgraft secagg commitment" + place + seed).digest()


def mask(key: bytes, count: int) -> Integers:
    """Pseudorandom values (count,) modulo 2^64."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), "<u8").astype(np.uint64, copy=False)


def seal(key: bytes, content: bytes, header: bytes) -> bytes:
    """Encrypted and authenticated content; the header is authenticated only."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, header)


def opened(key: bytes, sealed: bytes, header: bytes) -> bytes | None:
    """The content of `seal`, or None if anything of it was changed."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], header)
    except (InvalidTag, ValueError):
        return None


def _private_key(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_derived(secret, b"fedgraft secagg private key"))


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=purpose).derive(secret)
