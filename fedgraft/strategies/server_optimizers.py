"""Server optimizers (Reddi et al., ICLR 2021; Hsu et al. 2019): the aggregate's change serves as the gradient.

The formulas are those of Flower's FedAvgM, FedAdam and FedYogi, and the tests compare the two; Flower's keep their
state in an object that no checkpoint sees. Delta is aggregate - previous; sites are weighted as in the preceding rule.
"""

import math
from abc import abstractmethod

import numpy as np
from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import (
    Outcome,
    Round,
    Shapes,
    State,
    Step,
    StrategyComponent,
    Update,
    apply_update,
    update_of,
)


class MomentumOptions(Options):
    """Options of FedAvgM."""

    lr: float = Field(1.0, gt=0, description="learning rate of the server", examples=[0.5])
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the server", examples=[0.5])


class AdaptiveOptions(Options):
    """Options of FedAdam and FedYogi."""

    lr: float = Field(0.01, gt=0, description="learning rate of the server", examples=[0.1])
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment", examples=[0.5])
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment", examples=[0.9])
    tau: float = Field(1e-3, gt=0, description="added to the square root of the second moment", examples=[0.01])


def momentum(delta: Update, velocity: Update, decay: float) -> Update:
    """v <- decay v + Delta."""
    return {name: decay * velocity[name] + change for name, change in delta.items()}


def first_moment(delta: Update, moment: Update, beta: float) -> Update:
    """m <- beta m + (1 - beta) Delta."""
    return {name: beta * moment[name] + (1 - beta) * change for name, change in delta.items()}


def adam_moment(delta: Update, moment: Update, beta: float) -> Update:
    """v <- beta v + (1 - beta) Delta^2."""
    return {name: beta * moment[name] + (1 - beta) * change**2 for name, change in delta.items()}


def yogi_moment(delta: Update, moment: Update, beta: float) -> Update:
    """v <- v - (1 - beta) Delta^2 sign(v - Delta^2)."""
    return {
        name: moment[name] - (1 - beta) * change**2 * np.sign(moment[name] - change**2)
        for name, change in delta.items()
    }


class FedAvgM(Step):
    """Server momentum."""

    options: MomentumOptions

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """previous + lr v."""
        delta = update_of(aggregate, now.previous)
        velocity = momentum(delta, _remembered("v", delta, state), self.options.momentum)
        step = {name: self.options.lr * value for name, value in velocity.items()}
        return Outcome(apply_update(now.previous, step), _memory("v", velocity))

    def memory(self, shared: Shapes) -> Shapes:
        """The velocity of every parameter."""
        return {f"v/{name}": shape for name, shape in shared.items()}


class _Adaptive(Step):
    """previous + lr m / (sqrt(v) + tau)."""

    options: AdaptiveOptions

    @abstractmethod
    def second_moment(self, delta: Update, moment: Update) -> Update:
        """v after a round."""

    def rate(self, server_round: int) -> float:
        """The learning rate of a round."""
        return self.options.lr

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The optimizer's step."""
        delta = update_of(aggregate, now.previous)
        first = first_moment(delta, _remembered("m", delta, state), self.options.beta1)
        second = self.second_moment(delta, _remembered("v", delta, state))
        rate, tau = self.rate(now.number), self.options.tau
        step = {name: rate * first[name] / (np.sqrt(second[name]) + tau) for name in delta}
        return Outcome(apply_update(now.previous, step), {**_memory("m", first), **_memory("v", second)})

    def memory(self, shared: Shapes) -> Shapes:
        """Both moments of every parameter."""
        return {f"{kind}/{name}": shape for kind in "mv" for name, shape in shared.items()}


class FedAdam(_Adaptive):
    """Adam with bias correction, as in Flower."""

    def second_moment(self, delta: Update, moment: Update) -> Update:
        """`adam_moment`."""
        return adam_moment(delta, moment, self.options.beta2)

    def rate(self, server_round: int) -> float:
        """lr sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1))."""
        options, power = self.options, server_round + 1
        return options.lr * math.sqrt(1 - options.beta2**power) / (1 - options.beta1**power)


class FedYogi(_Adaptive):
    """Yogi, without bias correction."""

    def second_moment(self, delta: Update, moment: Update) -> Update:
        """`yogi_moment`."""
        return yogi_moment(delta, moment, self.options.beta2)


def _remembered(kind: str, delta: Update, state: State) -> Update:
    return {name: state.get(f"{kind}/{name}", np.zeros_like(change)) for name, change in delta.items()}


def _memory(kind: str, values: Update) -> State:
    return {f"{kind}/{name}": value for name, value in values.items()}


FEDAVGM = StrategyComponent("fedavgm", "momentum at the server", FedAvgM, options=MomentumOptions)
FEDADAM = StrategyComponent("fedadam", "Adam at the server", FedAdam, options=AdaptiveOptions)
FEDYOGI = StrategyComponent("fedyogi", "Yogi at the server", FedYogi, options=AdaptiveOptions)
