"""Every draw follows from the seed, the purpose and the place, and keyed noise is what a privacy proof needs."""

import numpy as np
import pytest

from fedgraft.core.randomness import derived_seed, generator, keyed_normal, public_key


def test_a_draw_depends_on_seed_purpose_and_place_and_on_nothing_else() -> None:
    places = [(0, "batches", 1), (1, "batches", 1), (0, "shots", 1), (0, "batches", 2), (0, "batches", 1, 0)]
    seeds = [derived_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    np.random.default_rng(0).random(100)
    assert [derived_seed(*place) for place in places] == seeds
    assert generator(0, "batches", 1).random() == generator(0, "batches", 1).random()


def test_the_draws_of_a_seed_are_those_of_every_version() -> None:
    """Another number here would give every published run other sites, batches and prompts."""
    assert derived_seed(0, "batches", 0, 1, 2) == 3171634199297334434
    assert public_key(0).hex()[:16] == "a3c4caa49922054e"


def test_keyed_noise_is_the_same_for_a_place_and_another_for_another_key_or_place() -> None:
    draws = [keyed_normal(key, 5, *place).tobytes() for key in (b"k" * 32, b"x" * 32) for place in (("a", 1), ("a", 2))]
    assert len(set(draws)) == 4
    assert keyed_normal(b"k" * 32, 5, "a", 1).tobytes() == draws[0]
    assert keyed_normal(b"k" * 32, 4, "a", 1).shape == (4,)


def test_keyed_noise_is_standard_normal() -> None:
    draws = keyed_normal(b"k" * 32, 100_001, "test")
    assert draws.shape == (100_001,)
    assert draws.mean() == pytest.approx(0, abs=0.02)
    assert draws.std() == pytest.approx(1, abs=0.01)
    assert (draws**4).mean() == pytest.approx(3, abs=0.15)
    assert abs(np.corrcoef(draws[:50_000], draws[50_000:100_000])[0, 1]) < 0.02
    assert (np.abs(draws) > 1.96).mean() == pytest.approx(0.05, abs=0.005)
