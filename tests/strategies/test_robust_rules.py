"""What every robust rule promises, over all of them: nothing is invented, nobody is first, one liar moves nothing."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgraft.config.registry import STRATEGIES
from fedgraft.strategies.bulyan import chosen_one_by_one
from fedgraft.strategies.components import Rule
from fedgraft.strategies.krum import selected
from tests.strategies.conftest import answers_of, round_of

ROBUST = ("median", "trimmed-mean", "krum", "multi-krum", "bulyan")
COUNT = 9
START = np.zeros((2, 3), np.float32)
FLOATS = st.floats(-100, 100, width=32)
UPDATES = hnp.arrays(np.float32, (COUNT, 2, 3), elements=FLOATS)


def _rule(name: str, **options: object) -> Rule:
    rule = STRATEGIES.load(name).make(options)
    assert isinstance(rule, Rule)
    return rule


def _aggregate(name: str, values: np.ndarray, start: np.ndarray = START, examples: list[int] | None = None):
    return _rule(name).aggregate(answers_of(values, examples), round_of(start, len(values)), {}).arrays["context"]


@pytest.mark.parametrize("name", ROBUST)
@given(update=hnp.arrays(np.float32, (2, 3), elements=FLOATS))
@settings(max_examples=15)
def test_equal_updates_change_nothing(name: str, update: np.ndarray) -> None:
    aggregated = _aggregate(name, np.stack([update] * COUNT))
    assert np.allclose(aggregated, update, rtol=1e-6)
    assert aggregated.dtype == np.float32


@pytest.mark.parametrize("name", ROBUST)
@given(values=UPDATES)
@settings(max_examples=15)
def test_no_value_lies_outside_what_the_sites_sent(name: str, values: np.ndarray) -> None:
    aggregated = _aggregate(name, values)
    assert (aggregated >= values.min(0) - 1e-4).all()
    assert (aggregated <= values.max(0) + 1e-4).all()


@pytest.mark.parametrize("name", ROBUST)
def test_another_numbering_of_the_sites_changes_nothing(
    name: str, start: np.ndarray, sites: Callable[[int], np.ndarray]
) -> None:
    values = sites(COUNT)
    for seed in range(5):
        shuffled = values[np.random.default_rng(seed).permutation(COUNT)]
        assert np.allclose(_aggregate(name, values, start), _aggregate(name, shuffled, start), rtol=1e-6)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("lie", [1000.0, -1000.0, 1e30])
def test_one_liar_does_not_move_the_aggregate_out_of_the_honest_sites(
    name: str, lie: float, start: np.ndarray, sites: Callable[[int], np.ndarray]
) -> None:
    values = sites(COUNT)
    values[4] = lie
    honest = np.delete(values, 4, axis=0)
    aggregated = _aggregate(name, values, start)
    assert (aggregated >= honest.min(0) - 1e-4).all()
    assert (aggregated <= honest.max(0) + 1e-4).all()


@pytest.mark.parametrize("name", ROBUST)
def test_a_site_counts_once_whatever_it_says_of_itself(
    name: str, start: np.ndarray, sites: Callable[[int], np.ndarray]
) -> None:
    values = sites(COUNT)
    plain = _aggregate(name, values, start)
    assert np.array_equal(_aggregate(name, values, start, examples=[10**9, *[1] * (COUNT - 1)]), plain)


def test_small_differences_between_large_parameters_are_told_apart() -> None:
    """Flower's distances of the parameters themselves, in float32, cancel here and choose a site far out."""
    start = np.full((2, 3), 1000.0, np.float32)
    offsets = np.asarray([0.02, 0.021, 0.5, 0.019, 0.02], np.float32)
    chosen = selected(answers_of(start + offsets[:, None, None]), {"context": start}, malicious=1, count=4)
    assert sorted(chosen) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("median", {}, 3),
        ("trimmed-mean", {"fraction": 0.2}, 5),
        ("trimmed-mean", {"fraction": 0.05}, 20),
        ("krum", {"malicious": 1}, 5),
        ("multi-krum", {"malicious": 2}, 7),
        ("bulyan", {"malicious": 2}, 11),
    ],
)
def test_the_number_of_answers_that_a_rule_needs(name: str, options: dict[str, object], least: int) -> None:
    assert _rule(name, **options).min_answers() == least


def test_the_trimmed_mean_cuts_the_given_fraction_at_either_end() -> None:
    values = np.asarray([0, 1, 2, 3, 100], np.float32)[:, None, None] * np.ones((5, 2, 3), np.float32)
    assert np.allclose(_aggregate("trimmed-mean", values), 2.0)
    wide = _rule("trimmed-mean", fraction=0.4).aggregate(answers_of(values + values**2), round_of(START, 5), {})
    assert np.allclose(wide.arrays["context"], 6.0)


def test_the_trimmed_mean_cuts_as_many_sites_as_the_fraction_says_and_not_one_less_by_rounding() -> None:
    """0.29 of 100 sites are 29, though 0.29 x 100 is a little less in floating point."""
    values = np.concatenate([np.full(29, -1e6), np.full(42, 1.0), np.full(29, 3e6)]).astype(np.float32)
    rule = _rule("trimmed-mean", fraction=0.29)
    answers = answers_of(values[:, None, None] * np.ones((100, 2, 3), np.float32))
    assert np.allclose(rule.aggregate(answers, round_of(START, 100), {}).arrays["context"], 1.0)


@pytest.mark.parametrize("sites", [3, 10, 49, 98, 100, 103])
def test_with_as_few_answers_as_the_trimmed_mean_needs_it_cuts_one_at_either_end(sites: int) -> None:
    rule = _rule("trimmed-mean", fraction=1 / sites)
    assert rule.min_answers() == sites
    values = np.concatenate([[-1e6], np.ones(sites - 2), [3e6]]).astype(np.float32)
    answers = answers_of(values[:, None, None] * np.ones((sites, 2, 3), np.float32))
    assert np.allclose(rule.aggregate(answers, round_of(START, sites), {}).arrays["context"], 1.0)


def _bulyan_by_the_paper(values: np.ndarray, malicious: int) -> np.ndarray:
    """Krum on what remains, one answer at a time; then, coordinate by coordinate, the values nearest the median."""
    left, taken = [list(row) for row in values.reshape(len(values), -1).astype(float)], []
    for _ in range(len(values) - 2 * malicious):
        scores = []
        for i, one in enumerate(left):
            distances = sorted(
                sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for j, other in enumerate(left) if j != i
            )
            scores.append((sum(distances[: max(1, len(left) - malicious - 2)]), sum(distances)))
        taken.append(left.pop(scores.index(min(scores))))
    result = []
    for column in zip(*taken, strict=True):
        middle = float(np.median(column))
        nearest = sorted(column, key=lambda value: abs(value - middle))[: len(taken) - 2 * malicious]
        result.append(sum(nearest) / len(nearest))
    return np.asarray(result).reshape(values.shape[1:])


@pytest.mark.parametrize(("count", "malicious"), [(7, 1), (9, 1), (11, 2), (16, 3)])
def test_bulyan_chooses_one_by_one_as_its_paper_does(count: int, malicious: int) -> None:
    """Chosen at once, other sites count in most of these cases."""
    at_once = 0
    for seed in range(30):
        values = np.random.default_rng(seed).normal(size=(count, 2, 3)).astype(np.float32)
        rule = _rule("bulyan", malicious=malicious)
        after = rule.aggregate(answers_of(values), round_of(START, count), {}).arrays["context"]
        assert np.allclose(after, _bulyan_by_the_paper(values, malicious), atol=1e-6)
        chosen = selected(answers_of(values), {"context": START}, malicious, count - 2 * malicious)
        changes = [{"context": value.astype(np.float64)} for value in values]
        at_once += sorted(chosen) == sorted(chosen_one_by_one(changes, malicious, count - 2 * malicious))
    assert at_once < 20
