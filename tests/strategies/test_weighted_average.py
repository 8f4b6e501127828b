"""The aggregation rule as a function of arrays, and the checks before it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedgraft.strategies.answers import Answer, checked, problem
from fedgraft.strategies.weighted_average import weighted_average

FLOATS = st.floats(-100, 100, width=32)
UPDATES = hnp.arrays(np.float32, (5, 2, 3), elements=FLOATS)
WEIGHTS = st.lists(st.integers(1, 500), min_size=5, max_size=5)


def _answers(updates: np.ndarray, weights: list[int]) -> list[Answer]:
    return [Answer(site, {"context": updates[site]}, weights[site], 0.0) for site in range(len(weights))]


@given(UPDATES, WEIGHTS)
def test_the_mean_is_weighted_by_examples(updates: np.ndarray, weights: list[int]) -> None:
    mean = weighted_average(_answers(updates, weights))["context"]
    assert np.allclose(mean, np.average(updates, axis=0, weights=weights), atol=1e-4)
    assert mean.dtype == np.float32


@given(hnp.arrays(np.float32, (2, 3), elements=FLOATS), WEIGHTS)
def test_equal_updates_change_nothing(update: np.ndarray, weights: list[int]) -> None:
    assert np.allclose(weighted_average(_answers(np.stack([update] * 5), weights))["context"], update, rtol=1e-6)


@settings(max_examples=30)
@given(UPDATES, WEIGHTS, st.permutations(range(5)))
def test_the_order_of_arrival_changes_nothing(updates: np.ndarray, weights: list[int], order: list[int]) -> None:
    """Not even the last bit: answers are sorted by site before they are summed."""
    answers = _answers(updates, weights)
    reference = {"context": np.zeros((2, 3), np.float32)}
    straight, _ = checked(answers, reference)
    shuffled, _ = checked([answers[index] for index in order], reference)
    assert [answer.site for answer in straight] == [answer.site for answer in shuffled]
    if straight:
        assert weighted_average(straight)["context"].tobytes() == weighted_average(shuffled)["context"].tobytes()


REFERENCE = {"context": np.zeros((2, 3), np.float32)}
GOOD = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "examples", "word"),
    [
        ({"other": GOOD}, 5, "other"),
        ({"context": GOOD, "U": GOOD}, 5, "U"),
        ({"context": GOOD.T}, 5, "shape"),
        ({"context": GOOD.astype(np.float64)}, 5, "dtype"),
        ({"context": GOOD * np.nan}, 5, "finite"),
        ({"context": GOOD * np.inf}, 5, "finite"),
        ({"context": GOOD}, 0, "examples"),
    ],
)
def test_a_bad_answer_is_named(arrays: dict[str, np.ndarray], examples: int, word: str) -> None:
    reason = problem(Answer(3, arrays, examples, 0.0), REFERENCE)
    assert reason is not None
    assert word in reason


def test_a_loss_that_is_not_a_number_is_left_out_before_it_reaches_the_metrics() -> None:
    kept, left_out = checked([Answer(0, {"context": GOOD}, 5, float("nan"))], REFERENCE)
    assert kept == []
    assert left_out[0].reason == "it reports the loss nan"


def test_an_update_a_thousand_times_too_large_is_left_out() -> None:
    answers = _answers(np.stack([GOOD, GOOD * 1000, GOOD, GOOD]), [1, 1, 1, 1])
    kept, left_out = checked(answers, REFERENCE)
    assert [answer.site for answer in kept] == [0, 2, 3]
    assert left_out[0].site == 1
    assert "1000 times" in left_out[0].reason


@pytest.mark.parametrize(("learnt", "at_fault"), [((0.1, 1000.0), "other update"), ((1000.0,), "parameters")])
def test_with_fewer_than_three_answers_the_parameters_are_the_measure(learnt: tuple[float, ...], at_fault: str) -> None:
    answers = _answers(np.stack([GOOD + value for value in learnt]), [1] * len(learnt))
    kept, left_out = checked(answers, {"context": GOOD * 0.01 if len(learnt) == 2 else GOOD})
    assert len(kept) == len(learnt) - 1
    assert at_fault in left_out[0].reason


def test_two_honest_sites_that_leave_zero_behind_are_kept() -> None:
    answers = _answers(np.stack([GOOD * 0.001, GOOD]), [1, 1])
    assert checked(answers, REFERENCE) == (answers, [])


def test_one_answer_that_moves_where_the_others_stand_still_is_measured_by_the_parameters() -> None:
    answers = _answers(np.stack([GOOD, GOOD, GOOD * 1000]), [1, 1, 1])
    assert [answer.site for answer in checked(answers, {"context": GOOD})[0]] == [0, 1]


def test_an_honest_site_that_still_learns_is_kept_where_the_others_have_finished() -> None:
    start = {"context": GOOD}
    answers = _answers(np.stack([GOOD + 1e-4, GOOD + 0.02, GOOD + 1e-4]), [1, 1, 1])
    kept, left_out = checked(answers, start)
    assert [answer.site for answer in kept] == [0, 1, 2]
    assert left_out == []
