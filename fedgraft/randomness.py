"""Every random draw comes from (seed, purpose, site, round), so that no draw depends on who drew before."""

import hashlib

import numpy as np


def derived_seed(seed: int, purpose: str, *place: int | str) -> int:
    """A 63-bit seed for one purpose at one place, such as ("batches", fold, site, round)."""
    text = "/".join([str(seed), purpose, *(str(part) for part in place)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *place: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose at one place."""
    return np.random.default_rng(derived_seed(seed, purpose, *place))
