"""Secure aggregation (Bonawitz et al., CCS 2017): the server learns the weighted mean of the updates and no update.

    next = previous + sum_i n_i clip(u_i, C) / sum_i n_i

Both sums are taken over masked integers. With `noise_multiplier` z each site adds noise of its own before it masks, and
sites have equal weights:

    next = previous + (sum_i clip(u_i, C) + eta_i) / m,    eta_i ~ N(0, z^2 C^2 / t), rounded to integers of the grid

m is the number of sites asked and t the fewest that a sum may have, so every sum that the server sees has noise of at
least z C, as under `central-dp`, but no one has to be trusted to add it (the distributed discrete Gaussian, Kairouz et
al., ICML 2021); for the accounting see `DistributedPrivacy`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.core.refusals import Refusal
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import (
    Noise,
    Outcome,
    Round,
    Rule,
    State,
    StrategyComponent,
    Update,
    apply_update,
    update_of,
)
from fedgraft.strategies.privacy import Participation, Privacy, epsilon
from fedgraft.strategies.secagg.encoding import FIGURES, Encoding, Integers, SumFigures
from fedgraft.strategies.secagg.protocol import Terms

_FINEST = 2.0**20
"""The smallest deviation of a site's noise in steps: a rounded Gaussian is then a discrete one to a few in 10^12."""


class SecureOptions(Options):
    """Clipping, precision, who must answer, and noise."""

    clipping_norm: float = Field(10.0, gt=0, description="maximum norm of a site's update", examples=[1.0])
    bits: int = Field(26, ge=12, le=32, description="bits of a value, with its sign", examples=[24])
    max_examples: int = Field(65536, ge=1, description="a site with more counts as one with so many", examples=[1000])
    threshold: float = Field(0.66, gt=0.5, le=1, description="the fraction of sites that must stay", examples=[0.8])
    min_sites: int = Field(3, ge=2, description="the fewest sites in a sum", examples=[5])
    neighbours: int = Field(64, ge=2, description="how many others each site masks with", examples=[32])
    noise_multiplier: float = Field(0.0, ge=0, description="the sum's noise over clipping_norm", examples=[1.0])
    delta: float = Field(1e-5, gt=0, lt=1, description="the delta at which epsilon is reported", examples=[1e-6])


@dataclass(frozen=True)
class DistributedPrivacy(Privacy):
    """Noise that the sites add, accounted for by who answered.

    With s sites in a sum, each value has s rounded Gaussians of deviation sigma = z C / sqrt(t) in steps of the grid. A
    rounded Gaussian within 8.65 deviations differs from a discrete one by a factor of at most exp(3.1 / sigma^2). A sum
    of s discrete Gaussians is a discrete one of deviation sigma sqrt(s), but for a factor below 1 + 10^-300 at these
    deviations (Kairouz et al. 2021, Theorem 1). And that one differs from a Gaussian of its deviation that is rounded
    once by at most exp(3.1 / sigma^2) as far as the sum can reach. So d values are within exp(E), E = 3.1 d (s + 1) /
    sigma^2, of the Gaussian mechanism with noise z sqrt(s / t), of which rounding is no release. What is
    (epsilon, delta)-private under that mechanism is (epsilon + 2 E, exp(E) delta)-private here.

    Attributes:
        bits, threshold, min_sites: as in `SecureOptions`.
    """

    bits: int = 26
    threshold: float = 0.66
    min_sites: int = 3
    accounting = "privacy-loss distribution of the Gaussian mechanism that the sites' noise adds up to"

    def releases_epsilon(self, rounds: Sequence[Participation], values: int) -> float:
        """With the sites that were in each sum; `epsilon` is with the fewest."""
        spent: dict[int, float] = {}
        factor = 0.0
        for entry in rounds:
            least = least_sites(len(entry.asked), self.threshold, self.min_sites)
            deviation = self.noise_multiplier * 2.0 ** (self.bits - 1) / math.sqrt(least)
            factor += values * (len(entry.answered) + 1) * 3.1 / deviation**2
            for site in entry.answered:
                loss = least / (self.noise_multiplier**2 * len(entry.answered))
                spent[site] = spent.get(site, 0.0) + loss
        if not spent:
            return 0.0
        return epsilon(1 / math.sqrt(max(spent.values())), 1, self.delta * math.exp(-factor)) + 2 * factor


def least_sites(asked: int, threshold: float, min_sites: int) -> int:
    """The fewest sites in a sum."""
    return max(min_sites, math.ceil(threshold * asked - 1e-9))


class SecureAggregation(Rule):
    """The weighted mean by way of a sum; server and sites find here how a round is encoded."""

    options: SecureOptions
    bounds_updates = True

    def summed(self) -> "SecureAggregation":
        """Server and sites ask the rule itself."""
        return self

    def most_neighbours(self) -> int:
        """As the option says."""
        return self.options.neighbours

    def privacy(self) -> Privacy | None:
        """Per round, if the sites add noise."""
        options = self.options
        if not options.noise_multiplier:
            return None
        return DistributedPrivacy(
            "secagg",
            "a site's update or none",
            options.noise_multiplier,
            1.0,
            options.clipping_norm,
            options.delta,
            options.bits,
            options.threshold,
            options.min_sites,
        )

    def min_answers(self) -> int:
        """The fewest sites in a sum, whatever the number asked."""
        return self.options.min_sites

    def needed_answers(self, asked: int) -> int:
        """The fewest sites in a sum: those that the noise is sized for."""
        return least_sites(asked, self.options.threshold, self.options.min_sites)

    def check_participation(self, asked: int) -> None:
        """Raise UserError if sums do not fit into 64 bits, or the grid is too coarse for the noise."""
        options, encoding = self.options, self.encoding(asked)
        if encoding.width > 8:
            raise UserError(
                f"The strategy 'secagg' with bits={options.bits} and max_examples={options.max_examples} needs "
                f"{8 * encoding.width} bits for the sum of {asked} sites, and there are 64; lower one of them."
            )
        if options.noise_multiplier and encoding.deviation < _FINEST:
            raise UserError(
                f"The strategy 'secagg' has the grid of bits={options.bits}, too coarse for noise_multiplier="
                f"{options.noise_multiplier:g} from {asked} sites; raise bits."
            )

    def encoding(self, asked: int) -> Encoding:
        """How the values of a round become integers."""
        options = self.options
        deviation = options.noise_multiplier * 2.0 ** (options.bits - 1) / math.sqrt(self.needed_answers(asked))
        return Encoding(options.clipping_norm, options.bits, options.max_examples, asked, deviation)

    def terms(self, asked: int, place: str) -> Terms:
        """What the stages of a round rest on."""
        options = self.options
        return Terms(place.encode(), options.threshold, options.neighbours, self.needed_answers(asked))

    def encoded(self, answer: Answer, received: Arrays, asked: int, noise: Noise) -> Integers:
        """A site's vector; raises Refusal if its update has values that are not finite."""
        update = _flat(update_of(answer.arrays, received))
        if not np.isfinite(update).all() or not math.isfinite(answer.loss):
            raise Refusal("secure-sum", "its update has values that are not finite")
        encoding = self.encoding(asked)
        normal = noise(update.size, b"secagg" + update.tobytes()) if encoding.deviation else None
        return encoding.encoded(update, int(answer.num_examples), answer.loss, normal)

    def is_clipped(self, vector: Integers) -> bool:
        """Whether the update in a site's vector was longer than the clipping norm."""
        return bool(vector[-1])

    def mean(self, total: Integers, sites: int, now: Round) -> tuple[Outcome, SumFigures]:
        """The parameters after the mean of `sites` updates, from their vectors' sum.

        Raises:
            ValueError: no sites that keep to the protocol have this sum.
        """
        encoding = self.encoding(now.asked)
        update, figures = encoding.decoded(total, sites)
        mean = update / (now.asked if encoding.deviation else figures.num_examples)
        arrays = apply_update(now.previous, _shaped(mean, now.previous))
        return Outcome(arrays, figures={"clipped_sites": float(figures.clipped)}), figures

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """What the protocol gives for these answers."""
        vectors = [self.encoded(answer, now.previous, now.asked, now.noise) for answer in answers]
        return self.mean(reduce(np.add, vectors), len(vectors), now)[0]

    def vector_size(self, shared: Arrays) -> int:
        """The number of values in a site's vector."""
        return sum(array.size for array in shared.values()) + FIGURES


def _flat(update: Update) -> NDArray[np.float64]:
    return np.concatenate([update[name].ravel() for name in sorted(update)])


def _shaped(flat: NDArray[np.float64], like: Arrays) -> Update:
    result, begin = {}, 0
    for name in sorted(like):
        array = like[name]
        result[name] = flat[begin : begin + array.size].reshape(array.shape)
        begin += array.size
    return result


STRATEGY = StrategyComponent(
    "secagg", "the weighted mean, of which the server sees only the sum", SecureAggregation, options=SecureOptions
)
