"""The stages of a round of secure aggregation, as pure functions of a site and of the server.

Bonawitz et al., CCS 2017, on a graph of neighbours as in Bell et al., CCS 2020 (SecAgg+):

1. keys: each site draws secrets and publishes two public keys.
2. shares: it shares the seed b of its own mask and the secret s of its masking key pair among its neighbours, sealed.
3. masked vector: y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij), over neighbours that shared.
4. unmasking: neighbours return shares of b for sites whose vector arrived, and of s for those that dropped out before.

Every pair's masks cancel in the sum of all vectors; what is left is taken off with the recovered secrets. A site
returns one kind of share of each neighbour and answers once, so the server cannot take all masks off one vector.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedgraft.core.refusals import Refusal
from fedgraft.strategies.secagg.encoding import Integers
from fedgraft.strategies.secagg.keys import (
    SECRET_BYTES,
    PublicKeys,
    SiteSecrets,
    agreed_key,
    commitment,
    mask,
    opened,
    own_mask_key,
    public_key,
    seal,
)
from fedgraft.strategies.secagg.sharing import recovered, shares

Keys = Mapping[int, PublicKeys]
"""The public keys of the sites that take part, by number: the first stage's outcome."""


@dataclass(frozen=True)
class Terms:
    """What sites and server agree on in a round.

    Attributes:
        place: the run and round, which every key and commitment depends on.
        threshold: the fraction of a site's share holders that can recover its secrets; more than a half.
        neighbours: with how many others each site exchanges masks and shares, if there are so many.
        least: the fewest sites in a sum.
    """

    place: bytes
    threshold: float
    neighbours: int
    least: int

    def needed(self, holders: Collection[int]) -> int:
        """How many of a site's holders recover its secrets."""
        return max(1, math.ceil(self.threshold * len(holders) - 1e-9))


@dataclass(frozen=True)
class Revealed:
    """The shares that a site returns for unmasking, by their site: of seeds and of masking secrets."""

    seeds: dict[int, bytes] = field(default_factory=dict)
    secrets: dict[int, bytes] = field(default_factory=dict)


def holders(site: int, keys: Keys, neighbours: int) -> tuple[int, ...]:
    """The site and its neighbours, sorted.

    With no more than `neighbours` others these are all. Otherwise the sites stand in a circle, in an order that depends
    on everyone's keys, and each has half of its neighbours on either side.
    """
    if len(keys) - 1 <= neighbours:
        return tuple(sorted(keys))
    digest = hashlib.sha256(b"".join(keys[number].sealing + keys[number].masking for number in sorted(keys))).digest()
    circle = sorted(keys, key=lambda number: hashlib.sha256(digest + number.to_bytes(8, "big")).digest())
    place, half = circle.index(site), max(1, neighbours // 2)
    return tuple(sorted({circle[(place + offset) % len(circle)] for offset in range(-half, half + 1)}))


def partners(site: int, keys: Keys, sharers: Collection[int], terms: Terms) -> list[int]:
    """The site, if it shared its secrets, and its neighbours that did."""
    return [holder for holder in holders(site, keys, terms.neighbours) if holder in sharers]


# --- at a site --------------------------------------------------------------------------------------------------


def sealed_shares(site: int, secrets: SiteSecrets, keys: Keys, terms: Terms) -> dict[int, bytes]:
    """A site's shares, one message for each holder that only the holder can read.

    Raises:
        Refusal: the keys are too few, not all different, or not those that the site published.
    """
    if keys.get(site) != secrets.public():
        raise Refusal("secure-sum", "the server passes on other keys of this site than those that it published")
    if len(keys) < terms.least:
        raise Refusal("secure-sum", f"only {len(keys)} sites take part in the sum, and {terms.least} are the least")
    published = [key for both in keys.values() for key in (both.sealing, both.masking)]
    if len(set(published)) < len(published):
        raise Refusal("secure-sum", "two sites of the sum have the same key")
    group = holders(site, keys, terms.neighbours)
    needed = terms.needed(group)
    pairs = zip(shares(secrets.own, needed, len(group)), shares(secrets.masking, needed, len(group)), strict=True)
    return {
        holder: seal(_sealing_key(secrets, keys[holder], terms), own + masking, _header(site, holder))
        for holder, (own, masking) in zip(group, pairs, strict=True)
    }


def masked(
    site: int, secrets: SiteSecrets, keys: Keys, sharers: Collection[int], vector: Integers, terms: Terms
) -> Integers:
    """A site's vector plus its own mask and those that it has in common with neighbours that shared their secrets.

    Args:
        sharers: the sites that reached the second stage.

    Raises:
        Refusal: they are too few, or without this site.
    """
    group = partners(site, keys, sharers, terms)
    if site not in group:
        raise Refusal("secure-sum", "the server asks for the vector of a site without its shares")
    if len(sharers) < terms.least or len(group) < terms.needed(holders(site, keys, terms.neighbours)):
        raise Refusal("secure-sum", f"only {len(sharers)} sites shared their secrets, and {terms.least} are the least")
    result = vector + mask(own_mask_key(secrets.own, terms.place), vector.size)
    for other in group:
        if other != site:
            _add_pairwise(result, site, other, secrets.masking, keys[other], terms)
    return result


def revealed(
    site: int,
    secrets: SiteSecrets,
    keys: Keys,
    sealed: Mapping[int, bytes],
    survivors: Collection[int],
    dropped: Collection[int],
    terms: Terms,
) -> Revealed:
    """The shares that unmask a sum.

    Args:
        sealed: what its neighbours sealed for this site.
        survivors: the sites whose vectors are in the sum.
        dropped: those that shared their secrets and are not.

    Raises:
        Refusal: the request could serve to see more than the sum.
    """
    if both := set(survivors) & set(dropped):
        raise Refusal("secure-sum", f"the server asks for both masks of site {min(both)}")
    if site not in survivors:
        raise Refusal("secure-sum", "the server asks a site whose vector is not in the sum")
    if set(sealed) - set(survivors) - set(dropped):
        raise Refusal("secure-sum", "the server does not say of every site whether its vector is in the sum")
    group = holders(site, keys, terms.neighbours)
    if len(survivors) < terms.least or len(set(survivors) & set(group)) < terms.needed(group):
        raise Refusal("secure-sum", f"the sum has only {len(survivors)} sites, and {terms.least} are the least")
    answer = Revealed()
    for sender, content in sealed.items():
        key = _sealing_key(secrets, keys[sender], terms)
        pair = opened(key, content, _header(sender, site))
        if pair is not None and len(pair) == 2 * SECRET_BYTES:
            kind, share = (answer.seeds, pair[:16]) if sender in survivors else (answer.secrets, pair[16:])
            kind[sender] = share
    return answer


# --- at the server ----------------------------------------------------------------------------------------------


def unmasked(
    total: Integers,
    keys: Keys,
    commitments: Mapping[int, bytes],
    survivors: Collection[int],
    answers: Mapping[int, Revealed],
    terms: Terms,
) -> Integers:
    """The sum of the survivors' vectors.

    Args:
        total: the sum of their masked vectors.
        commitments: to the seeds of the sites that shared their secrets.
        answers: of the fourth stage, by site.

    Raises:
        ValueError: the shares of one site's secret do not suffice.
    """
    result = total.copy()
    for site in sorted(survivors):
        given = {holder: answer.seeds[site] for holder, answer in answers.items() if site in answer.seeds}

        def is_seed(candidate: bytes, site: int = site) -> bool:
            return commitment(candidate, terms.place) == commitments[site]

        seed = _recovered(site, given, keys, terms, is_seed)
        result -= mask(own_mask_key(seed, terms.place), result.size)
    for site in sorted(set(commitments) - set(survivors)):
        paired = set(holders(site, keys, terms.neighbours)) & set(survivors)
        if not paired:
            continue
        given = {holder: answer.secrets[site] for holder, answer in answers.items() if site in answer.secrets}

        def is_secret(candidate: bytes, site: int = site) -> bool:
            return public_key(candidate) == keys[site].masking

        secret = _recovered(site, given, keys, terms, is_secret)
        for partner in sorted(paired):  # what the site would have added cancels what its partner added
            _add_pairwise(result, site, partner, secret, keys[partner], terms)
    return result


def _recovered(
    site: int, given: Mapping[int, bytes], keys: Keys, terms: Terms, right: Callable[[bytes], bool]
) -> bytes:
    group = holders(site, keys, terms.neighbours)
    positions = {group.index(holder): share for holder, share in given.items() if holder in group}
    secret = recovered(positions, terms.needed(group), right)
    if secret is None:
        raise ValueError(f"the {len(positions)} shares of site {site}'s secret do not give it back")
    return secret


def _add_pairwise(vector: Integers, site: int, other: int, secret: bytes, keys: PublicKeys, terms: Terms) -> None:
    """Add to a vector, in place, what a site has in common with another one; the other subtracts it."""
    values = mask(agreed_key(secret, keys.masking, "mask", terms.place), vector.size)
    np.add(vector, values, out=vector) if site < other else np.subtract(vector, values, out=vector)


def _sealing_key(secrets: SiteSecrets, other: PublicKeys, terms: Terms) -> bytes:
    return agreed_key(secrets.sealing, other.sealing, "shares", terms.place)


def _header(sender: int, receiver: int) -> bytes:
    return f"{sender} to {receiver}".encode()
