"""FLoRA (Wang et al., NeurIPS 2024): the sites' factors stacked, whose product is exact, and merged round by round."""

from collections.abc import Sequence

import numpy as np

from fedgraft.messages import Arrays
from fedgraft.strategies.answers import Answer, LeftOut
from fedgraft.strategies.low_rank import (
    MERGED,
    A,
    B,
    LowRankStrategy,
    Products,
    checked_factors,
    maps_of,
)


def stacked(answers: Sequence[Answer]) -> Arrays:
    """A = [p_1 A_1 / r_1; p_2 A_2 / r_2; ...] and B = [B_1, B_2, ...] of each map, of the rank sum_k r_k."""
    total = sum(answer.num_examples for answer in answers)
    stack: Arrays = {}
    for name in maps_of(answers[0].arrays):
        rows = [a.num_examples / total * a.arrays[name + A] / len(a.arrays[name + A]) for a in answers]
        stack[name + A] = np.concatenate(rows).astype(np.float32)
        stack[name + B] = np.concatenate([answer.arrays[name + B] for answer in answers], axis=1)
    return stack


class Flora(LowRankStrategy):
    """The stack's product added to what is merged, (out, in) of each map, which alone travels down."""

    def aggregate(self, answers: Sequence[Answer], previous: Arrays) -> Arrays:
        """What is merged after the round."""
        stack = stacked(answers)
        return {
            name + MERGED: (previous[name + MERGED] + stack[name + B].astype(np.float64) @ stack[name + A]).astype(
                np.float32
            )
            for name in maps_of(previous)
        }

    def check(
        self, answers: Sequence[Answer], previous: Arrays, sizes: bool = True
    ) -> tuple[list[Answer], list[LeftOut]]:
        """Any rank that fits the maps."""
        return checked_factors(answers, {name: previous[name + MERGED].shape for name in maps_of(previous)}, sizes)

    def passed_on(self, aggregated: Arrays, previous: Arrays) -> Products:
        """What was merged in this round."""
        return {
            name: aggregated[name + MERGED].astype(np.float64) - previous[name + MERGED] for name in maps_of(previous)
        }
