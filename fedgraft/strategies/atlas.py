"""Task vectors with learnt anisotropic scaling (Zhang et al., aTLAS, NeurIPS 2024), learnt by names alone.

The update tau_k of site k is a task vector. The next shared parameters are, for every block b, that is, every array,

    w_b = previous_b + sum_k p_k c_kb tau_kb

with p_k the share of the site's examples and coefficients c, free in sign, that begin at 1: at the weighted mean. The
authors learn them on images. A server has none, but it knows class names and can see what every site has made of them,
so here they lower, by a few steps of Adam in each round,

    mean_c (1 - cos(t_c(w), mean_k p_k t_c(w_k))) + retain mean_d (1 - cos(t_d(w), z_d))

over the classes c that sites train on and names d that nobody holds, with t the text features under some parameters and
z the frozen ones. The first term keeps what the sites, each with its own images, have learnt of the classes: the mean
of their features, which the mean of their parameters need not have. The second keeps what the backbone knows. Left out
of the paper: coefficients for parts of an array, and learning them at a site on its few images, for which every site
would need the updates of all others.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import (
    Knowledge,
    Outcome,
    Round,
    Rule,
    State,
    StrategyComponent,
    Update,
    apply_update,
    updates,
)

_BETAS, _FLOOR = (0.9, 0.999), 1e-8
_SMALLEST = 1e-12


class AtlasOptions(Options):
    """What the coefficients are learnt for, and how long."""

    retain: float = Field(1.0, ge=0, description="weight of the names that nobody holds", examples=[10.0])
    steps: int = Field(10, ge=1, description="of Adam on the coefficients in each round", examples=[2])
    lr: float = Field(0.1, gt=0, description="learning rate of the coefficients", examples=[0.01])


def composed(vectors: Sequence[Update], coefficients: NDArray[np.float64]) -> Update:
    """The sum over sites of task vectors times coefficients (sites, blocks), blocks in the order of their names."""
    names = sorted(vectors[0])
    return {
        name: np.tensordot(coefficients[:, block], np.stack([vector[name] for vector in vectors]), axes=1)
        for block, name in enumerate(names)
    }


def learnt(
    vectors: Sequence[Update],
    shares: NDArray[np.float64],
    previous: Arrays,
    targets: NDArray[np.float64],
    knowledge: Knowledge,
    options: AtlasOptions,
) -> tuple[NDArray[np.float64], list[float]]:
    """The coefficients p_k c_kb (sites, blocks), and the objective before each step.

    Args:
        vectors: the sites' updates.
        shares: (sites,), p.
        targets: features (C, dim) of the classes that sites train on.
    """
    names = sorted(previous)
    scales = np.ones((len(vectors), len(names)))
    first, second, values = np.zeros_like(scales), np.zeros_like(scales), list[float]()
    for step in range(1, options.steps + 1):
        now = apply_update(previous, composed(vectors, shares[:, None] * scales))
        value, slopes = knowledge.slope(now, targets, options.retain)
        values.append(value)
        along = [[float((slopes[name] * vector[name]).sum()) for name in names] for vector in vectors]
        gradient = shares[:, None] * np.asarray(along)
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
        corrected = first / (1 - _BETAS[0] ** step), second / (1 - _BETAS[1] ** step)
        scales = scales - options.lr * corrected[0] / (np.sqrt(corrected[1]) + _FLOOR)
    return shares[:, None] * scales, values


class Atlas(Rule):
    """`learnt`, then `composed`."""

    options: AtlasOptions
    needs_drift = True
    needs_slope = True

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The parameters after the composed update."""
        assert now.knowledge is not None, "needs_slope says so"
        examples = np.asarray([float(answer.num_examples) for answer in answers])
        shares = examples / examples.sum()
        seen = np.stack([now.knowledge.features({**now.previous, **answer.arrays}) for answer in answers])
        targets = np.tensordot(shares, seen, axes=1)
        targets /= np.maximum(np.linalg.norm(targets, axis=-1, keepdims=True), _SMALLEST)
        vectors = updates(answers, now.previous)
        coefficients, values = learnt(vectors, shares, now.previous, targets, now.knowledge, self.options)
        arrays = apply_update(now.previous, composed(vectors, coefficients))
        reached, _ = now.knowledge.slope(arrays, targets, self.options.retain)
        if reached > values[0]:
            coefficients = np.repeat(shares[:, None], coefficients.shape[1], axis=1)
            arrays, reached = apply_update(now.previous, composed(vectors, coefficients)), values[0]
        figures = {"objective_of_mean": values[0], "objective": reached, "drift": now.drift(arrays)}
        return Outcome(arrays, figures=figures)


STRATEGY = StrategyComponent(
    "atlas", "the sites' updates, each block scaled as class names say, without images", Atlas, options=AtlasOptions
)
