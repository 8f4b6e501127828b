"""Every random draw comes from (seed, purpose, site, round), so that no draw depends on earlier ones."""

import hashlib
import hmac

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray


def derived_seed(seed: int, purpose: str, *place: int | str) -> int:
    """A 63-bit seed for one purpose at one place, such as ("batches", fold, site, round)."""
    text = "/".join([str(seed), purpose, *(str(part) for part in place)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *place: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose at one place."""
    return np.random.default_rng(derived_seed(seed, purpose, *place))


def public_key(seed: int) -> bytes:
    """A noise key (32 bytes) that anyone can derive from the seed: it makes a simulation reproducible; not a secret."""
    return hashlib.sha256(f"{seed}/noise key".encode()).digest()


def keyed_normal(key: bytes, count: int, purpose: str, *place: int | str | bytes) -> NDArray[np.float64]:
    """Standard normal noise (count,) for one purpose at one place that nobody can predict without the key.

    The keystream of ChaCha20 under a key derived from `key` and the place, through the Box-Muller transform.

    Args:
        key: 32 bytes, secret if the noise is to protect anything.
    """
    parts = [purpose.encode(), *(part if isinstance(part, bytes) else str(part).encode() for part in place)]
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    cipher = Cipher(algorithms.ChaCha20(hmac.digest(key, text, "sha256"), bytes(16)), mode=None)
    pairs = -(-count // 2)
    stream = np.frombuffer(cipher.encryptor().update(bytes(16 * pairs)), "<u8").reshape(2, pairs)
    radius, angle = ((stream >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * np.pi * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
