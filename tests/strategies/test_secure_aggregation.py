"""The rule of secure aggregation: its mean, its noise, its account, and what it cannot be combined with."""

import math

import mpmath
import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_two_probability_mass_functions
from numpy.typing import NDArray

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.methods.plan import Plan
from fedgraft.strategies.privacy import Participation, epsilon
from fedgraft.strategies.secure_aggregation import SecureAggregation, SecureOptions
from fedgraft.strategies.weighted_average import weighted_average
from tests.strategies.conftest import answers_of, round_of

EVERYONE = list(range(10))


def _rule(**options: object) -> SecureAggregation:
    return SecureAggregation(SecureOptions.model_validate(options))


def _plan(**settings: object) -> Plan:
    return Plan.of(RunConfig.build({"method": "promptfl", "sites": 5, "strategy": "secagg", **settings}))


def test_the_mean_is_the_weighted_mean_to_the_stated_precision(start: np.ndarray) -> None:
    values = start + np.random.default_rng(0).normal(0, 0.5, (4, 2, 3)).astype(np.float32)
    answers = answers_of(values.astype(np.float32), examples=[1, 10, 100, 1000])
    for bits in (14, 26):
        mean = _rule(bits=bits).aggregate(answers, round_of(start, 4), {}).arrays["context"]
        bound = 10.0 / 2 ** (bits - 1) / 2 + 1e-6
        assert np.abs(mean - weighted_average(answers)["context"]).max() <= bound


def test_the_round_says_how_many_sites_were_clipped(start: np.ndarray) -> None:
    answers = answers_of(np.stack([start + 5, start, start]).astype(np.float32))
    outcome = _rule(clipping_norm=1.0).aggregate(answers, round_of(start, 3), {})
    assert outcome.figures["clipped_sites"] == 1
    assert np.linalg.norm(outcome.arrays["context"] - start) == pytest.approx(1 / 3, abs=1e-5)


def test_the_sum_has_the_promised_noise_when_the_fewest_sites_answer_and_more_when_all_do() -> None:
    start = np.zeros((100, 200), np.float32)
    rule = _rule(clipping_norm=0.5, noise_multiplier=3.0, threshold=0.7)
    for sites in (7, 10):
        answers = answers_of(np.stack([start] * sites) + np.arange(sites, dtype=np.float32)[:, None, None] * 1e-9)
        noise = rule.aggregate(answers, round_of(start, 10), {}).arrays["context"]
        assert noise.std() == pytest.approx(3.0 * 0.5 / 10 * math.sqrt(sites / 7), rel=0.03)


def test_with_noise_a_site_moves_the_sum_by_no_more_than_the_clipping_norm() -> None:
    """The sensitivity that the accounting rests on, after rounding, whatever a site's number of examples."""
    encoding = _rule(clipping_norm=0.5, noise_multiplier=1.0).encoding(10)
    for seed in range(20):
        update = np.random.default_rng(seed).normal(0, 10.0**seed / 1e6, 5000)
        vector = encoding.encoded(update, 10**6, 0.5, np.zeros(5000)).view(np.int64)[:-3]
        assert np.linalg.norm(vector * encoding.step) <= 0.5


def test_the_account_is_by_the_sites_that_answered() -> None:
    promise = _rule(noise_multiplier=2.0, threshold=0.7).privacy()
    assert promise is not None
    all_answer, fewest = ([Participation(EVERYONE, EVERYONE[:count])] * 4 for count in (10, 7))
    for rounds, multiplier in ((fewest, 2.0), (all_answer, 2.0 * math.sqrt(10 / 7))):
        assert promise.spent(rounds, 1000)["epsilon"] == pytest.approx(epsilon(multiplier, 4, 1e-5), rel=1e-6)
    away = [Participation(EVERYONE, EVERYONE[:7]), Participation(EVERYONE, EVERYONE[3:])]
    assert promise.spent(away, 1000)["epsilon"] == pytest.approx(epsilon(2.0, 2, 1e-5), rel=1e-6)
    assert promise.spent([], 1000)["epsilon"] == 0
    assert _rule().privacy() is None


def _sum_of_rounded_noise(deviation: float, sites: int) -> NDArray[np.float64]:
    """The probabilities of a sum of rounded Gaussians, from the smallest value that it can have to the largest."""
    most = math.ceil(8.65 * deviation)
    edges = np.arange(-most - 0.5, most + 1.0)
    below = np.asarray([math.erfc(-edge / deviation / math.sqrt(2)) / 2 for edge in edges])
    one = np.diff(below) / (below[-1] - below[0])
    length = sites * (len(one) - 1) + 1
    return np.fft.irfft(np.fft.rfft(one, length) ** sites, length)


@pytest.mark.parametrize(("sites", "rounds", "multiplier"), [(3, 1, 1.0), (5, 1, 1.0), (4, 3, 1.5)])
def test_epsilon_is_not_below_that_of_the_noise_as_it_is_drawn_and_hardly_above(
    sites: int, rounds: int, multiplier: float
) -> None:
    """By numerical privacy-loss distributions of what one value of a sum is with and without a site's update."""
    rule = _rule(noise_multiplier=multiplier, bits=12, threshold=0.51, min_sites=3)
    promise, norm = rule.privacy(), 1 << 11
    assert promise is not None
    noise = _sum_of_rounded_noise(rule.encoding(5).deviation, sites)
    without = {value: chance for value, chance in enumerate(noise) if chance > 1e-14}
    loss = from_two_probability_mass_functions(
        {value: math.log(chance) for value, chance in without.items()},
        {value + norm: math.log(chance) for value, chance in without.items()},
        value_discretization_interval=1e-4,
    )
    drawn = loss.self_compose(rounds).get_epsilon_for_delta(1e-5)
    told = promise.spent([Participation(range(5), range(sites))] * rounds, 1)["epsilon"]
    assert drawn - 1e-3 < told < 1.002 * drawn + 1e-3


@pytest.mark.parametrize("scale", [0.0, 8.65])
def test_a_rounded_gaussian_is_a_discrete_one_to_the_factor_that_the_account_adds(scale: float) -> None:
    """At the centre and at the largest value that is drawn; by integration with 40 digits."""
    with mpmath.workdps(40):
        deviation = mpmath.mpf(50)
        value = mpmath.nint(scale * deviation)
        rounded = mpmath.ncdf((value + 0.5) / deviation) - mpmath.ncdf((value - 0.5) / deviation)
        discrete = mpmath.npdf(value, 0, deviation) / mpmath.nsum(
            lambda other: mpmath.npdf(other, 0, deviation), [-2000, 2000]
        )
        assert abs(mpmath.log(rounded / discrete)) < 3.1 / deviation**2


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "median", "trimmed-mean", "bulyan", "central-dp"])
def test_rules_that_need_single_answers_are_refused_before_training(rule: str) -> None:
    with pytest.raises(UserError, match=rf"'{rule}' needs every site's own answer, and 'secagg' shows the server only"):
        _plan(strategy=f"secagg+{rule}", sites=10)


@pytest.mark.parametrize("method", ["flora", "fedex-lora", "flexlora"])
def test_methods_whose_own_rule_needs_single_answers_are_refused_before_training(method: str) -> None:
    with pytest.raises(UserError, match="its own rule is not a weighted mean"):
        _plan(method=method)


@pytest.mark.parametrize("method", ["promptfl", "fedpgp", "kgcoop", "proxprompt", "fedit", "ffa-lora", "fedsa-lora"])
@pytest.mark.parametrize("steps", ["", "+fedavgm", "+anchored(drift=0.1)", "+interpolate"])
def test_methods_that_are_averaged_take_it_with_any_step(method: str, steps: str) -> None:
    assert _plan(method=method, strategy=f"secagg{steps}").composition.rule.summed() is not None


@pytest.mark.parametrize(
    ("strategy", "sites", "said"),
    [
        ("secagg", 2, "needs the answers of 3 sites per round"),
        ("secagg(bits=32, max_examples=1000000000)", 10, "and there are 64"),
        ("secagg(bits=16, noise_multiplier=1)", 10, "too coarse for noise_multiplier=1"),
        ("secagg(threshold=0.5)", 10, "'threshold' of 'secagg' has the value 0.5"),
        ("local-dp+secagg(noise_multiplier=1)", 10, "two privacy mechanisms"),
    ],
)
def test_options_that_cannot_work_are_refused_before_training(strategy: str, sites: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _plan(strategy=strategy, sites=sites)


def test_an_update_that_is_not_finite_does_not_leave_the_site(start: np.ndarray) -> None:
    (answer,) = answers_of(np.full((1, 2, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        _rule().encoded(answer, {"context": start}, 3, round_of(start).noise)
