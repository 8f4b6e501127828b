"""The geometric median of the sites' updates by Weiszfeld's iteration (Pillutla et al., IEEE TSP 2022).

v <- sum_k w_k u_k / sum_k w_k with w_k = 1 / max(|u_k - v|, floor), from the mean on.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import Outcome, Round, Rule, State, StrategyComponent, apply_update, updates


class GeometricMedianOptions(Options):
    """How long to iterate."""

    iterations: int = Field(8, ge=1, description="of Weiszfeld's algorithm", examples=[16])


class GeometricMedian(Rule):
    """The point with the least sum of distances to the updates."""

    options: GeometricMedianOptions

    def min_answers(self) -> int:
        """With two sites any point between them will do."""
        return 3

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The parameters after the median of the updates."""
        names = sorted(now.previous)
        changes = updates(answers, now.previous)
        rows = np.stack([np.concatenate([change[name].ravel() for name in names]) for change in changes])
        middle = rows.mean(axis=0)
        for _ in range(self.options.iterations):
            weights = 1 / np.maximum(np.linalg.norm(rows - middle, axis=1), 1e-9)
            middle = weights @ rows / weights.sum()
        ends = np.cumsum([now.previous[name].size for name in names])
        pieces = np.split(middle, ends[:-1])
        update = {n: piece.reshape(now.previous[n].shape) for n, piece in zip(names, pieces, strict=True)}
        return Outcome(apply_update(now.previous, update))


STRATEGY = StrategyComponent(
    name="example-geometric-median",
    summary="the point with the least sum of distances to the sites' updates",
    component=GeometricMedian,
    options=GeometricMedianOptions,
)
