"""What an experiment on skewed data would lose: examples dealt once each, in the skew that was asked for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgraft.core.errors import UserError
from fedgraft.data.partition import by_domain, partition

UNTIMED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

KINDS = ("iid", "dirichlet", "pathological")
LABELS = np.tile(np.arange(6), 30)


def _same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _classes(parts: list[np.ndarray]) -> list[set[int]]:
    return [set(LABELS[part].tolist()) for part in parts]


def _unevenness(parts: list[np.ndarray]) -> float:
    """Mean total variation between a site's class mixture and the whole's."""
    mixtures = [np.bincount(LABELS[part], minlength=6) / len(part) for part in parts]
    return float(np.mean([np.abs(mixture - 1 / 6).sum() / 2 for mixture in mixtures]))


@UNTIMED
@given(kind=st.sampled_from(KINDS), sites=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_no_example_is_dealt_twice_and_none_is_lost(kind: str, sites: int, seed: int) -> None:
    parts = partition(kind, LABELS, sites, seed, alpha=1.0)
    dealt = np.concatenate(parts)
    assert len(parts) == sites
    assert len(np.unique(dealt)) == len(dealt)
    held = set.union(*_classes(parts)) if kind == "pathological" else set(range(6))
    assert sorted(dealt.tolist()) == np.flatnonzero(np.isin(LABELS, list(held))).tolist()
    for part in parts:
        assert len(part) >= 4
        assert part.tolist() == sorted(part.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_decides_the_partition(kind: str) -> None:
    assert _same(partition(kind, LABELS, 4, 7), partition(kind, LABELS, 4, 7))
    assert not _same(partition(kind, LABELS, 4, 7), partition(kind, LABELS, 4, 8))


def test_iid_sites_are_of_equal_size() -> None:
    assert [len(part) for part in partition("iid", LABELS, 4, 0)] == [45] * 4


def test_pathological_sites_hold_the_number_of_classes_asked_for() -> None:
    for count in (1, 2, 3):
        parts = partition("pathological", LABELS, 6, 0, classes_per_site=count)
        assert {len(classes) for classes in _classes(parts)} == {count}


def test_a_smaller_alpha_deals_more_unevenly() -> None:
    skewed = [_unevenness(partition("dirichlet", LABELS, 3, seed, alpha=0.3)) for seed in range(5)]
    even = [_unevenness(partition("dirichlet", LABELS, 3, seed, alpha=100.0)) for seed in range(5)]
    assert np.mean(skewed) > 2 * np.mean(even)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sites_share_does_not_follow_the_order_of_the_source(kind: str) -> None:
    """Sources list one domain after the other; a skew over classes must not become one over domains."""
    early = np.arange(len(LABELS)) < len(LABELS) // 2
    for part in partition(kind, LABELS, 3, 0, alpha=10.0, classes_per_site=6):
        assert 0.25 < early[part].mean() < 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_more_sites_than_examples_allow_is_refused_with_the_numbers(kind: str) -> None:
    with pytest.raises(UserError, match=r"180 examples .* 46 sites; give at most 45"):
        partition(kind, LABELS, 46, 0)


def test_fewer_examples_than_any_site_needs_are_told_as_that() -> None:
    """The advice to give at most 0 sites helps nobody."""
    few = "3 examples are too few for 1 site; a site needs 4 at least, so add images"
    with pytest.raises(UserError, match=few):
        partition("iid", LABELS[:3], 1, 0)
    with pytest.raises(UserError, match="A domain of 1 example is too small for 1 of the 2 sites; a site needs 4"):
        by_domain(np.asarray([0, 1, 1, 1, 1]), [0, 1], 2, seed=0)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [("dirichlet", {"alpha": 0.001}, "alpha"), ("pathological", {"classes_per_site": 7}, "=7 .*=6")],
)
def test_an_impossible_skew_is_one_error_and_no_warnings(
    kind: str, options: dict[str, Any], said: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(UserError, match=said):
        partition(kind, LABELS, 20, 0, **options)
    assert not [str(warning.message) for warning in recwarn if "partition" in str(warning.filename)]


DOMAINS = np.repeat(np.arange(3), 40)


@pytest.mark.parametrize("sites", [3, 4, 7])
def test_each_domain_is_dealt_to_its_own_sites_and_completely(sites: int) -> None:
    dealt = by_domain(DOMAINS, [0, 2], sites, seed=0)
    assert len(dealt) == sites
    for domain, part in dealt:
        assert set(DOMAINS[part].tolist()) == {domain}
    everything = np.concatenate([part for _, part in dealt])
    assert sorted(everything.tolist()) == np.flatnonzero(DOMAINS != 1).tolist()


def test_a_seed_decides_the_sites_of_a_domain() -> None:
    parts = [[part for _, part in by_domain(DOMAINS, [0, 1], 4, seed)] for seed in (1, 1, 2)]
    assert _same(parts[0], parts[1])
    assert not _same(parts[0], parts[2])


def test_fewer_sites_than_domains_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match="1 site cannot cover 2 domains; give at least 2"):
        by_domain(DOMAINS, [0, 1], 1, seed=0)


def test_more_sites_than_a_domain_has_images_for_is_refused_with_what_would_fit() -> None:
    with pytest.raises(UserError, match=r"40 examples .* 30 sites; give at most 20"):
        by_domain(DOMAINS, [0, 1], 30, seed=0)
    assert len(by_domain(DOMAINS, [0, 1], 20, seed=0)) == 20
