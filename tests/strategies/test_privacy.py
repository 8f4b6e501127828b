"""Clipping bounds one site's influence, noise has the promised size, and epsilon agrees with a formula by hand."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgraft.config.registry import STRATEGIES
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import keyed_normal
from fedgraft.strategies.components import Rule, SiteTransform
from fedgraft.strategies.privacy import Participation, clipped, epsilon, norm
from tests.strategies.conftest import answers_of, round_of

FLOATS = st.floats(-100, 100, width=32)
START = np.ones((2, 3), np.float32)
QUIET = 1e-12


def _rule(name: str, **options: object) -> Rule:
    rule = STRATEGIES.load(name).make(options)
    assert isinstance(rule, Rule)
    return rule


@given(hnp.arrays(np.float64, (2, 3), elements=st.floats(-1e6, 1e6)), st.floats(1e-3, 1e3))
def test_clipping_keeps_the_direction_and_bounds_the_norm(values: np.ndarray, bound: float) -> None:
    short = clipped({"a": values[0], "b": values[1]}, bound)
    assert norm(short) <= bound * (1 + 1e-9)
    if norm({"a": values}) <= bound:
        assert np.array_equal(short["a"], values[0])
    else:
        assert np.allclose(np.stack([short["a"], short["b"]]) * norm({"a": values}), values * bound, rtol=1e-6)


@settings(max_examples=30)
@given(hnp.arrays(np.float32, (5, 2, 3), elements=FLOATS), st.integers(0, 4))
def test_a_site_that_comes_or_goes_moves_the_mean_by_its_share_of_the_norm_and_no_more(
    values: np.ndarray, absent: int
) -> None:
    """The sensitivity that the accounting rests on: the number asked stays, whoever answers."""
    rule = _rule("central-dp", clipping_norm=2.0, noise_multiplier=QUIET)
    answers = answers_of(values, examples=[1, 10, 100, 1000, 10**6])
    everyone = rule.aggregate(answers, round_of(START, 5), {}).arrays["context"]
    others = [answer for answer in answers if answer.site != absent]
    without = rule.aggregate(others, round_of(START, 5), {}).arrays["context"]
    assert norm({"moved": everyone.astype(np.float64) - without}) <= 2.0 / 5 + 1e-4


def test_the_noise_of_the_mean_has_the_promised_deviation() -> None:
    start = np.zeros((100, 200), np.float32)
    rule = _rule("central-dp", clipping_norm=0.5, noise_multiplier=3.0)
    noise = rule.aggregate(answers_of(np.stack([start] * 10)), round_of(start, 10), {}).arrays["context"]
    assert noise.std() == pytest.approx(3.0 * 0.5 / 10, rel=0.03)
    assert abs(noise.mean()) < 0.005


def test_noise_is_the_same_for_the_same_round_and_another_for_another_key_round_or_sum() -> None:
    rule = _rule("central-dp")

    def aggregate(values: float = 0.0, **changes: object) -> np.ndarray:
        answers = answers_of(np.full((3, 2, 3), 1 + values, np.float32))
        return rule.aggregate(answers, round_of(START, 3, **changes), {}).arrays["context"]  # type: ignore[arg-type]

    assert np.array_equal(aggregate(), aggregate())
    for changed in (aggregate(number=2), aggregate(key=b"x" * 32), aggregate(1e-6)):
        assert np.abs(changed - aggregate()).min() > 1e-5


def test_the_clipping_norm_finds_the_quantile_from_either_side() -> None:
    """Flower's own rule counts the clipped updates instead and moves away from it."""
    lengths = np.linspace(0.1, 2.0, 20)
    values = (START + lengths[:, None, None] * np.eye(1, 6).reshape(2, 3)).astype(np.float32)
    for first in (0.05, 50.0):
        rule = _rule("adaptive-dp", clipping_norm=first, quantile=0.7, noise_multiplier=0.01, count_noise=0.01)
        state: dict[str, np.ndarray] = {}
        for number in range(80):
            outcome = rule.aggregate(answers_of(values), round_of(START, 20, number), state)
            state = outcome.state
        assert outcome.figures["clipping_norm"] == pytest.approx(np.quantile(lengths, 0.7), abs=0.15)


def test_a_noise_that_the_count_leaves_no_room_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"count_noise=0\.1.*needs more than 0\.5"):
        _rule("adaptive-dp", noise_multiplier=1.0, count_noise=0.1).check_participation(asked=10)
    _rule("adaptive-dp", noise_multiplier=1.0).check_participation(asked=3)


def test_a_site_releases_a_clipped_and_noised_update() -> None:
    transform = STRATEGIES.load("local-dp").make({"clipping_norm": 0.5, "noise_multiplier": 2.0})
    assert isinstance(transform, SiteTransform)
    received = {"context": np.zeros((100, 200), np.float32)}
    trained = {"context": np.full((100, 200), 5.0, np.float32)}
    released = transform.release(trained, received, lambda n, place: keyed_normal(b"k" * 32, n, "test", place))[
        "context"
    ]
    assert released.std() == pytest.approx(1.0, rel=0.03)
    assert released.mean() == pytest.approx(0.5 / math.sqrt(20_000), abs=0.02)
    assert released.dtype == np.float32


# --- accounting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplier", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("rounds", [1, 25])
def test_epsilon_is_the_exact_one_and_below_the_bound_by_hand(multiplier: float, rounds: int) -> None:
    """Rounds of noise z are one of z / sqrt(rounds). Exact: Balle and Wang 2018; bound: zCDP, Bun and Steinke 2016."""
    delta, rho = 1e-5, rounds / (2 * multiplier**2)
    found = epsilon(multiplier, rounds, delta)
    assert found == pytest.approx(_exact_epsilon(multiplier / math.sqrt(rounds), delta), rel=1e-6)
    assert found < rho + 2 * math.sqrt(rho * math.log(1 / delta))


@pytest.mark.parametrize(("multiplier", "rounds"), [(2.0, 1), (8.0, 25)])
def test_epsilon_is_that_of_composed_privacy_loss_distributions(multiplier: float, rounds: int) -> None:
    accountant = PLDAccountant().compose(GaussianDpEvent(multiplier), rounds)
    assert epsilon(multiplier, rounds, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-4)


def _exact_epsilon(sigma: float, delta: float) -> float:
    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def exact_delta(eps: float) -> float:
        first, second = 1 / (2 * sigma) - eps * sigma, -1 / (2 * sigma) - eps * sigma
        return phi(first) - math.exp(min(eps, 700.0)) * phi(second)

    low, high = 0.0, 500.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(middle) > delta else (low, middle)
    return low


def test_more_rounds_and_less_noise_cost_more_and_no_round_costs_nothing() -> None:
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert epsilon(1.0, 2, 1e-5) > epsilon(1.0, 1, 1e-5) > epsilon(2.0, 1, 1e-5) > 0


def test_local_noise_is_accounted_against_any_two_data_sets_of_a_site() -> None:
    central, local = (
        STRATEGIES.load(name).make({"noise_multiplier": 4.0}).privacy() for name in ("central-dp", "local-dp")
    )
    rounds = [Participation([0, 1], [0])] * 5
    assert central.spent(rounds, 10)["epsilon"] == epsilon(4.0, 5, 1e-5)
    assert local.spent(rounds, 10)["epsilon"] == epsilon(2.0, 5, 1e-5)
