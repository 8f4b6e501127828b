"""Whether one method is better than another, from differences that are paired by seed and data set.

The sign-flip test (Fisher 1935) asks how often the mean difference would be as large if each difference had either sign
alike; with n differences, no two-sided p can be below 2 / 2^n, and this is said. Intervals are from the percentile
bootstrap over the seeds within each data set; p values of a family are Holm's. Over data sets, Wilcoxon's signed-rank
test, and Friedman's with the critical difference of Nemenyi, as Demšar (JMLR 2006) recommends, where there are enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
WILCOXON_FROM = 6
"""Data sets; with five, no two-sided p of the signed-rank test is below 0.05."""
FRIEDMAN_FROM = 10
"""Data sets; with fewer, the distribution of the statistic is not known well enough (Demšar 2006)."""
_EXACT, _DRAWS = 14, 20_000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One method minus another, paired.

    Attributes:
        mean: over data sets, of the means over seeds.
        low, high: the bootstrap interval; NaN where no data set has two seeds.
        p: two-sided, of the sign-flip test.
        pairs: how many differences there are.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of zero, and the test agrees where so few pairs let it."""
        one_sided = self.low > 0 or self.high < 0
        return one_sided and (self.p < 1 - CONFIDENCE or self.smallest_p > 1 - CONFIDENCE)

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many pairs can show."""
        return smallest_p(self.pairs)


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that a sign-flip test of so many pairs can give."""
    return min(1.0, 2.0 * 0.5**pairs)


def paired_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    """The first method minus the second.

    Args:
        first, second: a sequence for each data set with a value for each seed, in the same order.
    """
    groups = [np.subtract(a, b).astype(np.float64) for a, b in zip(first, second, strict=True)]
    low, high = _interval(groups)
    return Difference(
        mean=float(np.mean([group.mean() for group in groups])),
        low=low,
        high=high,
        p=_sign_flip(groups),
        pairs=sum(map(len, groups)),
    )


def holm(values: Sequence[float]) -> list[float]:
    """The p values of a family of tests, adjusted so that the chance of any false finding is bounded (Holm 1979)."""
    order = np.argsort(values, kind="stable")
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of the signed-rank test over data sets; None where they are too few or do not differ."""
    from scipy import stats  # loads slowly, and most reports do not need it

    differences = np.subtract(first, second)
    if len(differences) < WILCOXON_FROM or not np.any(differences):
        return None
    return float(stats.wilcoxon(differences).pvalue)


@dataclass(frozen=True)
class Ranking:
    """Friedman's test over data sets.

    Attributes:
        ranks: the mean rank of each method; 1 is the best.
        p: that all methods are alike.
        critical_difference: of mean ranks, by Nemenyi's test at 0.05.
    """

    ranks: list[float]
    p: float
    critical_difference: float


def friedman(values: Array, lower_is_better: bool = False) -> Ranking | None:
    """Ranks and tests of values (data sets, methods); None where there are too few data sets or methods."""
    from scipy import stats

    sets, methods = values.shape
    if sets < FRIEDMAN_FROM or methods < 3:
        return None
    ranks = stats.rankdata(values if lower_is_better else -values, axis=1).mean(axis=0)
    p = float(stats.friedmanchisquare(*values.T).pvalue)
    critical = stats.studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2)
    return Ranking([float(rank) for rank in ranks], p, float(critical * np.sqrt(methods * (methods + 1) / (6 * sets))))


def _sign_flip(groups: Sequence[Array]) -> float:
    """Every combination of signs where they are few, else drawn ones, the observed among them."""
    weighted = np.concatenate([group / (len(group) * len(groups)) for group in groups])
    count = len(weighted)
    if count <= _EXACT:
        numbers = np.arange(2**count)[:, None]
        signs = 1.0 - 2.0 * ((numbers >> np.arange(count)) & 1)
    else:
        drawn = np.random.default_rng(0).choice([-1.0, 1.0], (_DRAWS - 1, count))
        signs = np.concatenate([np.ones((1, count)), drawn])
    sums = np.abs(signs @ weighted)
    observed = abs(float(weighted.sum()))
    return float(np.mean(sums >= observed - 1e-9 * max(1.0, observed)))


def _interval(groups: Sequence[Array]) -> tuple[float, float]:
    """The bootstrap interval of the mean over data sets, seeds drawn anew within each."""
    if max(map(len, groups)) < 2:
        return float("nan"), float("nan")
    generator = np.random.default_rng(0)
    means = np.zeros(_DRAWS)
    for group in groups:
        drawn = generator.integers(len(group), size=(_DRAWS, len(group)))
        means += group[drawn].mean(axis=1) / len(groups)
    low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)
