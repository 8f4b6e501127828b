"""Anchored aggregation: the server keeps what the backbone knows of classes that nobody trains, without any data.

It has a broad list of class names, the probes, and measures with the text tower alone how far an aggregate has carried
their features from the hand-written ones z_c, beyond where the run started:

    drift(w) = mean_c (1 - cos(t_c(w), z_c)) - mean_c (1 - cos(t_c(w_0), z_c))

Where the aggregate w drifts farther than the budget, the next shared parameters are w_0 + s (w - w_0) with the largest
s whose drift is within it: the aggregate is drawn back on the line to where the run started, not to the round before,
so that the next round can go on in another direction. The line is searched by bisection from s = 1 downwards.
"""

from collections.abc import Callable

from pydantic import Field

from fedgraft.messages import Arrays
from fedgraft.options import Options
from fedgraft.strategies.interpolate import interpolated
from fedgraft.strategies.parts import Outcome, Round, State, Step, StrategyPart

_HALVINGS = 12


class AnchoredOptions(Options):
    """How far the probes may drift."""

    drift: float = Field(0.02, gt=0, description="budget, in cosine distance")


def drawn_back(
    aggregate: Arrays, initial: Arrays, drift: Callable[[Arrays], float], budget: float
) -> tuple[float, Arrays]:
    """The part s of the way from the initial parameters to the aggregate that stays within the budget, and its end.

    Args:
        drift: of shared parameters; at the initial ones it is within the budget.
    """
    if drift(aggregate) <= budget:
        return 1.0, aggregate
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if drift(interpolated(aggregate, initial, middle)) <= budget else (low, middle)
    return low, interpolated(aggregate, initial, low)


class Anchored(Step):
    """`drawn_back` as a step."""

    options: AnchoredOptions
    needs_drift = True

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The aggregate, or what the budget leaves of it."""
        scale, arrays = drawn_back(aggregate, now.initial, now.drift, self.options.drift)
        figures = {"aggregate_drift": now.drift(aggregate), "drift": now.drift(arrays), "scale": scale}
        return Outcome(arrays, figures=figures)


class Drift(Step):
    """Only measures."""

    needs_drift = True

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The aggregate as it is."""
        return Outcome(aggregate, figures={"drift": now.drift(aggregate)})


ANCHORED = StrategyPart("anchored", "draws the aggregate back where it drifts too far", Anchored, AnchoredOptions)
DRIFT = StrategyPart("drift", "measures how far foreign classes drift, and changes nothing", Drift)
