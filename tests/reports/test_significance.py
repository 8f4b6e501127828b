"""What a reader would lose: a p value or an interval that can be trusted, and a word where none can be had."""

import numpy as np
import pytest
from scipy import stats

from fedgraft.reports.significance import friedman, holm, paired_difference, smallest_p, wilcoxon


def test_three_seeds_never_show_less_than_a_quarter() -> None:
    found = paired_difference([[90.0, 91.0, 92.0]], [[10.0, 11.0, 12.5]])
    assert found.p == smallest_p(3) == 0.25
    assert found.is_clear, "the interval leaves zero out, and the test could not have agreed"
    assert (found.low, found.high) == pytest.approx((79.5, 80.0))


def test_the_sign_flip_test_is_that_of_scipy() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(1, 1, 7), rng.normal(0, 1, 7)
    expected = stats.permutation_test(
        (first - second,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    assert paired_difference([list(first)], [list(second)]).p == pytest.approx(expected.pvalue)


def test_equal_methods_are_not_told_apart() -> None:
    found = paired_difference([[50.0, 60.0]] * 9, [[50.0, 60.0]] * 9)
    assert (found.mean, found.p, found.is_clear) == (0.0, 1.0, False)
    many = paired_difference([[1.0, -1.0]] * 10, [[0.0, 0.0]] * 10)
    assert many.p == pytest.approx(1.0)


def test_data_sets_count_alike_however_many_seeds_they_have() -> None:
    found = paired_difference([[1.0] * 6, [3.0, 3.0]], [[0.0] * 6, [0.0, 0.0]])
    assert found.mean == pytest.approx(2.0)
    assert found.pairs == 8


def test_one_seed_has_no_interval() -> None:
    found = paired_difference([[2.0]], [[1.0]])
    assert np.isnan(found.low)
    assert not found.is_clear
    assert found.p == 1.0


def test_holm_adjusts_by_rank_and_never_falls() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_tests_over_data_sets_wait_for_enough_of_them() -> None:
    assert wilcoxon([1.0, 2, 3, 4, 5], [0.0] * 5) is None
    assert wilcoxon([1.0, 2, 3, 4, 5, 6], [0.0] * 6) == pytest.approx(2 / 2**6)
    assert friedman(np.ones((9, 3))) is None
    values = np.arange(10)[:, None] + np.array([0.0, 1.0, 2.0])
    ranking = friedman(values)
    assert ranking is not None
    assert ranking.ranks == [3.0, 2.0, 1.0]
    assert ranking.critical_difference == pytest.approx(2.343 * np.sqrt(3 * 4 / (6 * 10)), abs=0.001)
    assert ranking.p < 0.001
