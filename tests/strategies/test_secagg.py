"""Masked sums are the sums, whoever drops out above the threshold, and nothing less than a sum can be unmasked."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.core.errors import UserError
from fedgraft.strategies.secagg.encoding import FIGURES, Encoding, Integers, packed, unpacked
from fedgraft.strategies.secagg.keys import PublicKeys, SiteSecrets, commitment, is_public_key
from fedgraft.strategies.secagg.protocol import Revealed, Terms, holders, masked, revealed, sealed_shares, unmasked
from fedgraft.strategies.secagg.sharing import recovered, shares
from fedgraft.strategies.secagg.statements import Statement, is_signed, signed_statement

TERMS = Terms(b"run/0/1/1", threshold=0.6, neighbours=64, least=3)


class _Sites:
    """Sites of one round with secrets of their own, up to the stage of their shares."""

    def __init__(self, count: int, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.secrets = {site: SiteSecrets() for site in range(count)}
        self.keys = {site: own.public() for site, own in self.secrets.items()}
        self.sealed = {site: sealed_shares(site, own, self.keys, terms) for site, own in self.secrets.items()}

    def received(self, site: int, sharers: Collection[int]) -> dict[int, bytes]:
        """What the server passes on to a site."""
        return {sender: self.sealed[sender][site] for sender in sharers if site in self.sealed[sender]}

    def masked(self, site: int, sharers: Collection[int], vector: Integers) -> Integers:
        """A site's masked vector."""
        return masked(site, self.secrets[site], self.keys, sharers, vector, self.terms)

    def revealed(
        self, site: int, sharers: Collection[int], survivors: Collection[int], dropped: Collection[int] | None = None
    ) -> Revealed:
        """A site's answer to the request to unmask."""
        gone = set(sharers) - set(survivors) if dropped is None else dropped
        received = self.received(site, sharers)
        return revealed(site, self.secrets[site], self.keys, received, survivors, gone, self.terms)

    def sum(
        self, vectors: dict[int, Integers], sharers: Collection[int], survivors: Collection[int], last: Collection[int]
    ) -> Integers:
        """What the server gets where these sites reach the second, third and last stage."""
        sent = {site: self.masked(site, sharers, vectors[site]) for site in survivors}
        total = np.sum(list(sent.values()), axis=0, dtype=np.uint64)
        answers = {site: self.revealed(site, sharers, survivors) for site in last}
        commitments = {site: commitment(self.secrets[site].own, self.terms.place) for site in sharers}
        return unmasked(total, self.keys, commitments, survivors, answers, self.terms)


def _vectors(count: int, size: int = 7) -> dict[int, Integers]:
    rng = np.random.default_rng(count)
    return {site: rng.integers(0, 2**64, size, np.uint64) for site in range(count)}


# --- sums -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whoever_drops_out_above_the_threshold_the_sum_is_that_of_the_survivors(data: st.DataObject) -> None:
    count = data.draw(st.integers(4, 9))
    everyone = list(range(count))
    least = max(TERMS.needed(everyone), TERMS.least)

    def staying(sites: list[int]) -> list[int]:
        return sorted(data.draw(st.sets(st.sampled_from(sites), min_size=least)))

    sharers = staying(everyone)
    survivors = staying(sharers)
    last = staying(survivors)
    vectors = _vectors(count)
    expected = np.sum([vectors[site] for site in survivors], axis=0, dtype=np.uint64)
    assert np.array_equal(_Sites(count).sum(vectors, sharers, survivors, last), expected)


def test_a_sum_over_a_graph_of_neighbours_survives_dropouts_too() -> None:
    terms = replace(TERMS, neighbours=6)
    sites, vectors, everyone = _Sites(16, terms), _vectors(16), set(range(16))
    assert all(len(holders(site, sites.keys, 6)) == 7 for site in everyone)
    assert all(site in holders(other, sites.keys, 6) for site in everyone for other in holders(site, sites.keys, 6))
    survivors = everyone - {3, 11}
    expected = np.sum([vectors[site] for site in survivors], axis=0, dtype=np.uint64)
    assert np.array_equal(sites.sum(vectors, everyone, survivors, survivors), expected)


def test_the_server_cannot_unmask_with_fewer_shares_than_the_threshold() -> None:
    sites, everyone = _Sites(5), range(5)
    with pytest.raises(ValueError, match="2 shares of site 0's secret"):
        sites.sum(_vectors(5), everyone, everyone, [0, 1])


def test_a_wrong_share_does_not_spoil_the_sum_while_enough_are_right() -> None:
    secret = bytes(range(16))
    given = dict(enumerate(shares(secret, 3, 5)))
    given[1] = bytes(16)
    assert recovered(given, 3, lambda candidate: candidate == secret) == secret
    assert recovered({0: given[0], 1: given[1], 2: given[2]}, 3, lambda candidate: candidate == secret) is None
    assert recovered({0: given[0], 2: given[2]}, 3, lambda candidate: True) is None


# --- what the server sees ---------------------------------------------------------------------------------------


def test_a_masked_vector_looks_the_same_whatever_is_in_it_and_only_all_masks_together_open_it() -> None:
    """Each mask alone would be enough: without the own mask, or without a single pairwise one, it stays random."""
    sites, everyone = _Sites(4), range(4)
    zeros, ones = np.zeros(20_000, np.uint64), np.full(20_000, 2**64 - 1, np.uint64)
    for vector in (zeros, ones):
        bits = np.unpackbits(sites.masked(0, everyone, vector).view(np.uint8))
        assert bits.mean() == pytest.approx(0.5, abs=0.005)
    hidden = sites.masked(0, everyone, zeros)
    commitments = {site: commitment(sites.secrets[site].own, TERMS.place) for site in everyone}
    answers = {site: sites.revealed(site, everyone, everyone) for site in everyone}
    own_only = unmasked(hidden, sites.keys, {0: commitments[0]}, [0], answers, TERMS)
    assert np.unpackbits(own_only.view(np.uint8)).mean() == pytest.approx(0.5, abs=0.005)


def test_two_rounds_mask_with_different_values() -> None:
    sites, everyone, zeros = _Sites(4), range(4), np.zeros(5, np.uint64)
    other = masked(0, sites.secrets[0], sites.keys, everyone, zeros, replace(TERMS, place=b"run/0/1/2"))
    assert not np.any(sites.masked(0, everyone, zeros) == other)


def test_shares_can_be_read_by_their_holder_only() -> None:
    sites, everyone = _Sites(4), range(4)
    sites.sealed[1][2] = sites.sealed[1][3]
    answer = sites.revealed(2, everyone, everyone)
    assert set(answer.seeds) == {0, 2, 3}


# --- what a site refuses ----------------------------------------------------------------------------------------


def test_a_site_refuses_to_reveal_both_masks_of_a_site() -> None:
    sites = _Sites(5)
    with pytest.raises(UserError, match="both masks of site 4"):
        sites.revealed(0, range(5), range(5), dropped=[4])


def test_a_site_refuses_to_unmask_a_sum_of_fewer_sites_than_the_threshold() -> None:
    sites = _Sites(5)
    with pytest.raises(UserError, match="only 2 sites, and 3 are the least"):
        sites.revealed(0, range(5), [0, 1])
    with pytest.raises(UserError, match="whose vector is not in the sum"):
        sites.revealed(0, range(5), [1, 2, 3])
    with pytest.raises(UserError, match="does not say of every site"):
        sites.revealed(0, range(5), [0, 1, 2], dropped=[3])


def test_a_site_of_a_sum_reveals_one_kind_of_share_of_each_site() -> None:
    answer = _Sites(5).revealed(0, range(5), [0, 1, 2, 3])
    assert set(answer.seeds) == {0, 1, 2, 3}
    assert set(answer.secrets) == {4}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda keys: {**keys, 0: keys[1]}, "other keys of this site"),
        (lambda keys: {**keys, 2: keys[1]}, "two sites of the sum have the same key"),
        (lambda keys: {site: keys[site] for site in (0, 1)}, "only 2 sites take part"),
    ],
)
def test_a_site_refuses_keys_that_cannot_be_honest(change: object, reason: str) -> None:
    sites = _Sites(4)
    assert callable(change)
    with pytest.raises(UserError, match=reason):
        sealed_shares(0, sites.secrets[0], change(sites.keys), TERMS)


def test_a_key_of_low_order_is_no_key() -> None:
    assert is_public_key(SiteSecrets().public().sealing)
    assert not is_public_key(bytes(32))
    assert PublicKeys(bytes(32), bytes(32)) != SiteSecrets().public()


# --- integers ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=2, max_size=12), st.integers(14, 30), st.integers(0, 2**32 - 1))
def test_the_mean_is_within_half_a_step_of_the_plain_weighted_mean(examples: list[int], bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = [rng.normal(0, 0.3, 20) for _ in examples]
    losses = [float(loss) for loss in rng.uniform(0, 5, len(examples))]
    encoding = Encoding(clipping_norm=50.0, bits=bits, max_examples=5000, sites=len(examples))
    vectors = [encoding.encoded(*own) for own in zip(updates, examples, losses, strict=True)]
    total = np.sum(vectors, axis=0, dtype=np.uint64)
    arrived = unpacked(packed(total, encoding.width), total.size, encoding.width)
    values, figures = encoding.decoded(arrived, len(examples))
    mean = values / figures.num_examples
    assert np.abs(mean - np.average(updates, axis=0, weights=examples)).max() <= encoding.step / 2 * (1 + 1e-9)
    assert (figures.num_examples, figures.clipped) == (sum(examples), 0)
    assert figures.loss == pytest.approx(np.average(losses, weights=examples), abs=100 / 2 ** (bits - 1))


def test_a_long_update_is_clipped_and_says_so_in_the_sum() -> None:
    encoding = Encoding(clipping_norm=1.0, bits=24, max_examples=100, sites=3)
    long = encoding.encoded(np.full(16, 5.0), 10, 0.5)
    short = encoding.encoded(np.full(16, 0.1), 10, 0.5)
    values, figures = encoding.decoded(long, 1)
    assert np.linalg.norm(values / 10) == pytest.approx(1.0, abs=1e-5)
    assert np.linalg.norm(values / 10) <= 1.0
    assert figures.clipped == 1
    assert encoding.decoded(long + short + short, 3)[1].clipped == 1


def test_a_site_with_more_examples_than_the_limit_counts_as_one_with_the_limit() -> None:
    encoding = Encoding(clipping_norm=1.0, bits=24, max_examples=100, sites=2)
    total = encoding.encoded(np.full(4, 0.25), 10**18, 0.5) + encoding.encoded(np.zeros(4), 100, 0.5)
    values, figures = encoding.decoded(total, 2)
    assert figures.num_examples == 200
    assert np.allclose(values / 200, 0.125, atol=encoding.step)


@pytest.mark.parametrize("position", [0, -1, -2, -3])
def test_a_sum_that_no_honest_sites_have_is_refused(position: int) -> None:
    encoding = Encoding(clipping_norm=1.0, bits=20, max_examples=100, sites=2)
    total = encoding.encoded(np.zeros(4), 10, 0.5) + encoding.encoded(np.zeros(4), 10, 0.5)
    total[position] += np.uint64(1 << 30)
    with pytest.raises(ValueError, match="not what an update can become"):
        encoding.decoded(total, 2)


def test_the_width_is_what_the_largest_sum_needs_and_no_more() -> None:
    """26 bits of a value, 16 of a weight, and 4 for ten sites: six bytes."""
    encoding = Encoding(clipping_norm=1.0, bits=26, max_examples=2**16, sites=10)
    assert encoding.width == 6
    largest = np.zeros(4)
    largest[0] = -1.0
    total = np.sum([encoding.encoded(largest, 2**16, 100.0)] * 10, axis=0, dtype=np.uint64)
    values, figures = encoding.decoded(unpacked(packed(total, 6), 4 + FIGURES, 6), 10)
    assert values[0] / figures.num_examples == pytest.approx(-1.0, abs=1e-6)
    assert figures.loss == pytest.approx(100.0)


# --- statements -------------------------------------------------------------------------------------------------


def test_a_statement_counts_for_one_name_number_place_and_pair_of_keys_alone() -> None:
    own, other = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    keys = SiteSecrets().public()
    said = signed_statement(own, "north", 3, keys, b"run/0/1/1")
    by = [other.public_key(), own.public_key()]
    assert is_signed(said, by, 3, keys, b"run/0/1/1")
    assert not is_signed(said, by[:1], 3, keys, b"run/0/1/1")
    assert not is_signed(replace(said, name="south"), by, 3, keys, b"run/0/1/1")
    assert not is_signed(said, by, 2, keys, b"run/0/1/1")
    assert not is_signed(said, by, 3, keys, b"run/0/1/2")
    assert not is_signed(said, by, 3, PublicKeys(keys.masking, keys.sealing), b"run/0/1/1")
    assert not is_signed(Statement("north", b""), by, 3, keys, b"run/0/1/1")
