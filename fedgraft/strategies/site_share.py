"""No single site weighs more than a share of a weighted mean.

With n_k the examples of site k, the weights are n_k / sum_j n_j. Where one of them exceeds the share s, the examples
count as min(n_k, c) instead, with c such that the heaviest sites weigh exactly s:

    c = s R / (1 - j s),    R the examples of the sites at or below c, j the number of those above it.

Where even equal weights exceed s, that is with fewer than 1 / s sites, all weigh the same.
"""

from collections.abc import Sequence
from dataclasses import replace

from fedgraft.strategies.answers import Answer


def largest_count(counts: Sequence[float], share: float) -> float:
    """The c of the formula: the number of examples at which counts are cut, infinite where nothing exceeds the share.

    Args:
        counts: positive.
        share: above 0, at most 1.
    """
    descending = sorted(counts, reverse=True)
    if descending[0] <= share * sum(descending):
        return float("inf")
    for above, heaviest in enumerate(descending[1:], 1):
        if (left := 1 - above * share) <= 0:
            break
        level = share * sum(descending[above:]) / left
        if level >= heaviest:
            return level
    return descending[-1]


def capped(answers: Sequence[Answer], share: float) -> list[Answer]:
    """The answers, with fewer examples where a site would weigh more than the share; the others are unchanged."""
    most = largest_count([answer.num_examples for answer in answers], share) if share < 1 else float("inf")
    return [answer if answer.num_examples <= most else replace(answer, num_examples=most) for answer in answers]
