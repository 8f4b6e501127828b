"""Clipping, noise and accounting: what the differential-privacy mechanisms share.

The unit of protection is a site: all its data, and so every update it ever sends. Accounts are by the library
`dp-accounting`. The privacy loss of T Gaussian releases is that of one with deviation z / sqrt(T), exactly, so its
closed form for one Gaussian (Balle and Wang 2018) is the whole account, and its numerical privacy-loss distributions
are what the tests compare it with. Every round in which a site takes part counts, without amplification by sampling:
which sites train in a round follows from the run's seed, which the sites know.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.config.options import Options


class GaussianOptions(Options):
    """The clipping norm and the noise."""

    noise_multiplier: float = Field(1.0, gt=0, description="standard deviation over clipping_norm", examples=[8.0])
    clipping_norm: float = Field(1.0, gt=0, description="maximum norm of a site's update", examples=[0.5])
    delta: float = Field(1e-5, gt=0, lt=1, description="the delta at which epsilon is reported", examples=[1e-6])


@dataclass(frozen=True)
class Participation:
    """Which sites were asked to train in a round, and whose answers counted.

    Attributes:
        steps: the most training steps of a site in the round, where the rule tells its `most_examples`.
    """

    asked: Sequence[int]
    answered: Sequence[int]
    steps: int = 0


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

    accounting: ClassVar[str] = "privacy-loss distribution of the Gaussian mechanism, exact"

    def epsilon(self, releases: int) -> float:
        """Epsilon after a number of releases by one site."""
        return epsilon(self.noise_multiplier / self.sensitivity, releases, self.delta)

    def releases_epsilon(self, rounds: Sequence[Participation], values: int) -> float:
        """Epsilon after the rounds of a run, for the site that took part most often.

        Args:
            values: the number of values in an update.
        """
        return self.epsilon(most_releases(rounds))

    def spent(self, rounds: Sequence[Participation], values: int) -> dict[str, Any]:
        """For summary.json: the mechanism, and epsilon after the rounds of a run."""
        return {
            **asdict(self),
            "epsilon": self.releases_epsilon(rounds, values),
            "releases": most_releases(rounds),
            "accounting": self.accounting,
            "sampling": "not counted: the sites know who trains in a round",
        }


def most_releases(rounds: Sequence[Participation]) -> int:
    """In how many rounds the most frequent site was asked."""
    return max(Counter(site for entry in rounds for site in entry.asked).values(), default=0)


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Epsilon of a repeated Gaussian mechanism; `noise_multiplier` is its standard deviation over its sensitivity."""
    from dp_accounting import get_epsilon_gaussian  # takes more than a second to import

    return float(get_epsilon_gaussian(noise_multiplier / math.sqrt(releases), delta)) if releases else 0.0


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
