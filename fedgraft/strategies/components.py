"""The components of a strategy, with their inputs and outputs.

A strategy is written `m2mix(...)+sam(...)+local-dp(...)+median+...`: at most one term of a site's loss and one way to
take its gradients; at most one site-side transform, which changes an answer before it leaves the site; at most one
rule, which aggregates in place of the method's own; then steps, in the order written, from the aggregate to the next
shared parameters. Every component is one file, and its numerics are pure functions of arrays. What a component
remembers between rounds is stored as arrays in the checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedgraft.config.registry import Registered
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.answers import Answer, LeftOut, checked
from fedgraft.strategies.privacy import Privacy

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from fedgraft.strategies.masked_sum import SummedAnswers
State = dict[str, NDArray[Any]]
"""What a component remembers: arrays by name, stored in the round's checkpoint."""
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of arrays by name."""
Update = dict[str, NDArray[np.float64]]
"""Arrays in float64, in which updates are computed before they become parameters again."""
Noise = Callable[[int, bytes], NDArray[np.float64]]
"""Standard normal noise of a given length, the same only for the same round and the same bytes."""

LossTerm = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""What is added to a cross-entropy: of image features (B, dim), class features (C, dim) and labels (B,) among them."""

Drift = Callable[[Arrays], float]
"""How far shared parameters have moved the text features of classes that no site holds."""


class Knowledge(Protocol):
    """What the server sees of shared parameters by class names alone."""

    def features(self, arrays: Arrays) -> NDArray[np.float64]:
        """Unit features (C, dim) of the classes that sites train on."""

    def slope(self, arrays: Arrays, targets: NDArray[np.float64], retain: float) -> tuple[float, Arrays]:
        """The mean cosine distance of these from targets (C, dim) plus `retain` times the drift, and its gradient."""


@dataclass(frozen=True)
class Round:
    """What every component may know of a round.

    Attributes:
        number: the round, counted from 1.
        previous: the shared parameters that the sites began with.
        initial: the shared parameters of round 0.
        asked: how many sites were asked to train.
        noise: keyed by run and round.
        rounds: the number of rounds in the run.
        drift: how far shared parameters move the features of unseen classes, in cosine distance.
        knowledge: of class names, for a component that `needs_slope`.
    """

    number: int
    previous: Arrays
    initial: Arrays
    asked: int
    noise: Noise
    rounds: int
    drift: Drift
    knowledge: Knowledge | None = None


@dataclass(frozen=True)
class Outcome:
    """Shared parameters, what the component remembers, and metrics for the round's row."""

    arrays: Arrays
    state: State = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


class Component:
    """A component of a strategy, with its options."""

    options: Any
    needs_drift = False
    """Whether it measures drift, for which the server must prepare."""
    needs_slope = False
    """Whether it follows the gradient of what class names show, which the shared parameters must then have."""

    def __init__(self, options: Any = None) -> None:
        self.options = options

    def privacy(self) -> Privacy | None:
        """The guarantee it gives for each round, or None."""
        return None

    def memory(self, shared: Shapes) -> Shapes | None:
        """The shapes of what it remembers after a round, which a resumed run checks; None to have nothing checked.

        Args:
            shared: of the shared parameters.
        """
        return None


class Training(Component):
    """Changes a site's training steps, whatever the method: their gradients, or the loss by a term beside it."""

    adds_term = False
    """Whether it has a `term`, for which the method's loss must have a cross-entropy of image and class features."""

    def term(self, rng: np.random.Generator) -> LossTerm | None:
        """What a site adds in one step to every cross-entropy of image and class features; drawn once for the step."""
        return None

    def gradients(
        self, backward: Callable[[], "list[Tensor]"], sites: "Sequence[Sequence[Parameter]]"
    ) -> "list[Tensor]":
        """Leave in each parameter's `grad` what the optimizer is to take, and return the losses to report.

        Args:
            backward: computes the loss of each site at the parameters as they are, on the same batches in every call,
                and adds the gradients to `grad`, which is None before the first call.
            sites: the parameters of each site that have a gradient.
        """
        return backward()


class SiteTransform(Component, ABC):
    """Changes an answer at the site."""

    @abstractmethod
    def release(self, trained: Arrays, received: Arrays, noise: Noise) -> Arrays:
        """What leaves the site instead of the trained parameters; a pure function."""


class Rule(Component, ABC):
    """Aggregates answers: a method's own rule, or the user's in its place."""

    bounds_updates = False
    """Whether it clips every update, so that none is left out for its size, which would depend on the other sites."""

    sends_each_its_own = False
    """Whether some of what a site receives depends on which site it is: what `own` returns."""

    takes_no_steps = ""
    """Why no step can follow it, such as "no site receives the mean"; empty if steps can."""

    is_weighted_mean = False
    """Whether it is the mean of the answers, weighted by examples, which a sum over all sites is enough for."""

    def summed(self) -> "SummedAnswers | None":
        """How answers are summed under masks, if the server gets only their sum; None if it gets each of them."""
        return None

    def common(self, shared: Arrays) -> Arrays:
        """What all sites receive of the shared parameters, in every round."""
        return shared

    def own(self, site: int, shared: Arrays, state: State) -> Arrays:
        """What one site receives beside `common`, from the shared parameters and the rule's state; a pure function."""
        return {}

    def min_answers(self) -> int:
        """The minimum number of answers."""
        return 1

    def needed_answers(self, asked: int) -> int:
        """The minimum number of answers in a round that asks so many sites."""
        return self.min_answers()

    def check_participation(self, asked: int) -> None:
        """Raise UserError if the options do not suit the number of sites asked per round; accepts all by default."""

    def check_answers(
        self, answers: Sequence[Answer], previous: Arrays, server_round: int
    ) -> tuple[list[Answer], list[LeftOut]]:
        """`checked` against what was sent; overridden where sites answer with other parameters than they receive."""
        return checked(answers, previous, sizes=not self.bounds_updates)

    def start(self, answer: Answer, previous: Arrays) -> Arrays:
        """What a checked answer's update is measured from; overridden where sites answer with other parameters."""
        return {name: previous[name] for name in answer.arrays}

    @abstractmethod
    def aggregate(self, answers: Sequence[Answer], now: Round, state: State) -> Outcome:
        """The aggregate of checked answers, in site order; a pure function."""


class Step(Component, ABC):
    """Turns the aggregate into the next shared parameters."""

    @abstractmethod
    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The next shared parameters; a pure function."""


@dataclass(frozen=True)
class StrategyComponent(Registered):
    """A registered component; `component` is its class, which takes the options."""

    kind: ClassVar[str] = "strategy"
    columns: ClassVar[tuple[str, ...]] = ("kind",)

    component: type[Component]

    def facts(self) -> dict[str, str]:
        """Where the component acts."""
        kinds = {Training: "training", SiteTransform: "at the site", Rule: "rule", Step: "step"}
        return {"kind": next(text for kind, text in kinds.items() if issubclass(self.component, kind))}

    def make(self, values: dict[str, Any]) -> Component:
        """The component with a user's options; raises UserError for an unknown option or an invalid value."""
        return self.component(self.parse_options(values))


def updates(answers: Sequence[Answer], previous: Arrays) -> list[Update]:
    """Each site's update, in float64."""
    return [update_of(answer.arrays, previous) for answer in answers]


def update_of(arrays: Arrays, previous: Arrays) -> Update:
    """The change since `previous`, in float64."""
    return {name: arrays[name].astype(np.float64) - array for name, array in previous.items()}


def apply_update(previous: Arrays, update: Update) -> Arrays:
    """Parameters after an update."""
    return {name: (array + update[name]).astype(array.dtype) for name, array in previous.items()}
