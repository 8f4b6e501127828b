"""The messages of secure aggregation as Flower records, read with a check of every length."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord

from fedgraft.core.plain_text import NAME_LENGTH
from fedgraft.strategies.secagg.keys import KEY_BYTES, PublicKeys
from fedgraft.strategies.secagg.protocol import Keys, Revealed
from fedgraft.strategies.secagg.statements import LONGEST_SIGNATURE, Statement

SECAGG, SEALED = "secagg", "sealed"
"""The record of a stage, and the one of the shares that only one site gets."""
SHARES, MASKED, UNMASK = "shares", "masked", "unmask"
"""The stages after training."""
_LONGEST_SEALED = 256


def public_keys_record(keys: PublicKeys, statement: Statement | None = None) -> ConfigRecord:
    """A site's keys, and what it has signed about them."""
    own = statement or Statement()
    return ConfigRecord(
        {"sealing": keys.sealing, "masking": keys.masking, "name": own.name, "signature": own.signature}
    )


def public_keys_of(record: ConfigRecord) -> PublicKeys:
    """The keys in `public_keys_record`; raises ValueError or KeyError if there are none."""
    return PublicKeys(_bytes(record["sealing"], KEY_BYTES), _bytes(record["masking"], KEY_BYTES))


def statement_of(record: ConfigRecord) -> Statement:
    """The statement in `public_keys_record`; raises ValueError if it is none."""
    return _statement(record.get("name", ""), record.get("signature", b""))


def shares_request(keys: Keys, statements: Mapping[int, Statement] | None = None) -> ConfigRecord:
    """The request for shares, with everyone's keys and statements."""
    sites = sorted(keys)
    signed = [(statements or {}).get(site, Statement()) for site in sites]
    return ConfigRecord(
        {
            "stage": SHARES,
            "sites": sites,
            "sealing": [keys[site].sealing for site in sites],
            "masking": [keys[site].masking for site in sites],
            "names": [statement.name for statement in signed],
            "signatures": [statement.signature for statement in signed],
        }
    )


def keys_of(record: ConfigRecord) -> dict[int, PublicKeys]:
    """The keys in `shares_request`; raises ValueError or KeyError if there are none."""
    pairs = zip(_list(record["sealing"]), _list(record["masking"]), strict=True)
    keys = [PublicKeys(_bytes(sealing, KEY_BYTES), _bytes(masking, KEY_BYTES)) for sealing, masking in pairs]
    return dict(zip(sites_in(record, "sites"), keys, strict=True))


def statements_of(record: ConfigRecord) -> dict[int, Statement]:
    """The statements in `shares_request`; raises ValueError or KeyError if they are none."""
    pairs = zip(_list(record["names"]), _list(record["signatures"]), strict=True)
    statements = [_statement(name, signature) for name, signature in pairs]
    return dict(zip(sites_in(record, "sites"), statements, strict=True))


def shares_answer(sealed: Mapping[int, bytes], commitment: bytes) -> ConfigRecord:
    """A site's shares for its neighbours, and its commitment."""
    return ConfigRecord({**_table("sealed", sealed), "commitment": commitment})


def commitment_of(record: ConfigRecord) -> bytes:
    """The commitment in `shares_answer`; raises ValueError or KeyError if there is none."""
    return _bytes(record["commitment"], 32)


def sealed_record(sealed: Mapping[int, bytes]) -> ConfigRecord:
    """What a site's neighbours sealed for it."""
    return ConfigRecord(_table("sealed", sealed))


def sealed_of(record: ConfigRecord) -> dict[int, bytes]:
    """The sealed shares in a record; raises ValueError or KeyError if there are none."""
    sealed = _read_table(record, "sealed")
    if any(len(content) > _LONGEST_SEALED for content in sealed.values()):
        raise ValueError("a sealed share is too long")
    return sealed


def masked_request(sharers: Sequence[int]) -> ConfigRecord:
    """The request for masked vectors, with the sites that shared their secrets."""
    return ConfigRecord({"stage": MASKED, "sharers": list(sharers)})


def masked_answer(vector: bytes) -> ConfigRecord:
    """A masked vector, packed."""
    return ConfigRecord({"vector": vector})


def vector_of(record: ConfigRecord, length: int) -> bytes:
    """The packed vector of so many bytes in `masked_answer`; raises ValueError or KeyError if there is none."""
    return _bytes(record["vector"], length)


def unmask_request(survivors: Sequence[int], dropped: Sequence[int]) -> ConfigRecord:
    """The request for shares that unmask the sum."""
    return ConfigRecord({"stage": UNMASK, "survivors": list(survivors), "dropped": list(dropped)})


def revealed_record(revealed: Revealed) -> ConfigRecord:
    """A site's shares for unmasking."""
    return ConfigRecord({**_table("seeds", revealed.seeds), **_table("secrets", revealed.secrets)})


def revealed_of(record: ConfigRecord) -> Revealed:
    """The shares in `revealed_record`; raises ValueError or KeyError if there are none."""
    revealed = Revealed(_read_table(record, "seeds"), _read_table(record, "secrets"))
    if any(len(share) != 16 for share in [*revealed.seeds.values(), *revealed.secrets.values()]):
        raise ValueError("a share does not have 16 bytes")
    return revealed


def sites_in(record: ConfigRecord, name: str) -> list[int]:
    """A list of sites; raises ValueError or KeyError if there is none."""
    sites = [site for site in _list(record[name]) if isinstance(site, int) and 0 <= site < 2**31]
    if len(set(sites)) < len(_list(record[name])):
        raise ValueError(f"{name} are not different sites")
    return sites


def _table(name: str, content: Mapping[int, bytes]) -> dict[str, Any]:
    sites = sorted(content)
    return {f"{name}-of": sites, name: [content[site] for site in sites]}


def _read_table(record: ConfigRecord, name: str) -> dict[int, bytes]:
    values = _list(record[name])
    if not all(isinstance(value, bytes) for value in values):
        raise ValueError(f"{name} are not bytes")
    return dict(zip(sites_in(record, f"{name}-of"), values, strict=True))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a {type(value).__name__} in place of a list")
    return value


def _statement(name: Any, signature: Any) -> Statement:
    sound = isinstance(name, str) and len(name) <= NAME_LENGTH
    if not sound or not isinstance(signature, bytes) or len(signature) > LONGEST_SIGNATURE:
        raise ValueError("a statement about keys without a name and a signature")
    return Statement(name, signature)


def _bytes(value: Any, length: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != length:
        raise ValueError(f"a value that is not {length} bytes")
    return value
