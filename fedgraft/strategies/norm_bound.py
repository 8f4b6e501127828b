"""Norm bounds (Sun et al. 2019, "Can You Really Backdoor Federated Learning?") that follow the run's own history.

    u_k <- u_k min(1, M n / |u_k|),    n = max over the rounds before of the median norm of their updates

u_k is what site k changed, M a generous multiple. The first round is bounded by its own median. An even number of
updates has its lower middle value as its median, so that the larger half never decides, and a round's median is taken
of the bounded updates. As long as most sites of each round are honest, n is the size of an honest update, and f sites
that answer anything move a mean with weights w_k by at most M n times the sum of their weights. The largest median of
all rounds is kept, and not the newest: where most sites have little left to learn, one that joins late still has much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer


@dataclass(frozen=True)
class Bounded:
    """Updates within the bound.

    Attributes:
        answers: in the order given; those within the bound are the same objects.
        usual: n for the next round.
        shortened: how many times the bound an update was, by site.
    """

    answers: list[Answer]
    usual: float
    shortened: dict[int, float]


def bounded(answers: Sequence[Answer], starts: Sequence[Arrays], usual: float, multiple: float) -> Bounded:
    """Shorten the updates that are longer than `multiple` times the usual one.

    Args:
        starts: for each answer, the parameters that its update is measured from.
        usual: n of the rounds before; 0 where there are none, or where nothing was learnt in them.
    """
    norms = [_distance(answer.arrays, start) for answer, start in zip(answers, starts, strict=True)]
    most = multiple * (usual or _lower_median(norms))
    if most == 0.0:
        return Bounded(list(answers), usual, {})
    kept = [
        answer if norm <= most else replace(answer, arrays=_nearer(answer.arrays, start, most / norm))
        for answer, start, norm in zip(answers, starts, norms, strict=True)
    ]
    shortened = {answer.site: norm / most for answer, norm in zip(answers, norms, strict=True) if norm > most}
    return Bounded(kept, max(usual, _lower_median([min(norm, most) for norm in norms])), shortened)


def _lower_median(norms: Sequence[float]) -> float:
    return sorted(norms)[(len(norms) - 1) // 2]


def _distance(arrays: Arrays, start: Arrays) -> float:
    squares = (float(np.square(array.astype(np.float64) - start[name]).sum()) for name, array in arrays.items())
    return float(np.sqrt(sum(squares)))


def _nearer(arrays: Arrays, start: Arrays, scale: float) -> Arrays:
    return {
        name: (start[name] + scale * (array.astype(np.float64) - start[name])).astype(array.dtype)
        for name, array in arrays.items()
    }
