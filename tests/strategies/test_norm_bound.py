"""No update moves an aggregate by more than a bounded number of sites may: what an operator would lose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.norm_bound import bounded
from fedgraft.strategies.site_share import capped, largest_count
from fedgraft.strategies.weighted_average import weighted_average

START: Arrays = {"context": np.full((2, 2), 1.0, np.float32)}


def _answers(*lengths: float, examples: float = 10) -> list[Answer]:
    """Updates of the given lengths."""
    return [
        Answer(site, {"context": START["context"] + np.float32(length / 2)}, examples, 1.0)
        for site, length in enumerate(lengths)
    ]


def _length(answer: Answer) -> float:
    return float(np.linalg.norm(answer.arrays["context"] - START["context"]))


def _bounded(answers: list[Answer], usual: float, multiple: float = 10.0):  # type: ignore[no-untyped-def]
    return bounded(answers, [START] * len(answers), usual, multiple)


def test_ordinary_updates_are_the_same_objects() -> None:
    answers = _answers(1.0, 2.0, 9.0, 0.5)
    outcome = _bounded(answers, 0.0)
    assert all(one is other for one, other in zip(outcome.answers, answers, strict=True))
    assert outcome.shortened == {}
    assert outcome.usual == pytest.approx(1.0)


def test_the_first_round_is_bounded_by_its_own_lower_median_and_later_ones_by_history() -> None:
    outcome = _bounded(_answers(1.0, 2.0, 3.0, 500.0), 0.0)
    assert _length(outcome.answers[3]) == pytest.approx(20.0)
    assert outcome.shortened == {3: pytest.approx(25.0)}
    assert outcome.usual == pytest.approx(2.0)
    later = _bounded(_answers(100.0, 100.0, 100.0), outcome.usual)
    assert [_length(answer) for answer in later.answers] == pytest.approx([20.0] * 3)


def test_two_answers_are_bounded_by_the_smaller_one() -> None:
    assert _length(_bounded(_answers(1.0, 1e6), 0.0).answers[1]) == pytest.approx(10.0)


def test_a_site_that_joins_late_is_not_bounded_by_rounds_in_which_the_others_had_little_left_to_learn() -> None:
    usual = 0.0
    for length in (2.0, 0.2, 0.02, 0.002):
        usual = _bounded(_answers(length, length, length), usual).usual
    assert usual == pytest.approx(2.0)
    assert _bounded(_answers(0.002, 0.002, 2.0), usual).shortened == {}


def test_where_nothing_was_learnt_there_is_no_bound() -> None:
    outcome = _bounded(_answers(0.0, 0.0, 5.0), 0.0)
    assert (outcome.usual, outcome.shortened) == (0.0, {})


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 1e4), min_size=5, max_size=9), st.floats(0.5, 5.0), st.randoms())
def test_neither_the_bound_nor_the_memory_depends_on_the_order(lengths: list[float], usual: float, rng) -> None:  # type: ignore[no-untyped-def]
    answers = _answers(*lengths)
    shuffled = list(answers)
    rng.shuffle(shuffled)
    one, other = _bounded(answers, usual), _bounded(shuffled, usual)
    assert one.usual == other.usual
    assert one.shortened == other.shortened
    assert max(map(_length, one.answers)) <= 10 * usual * (1 + 1e-4)


# --- how much one site weighs ---------------------------------------------------------------------


def _of_sizes(*sizes: float) -> list[Answer]:
    return [Answer(site, {"context": np.full(1, site, np.float32)}, size, 1.0) for site, size in enumerate(sizes)]


def test_without_a_cap_nothing_changes() -> None:
    answers = _of_sizes(10**6, 1, 1)
    assert all(one is other for one, other in zip(capped(answers, 1.0), answers, strict=True))
    within = _of_sizes(10, 12, 9)
    assert all(one is other for one, other in zip(capped(within, 0.5), within, strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12), st.floats(0.05, 1.0))
def test_no_site_weighs_more_than_its_share_or_as_much_as_all_others(sizes: list[int], share: float) -> None:
    kept = [answer.num_examples for answer in capped(_of_sizes(*sizes), share)]
    most = max(kept) / sum(kept)
    assert most <= max(share, 1 / len(sizes)) * (1 + 1e-9)
    assert all(less <= size for less, size in zip(kept, sizes, strict=True))
    uncapped = [(less, size) for less, size in zip(kept, sizes, strict=True) if less == size]
    assert uncapped or share < 1


def test_a_cap_is_exactly_the_share() -> None:
    assert largest_count([90, 6, 4], 0.5) == pytest.approx(10)
    assert largest_count([100, 100, 10, 10, 10], 0.3) == pytest.approx(0.3 * 30 / 0.4)
    assert largest_count([90, 6, 4], 0.1) == 4
    mean = weighted_average(capped(_of_sizes(90, 6, 4), 0.5))
    assert mean["context"][0] == pytest.approx((6 * 1 + 4 * 2) / 20)
