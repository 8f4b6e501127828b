"""Rounds without a federation, for tests of rules and steps."""

import numpy as np
from numpy.typing import NDArray

from fedgraft.core.randomness import keyed_normal
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Drift, Round


def round_after(
    previous: Arrays,
    asked: int,
    number: int = 1,
    key: bytes = b"k" * 32,
    initial: Arrays | None = None,
    drift: Drift | None = None,
) -> Round:
    """A round of ten that began with some shared parameters.

    Args:
        asked: how many sites trained.
        key: of the noise.
        initial: the shared parameters of round 0; `previous` unless given.
        drift: of shared parameters; the mean of their absolute values unless given.
    """
    return Round(
        number=number,
        previous=previous,
        initial=previous if initial is None else initial,
        asked=asked,
        noise=lambda count, place: keyed_normal(key, count, "test", number, place),
        rounds=10,
        drift=drift or _mean_size,
        knowledge=_NoNames(),
    )


class _NoNames:
    """`Knowledge` where names show nothing: one class, the same under all parameters."""

    def features(self, arrays: Arrays) -> NDArray[np.float64]:
        return np.ones((1, 1))

    def slope(self, arrays: Arrays, targets: NDArray[np.float64], retain: float) -> tuple[float, Arrays]:
        return 0.0, {name: np.zeros_like(array) for name, array in arrays.items()}


def _mean_size(arrays: Arrays) -> float:
    return float(np.mean([np.abs(array).mean() for array in arrays.values()]))
