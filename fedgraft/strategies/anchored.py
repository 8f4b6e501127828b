"""Anchored aggregation: the server preserves, without any data, what the backbone knows about classes nobody trains on.

It has a broad list of class names, the drift classes, and measures with the text tower alone how far the shared
parameters w move their features from the hand-written ones z_c:

    drift(w) = mean_c (1 - cos(t_c(w), z_c))

The next shared parameters may drift up to the budget or, where the round began beyond it, as a random context does, no
farther than at the start of the round. An aggregate that drifts farther is pulled back along a line, w_0 + s (w - w_0),
with s in [0, 1] found by bisection. The line starts at the run's initial parameters if they are within the bound, so
that the next round can take another direction; otherwise it starts where the round began.
"""

from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Drift, Outcome, Round, State, Step, StrategyComponent
from fedgraft.strategies.interpolate import interpolated

_HALVINGS = 12


class AnchoredOptions(Options):
    """How far the drift classes may drift."""

    drift: float = Field(0.05, gt=0, description="budget, in cosine distance", examples=[0.1])


def pulled_back(aggregate: Arrays, origin: Arrays, drift: Drift, bound: float) -> tuple[float, Arrays]:
    """The fraction s of the way from an origin within the bound to an aggregate beyond it, and the point reached.

    Where drift does not grow monotonically along the line, s is one of the points at which it crosses the bound.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if drift(interpolated(aggregate, origin, middle)) <= bound else (low, middle)
    return low, interpolated(aggregate, origin, low)


class Anchored(Step):
    """`pulled_back` as a step, applied where the aggregate is beyond the bound."""

    options: AnchoredOptions
    needs_drift = True

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The aggregate, pulled back to the bound if it is beyond it."""
        reached = now.drift(aggregate)
        bound = max(self.options.drift, now.drift(now.previous))
        if reached <= bound:
            return Outcome(aggregate, figures={"aggregate_drift": reached, "drift": reached, "scale": 1.0})
        origin = now.initial if now.drift(now.initial) <= bound else now.previous
        scale, arrays = pulled_back(aggregate, origin, now.drift, bound)
        return Outcome(arrays, figures={"aggregate_drift": reached, "drift": now.drift(arrays), "scale": scale})


class DriftMeasurement(Step):
    """Measures drift and changes nothing."""

    needs_drift = True

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The aggregate, unchanged."""
        return Outcome(aggregate, figures={"drift": now.drift(aggregate)})


ANCHORED = StrategyComponent(
    "anchored", "pulls the aggregate back where unseen classes drift too far", Anchored, options=AnchoredOptions
)
DRIFT = StrategyComponent("drift", "measures how far unseen classes drift, and changes nothing", DriftMeasurement)
