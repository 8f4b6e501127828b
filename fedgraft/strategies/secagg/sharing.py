"""Shamir's secret sharing over GF(2^128), as PyCryptodome has it, and recovery despite wrong shares."""

from collections.abc import Callable, Mapping
from itertools import combinations, islice

from Crypto.Protocol.SecretSharing import Shamir

_ATTEMPTS = 200
"""Sets of shares that are tried until one gives the right secret."""


def shares(secret: bytes, needed: int, count: int) -> list[bytes]:
    """Shares of 16 bytes; any `needed` of them give the secret (16 bytes), fewer say nothing about it."""
    if count == 1:
        return [secret]
    return [share for _, share in Shamir.split(needed, count, secret, ssss=False)]


def recovered(given: Mapping[int, bytes], needed: int, right: Callable[[bytes], bool]) -> bytes | None:
    """The secret, or None if the shares do not suffice or too many of them are wrong.

    Args:
        given: shares by their position among all, counted from 0.
        right: whether a candidate is the secret.
    """
    positions = sorted(given)
    if len(positions) < needed:
        return None
    for chosen in islice(combinations(positions, needed), _ATTEMPTS):
        candidate = Shamir.combine([(position + 1, given[position]) for position in chosen], ssss=False)
        if right(candidate):
            return candidate
    return None
