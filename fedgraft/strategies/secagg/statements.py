"""What a site signs with its long-term key, so that others know whose keys of a round the server passes on.

A statement counts for one site number in one round of one run, so a server can neither give it to an invented site nor
use it again. Signatures are ECDSA with SHA-384, of the key that the site has from `fedgraft site init`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedgraft.strategies.secagg.keys import PublicKeys

SigningKey = ec.EllipticCurvePublicKey
"""What a site's statements are checked by."""
LONGEST_SIGNATURE = 160
"""Bytes; those of P-384 have 104 at most, those of P-521 139."""
_ALGORITHM = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True)
class Statement:
    """Who says that keys are its own; without a name and a signature, nobody."""

    name: str = ""
    signature: bytes = b""


def signed_statement(
    key: ec.EllipticCurvePrivateKey, name: str, site: int, keys: PublicKeys, place: bytes
) -> Statement:
    """A site's statement about its keys.

    Args:
        site: its number in the run.
        place: the run and round.
    """
    return Statement(name, key.sign(_text(name, site, keys, place), _ALGORITHM))


def is_signed(statement: Statement, by: Iterable[SigningKey], site: int, keys: PublicKeys, place: bytes) -> bool:
    """Whether one of some long-term keys has signed a statement about these keys."""
    text = _text(statement.name, site, keys, place)
    return any(_verifies(key, statement.signature, text) for key in by)


def _verifies(key: SigningKey, signature: bytes, text: bytes) -> bool:
    try:
        key.verify(signature, text, _ALGORITHM)
    except InvalidSignature:
        return False
    return True


def _text(name: str, site: int, keys: PublicKeys, place: bytes) -> bytes:
    parts = ["fedgraft keys of a round", name, site, keys.sealing.hex(), keys.masking.hex(), place.hex()]
    return json.dumps(parts).encode()
