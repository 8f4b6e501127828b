"""Clipping, noise and accounting: what the three differential-privacy mechanisms share.

The unit of protection is a site: all its data, and so every update it ever sends. The accountant is Flower's (Renyi
differential privacy, Mironov 2017). It counts every round in which a site takes part, without amplification by
sampling: which sites train in a round follows from the run's seed, which the sites know.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.internals import gaussian_epsilon


class GaussianOptions(Options):
    """The clipping norm and the noise."""

    noise_multiplier: float = Field(1.0, gt=0, description="standard deviation over clipping_norm", examples=[8.0])
    clipping_norm: float = Field(1.0, gt=0, description="maximum norm of a site's update", examples=[0.5])
    delta: float = Field(1e-5, gt=0, lt=1, description="the delta at which epsilon is reported", examples=[1e-6])


@dataclass(frozen=True)
class Privacy:
    """A Gaussian mechanism applied in each round.

    Attributes:
        mechanism: the strategy component.
        relation: how two neighbouring federations, which are to be indistinguishable, may differ.
        noise_multiplier: the noise's standard deviation over the clipping norm, as the user gave it.
        sensitivity: the largest difference of the released sum between neighbours, in clipping norms.
        clipping_norm: at the start of the run.
        delta: the delta at which epsilon is reported.
    """

    mechanism: str
    relation: str
    noise_multiplier: float
    sensitivity: float
    clipping_norm: float
    delta: float

    def spent(self, releases: int) -> dict[str, Any]:
        """For summary.json: the mechanism, and epsilon after a number of releases by one site."""
        return {
            **asdict(self),
            "epsilon": epsilon(self.noise_multiplier / self.sensitivity, releases, self.delta),
            "releases": releases,
            "accounting": "Renyi",
            "sampling": "not counted: the sites know who trains in a round",
        }


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of a repeated Gaussian mechanism; `noise_multiplier` is its standard deviation over its sensitivity."""
    return gaussian_epsilon(noise_multiplier, releases, delta) if releases else 0.0


def norm(update: Mapping[str, NDArray[np.float64]]) -> float:
    """The Euclidean norm over all arrays."""
    return float(np.sqrt(sum(float(np.square(array).sum()) for array in update.values())))


def clipped(update: Mapping[str, NDArray[np.float64]], bound: float) -> dict[str, NDArray[np.float64]]:
    """An update, scaled down to norm `bound` if it is longer."""
    length = norm(update)
    scale = bound / length if length > bound else 1.0
    return {name: scale * array for name, array in update.items()}


def content(update: Mapping[str, NDArray[np.float64]]) -> bytes:
    """The bytes that key the noise: different values get different noise, so that no difference cancels it."""
    return b"".join(name.encode() + update[name].tobytes() for name in sorted(update))


def noised(
    update: Mapping[str, NDArray[np.float64]], deviation: float, normal: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """An update plus noise: `deviation` times `normal`, standard normal values as many as all arrays together hold."""
    result, begin = {}, 0
    for name in sorted(update):
        array = update[name]
        result[name] = array + deviation * normal[begin : begin + array.size].reshape(array.shape)
        begin += array.size
    return result
