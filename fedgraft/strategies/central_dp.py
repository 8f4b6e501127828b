"""Central differential privacy (McMahan et al., ICLR 2018): the server clips every update and adds noise to their sum.

    next = previous + (sum_i clip(u_i, C) + z C N(0, I)) / m

Every site counts once, and m is the number of sites asked, whoever answers: a mean weighted by examples, or divided by
the number of answers, changes by more than C / m when one site joins or leaves. A missing answer is an update of 0.
With adaptive clipping (Andrew et al., NeurIPS 2021) C follows a quantile of the updates' norms,

    C <- C exp(-eta (b - gamma)),    b = 1/2 + (sum_i (b_i - 1/2) + s N(0, 1)) / m,    b_i = 1 where |u_i| <= C

and the two releases together cost as much as noise with multiplier z alone: the sum gets (z^-2 - (2 s)^-2)^(-1/2).
"""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from fedgraft.core.errors import UserError
from fedgraft.flower.internals import adaptive_noise, noise_deviation
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer
from fedgraft.strategies.components import (
    Noise,
    Outcome,
    Round,
    Rule,
    Shapes,
    State,
    StrategyComponent,
    Update,
    apply_update,
    updates,
)
from fedgraft.strategies.privacy import GaussianOptions, Privacy, clipped, content, noised, norm

_RELATION = "one site more or less"


class AdaptiveOptions(GaussianOptions):
    """The quantile that the clipping norm follows, and how."""

    clipping_norm: float = Field(0.1, gt=0, description="clipping norm of the first round", examples=[0.5])
    quantile: float = Field(0.5, ge=0, le=1, description="quantile of the norms to follow", examples=[0.8])
    clipping_rate: float = Field(0.2, gt=0, description="how fast it follows", examples=[0.1])
    count_noise: float = Field(0.0, ge=0, description="the count's noise, a deviation; 0 chooses it", examples=[2.0])


def private_mean(changes: Sequence[Update], previous: Arrays, bound: float, multiplier: float, now: Round) -> Arrays:
    """The parameters after the noised mean of clipped updates; `multiplier` is the sum's noise deviation / `bound`."""
    short = [clipped(change, bound) for change in changes]
    mean = {name: sum((c[name] for c in short), start=np.zeros(previous[name].shape)) / now.asked for name in previous}
    size = sum(array.size for array in mean.values())
    deviation = noise_deviation(multiplier, bound, now.asked)
    return apply_update(previous, noised(mean, deviation, now.noise(size, content(mean))))


def noisy_share(short: Sequence[bool], deviation: float, asked: int, noise: Noise) -> float:
    """The noised share of updates within the bound; a site without an answer counts half."""
    count = sum(is_short - 0.5 for is_short in short)
    return 0.5 + (count + deviation * float(noise(1, f"count {count}".encode())[0])) / asked


def _promise(mechanism: str, options: GaussianOptions) -> Privacy:
    return Privacy(mechanism, _RELATION, options.noise_multiplier, 1.0, options.clipping_norm, options.delta)


class CentralDP(Rule):
    """A fixed clipping norm."""

    options: GaussianOptions
    bounds_updates = True

    def privacy(self) -> Privacy:
        """Per round: one site changes the sum by at most the clipping norm."""
        return _promise("central-dp", self.options)

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The noised mean."""
        options = self.options
        changes = updates(answers, now.previous)
        return Outcome(private_mean(changes, now.previous, options.clipping_norm, options.noise_multiplier, now))


class AdaptiveDP(Rule):
    """A clipping norm that is carried from round to round and follows a quantile."""

    options: AdaptiveOptions
    bounds_updates = True

    def privacy(self) -> Privacy:
        """Per round: the sum and the count together."""
        return _promise("adaptive-dp", self.options)

    def check_participation(self, asked: int) -> None:
        """Raise UserError if the count's noise is too small for the multiplier."""
        self._deviations(asked)

    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The noised mean under this round's norm, and the norm for the next round."""
        options = self.options
        bound = float(state.get("clipping_norm", options.clipping_norm))
        count_deviation, multiplier = self._deviations(now.asked)
        changes = updates(answers, now.previous)
        share = noisy_share([norm(change) <= bound for change in changes], count_deviation, now.asked, now.noise)
        following = bound * math.exp(-options.clipping_rate * (share - options.quantile))
        mean = private_mean(changes, now.previous, bound, multiplier, now)
        return Outcome(mean, {"clipping_norm": np.asarray(following)}, {"clipping_norm": bound})

    def memory(self, shared: Shapes) -> Shapes:
        """The clipping norm of the next round."""
        return {"clipping_norm": ()}

    def _deviations(self, asked: int) -> tuple[float, float]:
        """The count's noise deviation, by default the larger of m / 20 and z, and the sum's noise multiplier.

        Raises:
            UserError: the count's noise is too small for the requested multiplier.
        """
        options = self.options
        deviation = options.count_noise or max(asked / 20, options.noise_multiplier)
        if options.noise_multiplier >= 2 * deviation:
            raise UserError(
                f"The strategy 'adaptive-dp' has count_noise={deviation:g}, but noise_multiplier="
                f"{options.noise_multiplier:g} needs more than {options.noise_multiplier / 2:g}; raise count_noise."
            )
        return adaptive_noise(options.noise_multiplier, asked, deviation)


CENTRAL = StrategyComponent(
    "central-dp", "clips updates and adds noise to their mean", CentralDP, options=GaussianOptions
)
ADAPTIVE = StrategyComponent(
    "adaptive-dp", "central-dp with a clipping norm that follows a quantile", AdaptiveDP, options=AdaptiveOptions
)
