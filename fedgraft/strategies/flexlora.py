"""FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products, of which the largest directions go back as factors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedgraft.messages import Arrays
from fedgraft.strategies.answers import Answer, LeftOut
from fedgraft.strategies.flora import stacked
from fedgraft.strategies.low_rank import (
    A,
    B,
    LowRankStrategy,
    Products,
    checked_factors,
    maps_of,
    product,
)

Matrix = NDArray[np.float64]


def truncated(left: Matrix, right: Matrix, start: Matrix) -> tuple[Matrix, Matrix]:
    """The best approximation of left (out, k) times right (k, in) by a rank, as (out, rank) and (rank, in).

    From the QR factors of both, so that no more than k x k is decomposed. All singular values go to the left, and the
    right one has orthonormal rows: a direction that nobody has used yet can then still be learnt, as at the start of
    LoRA. Each row's largest entry is positive, so that the result is one.

    Args:
        start: (rank, in), whose directions fill the right one up where k is less than the rank.
    """
    basis_left, core_left = np.linalg.qr(left)
    basis_right, core_right = np.linalg.qr(right.T)
    u, s, v = np.linalg.svd(core_left @ core_right.T, full_matrices=False)
    count = min(len(start), len(s))
    rows = v[:count] @ basis_right.T
    signs = np.where(rows[np.arange(count), np.abs(rows).argmax(1)] < 0, -1.0, 1.0)
    columns = basis_left @ (u[:, :count] * (s[:count] * signs))
    more = np.linalg.qr(np.concatenate([rows, start]).T)[0].T[count : len(start)]
    return np.pad(columns, ((0, 0), (0, len(more)))), np.concatenate([rows * signs[:, None], more])


class FlexLora(LowRankStrategy):
    """`truncated` to the largest rank that any site has; a site of a smaller one takes the first directions."""

    def aggregate(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """Factors of the rank that was sent, B times that rank, since a site divides its change by it."""
        stack = stacked(answers)
        factors: Arrays = {}
        for name in maps_of(previous):
            left, right, start = (
                array.astype(np.float64) for array in (stack[name + B], stack[name + A], previous[name + A])
            )
            left, right = truncated(left, right, start)
            factors[name + A], factors[name + B] = right.astype(np.float32), (len(start) * left).astype(np.float32)
        return factors

    def check(
        self, answers: Sequence[Answer], previous: Arrays, sizes: bool = True
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Any rank that fits the maps."""
        shapes = {name: (len(previous[name + B]), previous[name + A].shape[1]) for name in maps_of(previous)}
        return checked_factors(answers, shapes, sizes)

    def passed_on(self, aggregated: Arrays, previous: Arrays) -> Products:
        """What is left of the mean after the cut to the largest rank."""
        return {name: product(aggregated, name) for name in maps_of(aggregated)}
