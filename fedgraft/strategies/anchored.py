"""Anchored aggregation: the server keeps what the backbone knows of classes that nobody trains, without any data.

It has a broad list of class names, the probes, and measures with the text tower alone how far shared parameters w hold
their features from the hand-written ones z_c:

    drift(w) = mean_c (1 - cos(t_c(w), z_c))

The next shared parameters may drift as far as the budget, and where the round began beyond it, as a random context
does, no farther than that. An aggregate that drifts farther is drawn back on a line, w_0 + s (w - w_0), with s in
[0, 1] found by bisection. The line begins where the run started, as long as that is within the bound, so that the next
round can go on in another direction; else where the round began.
"""

from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Drift, Outcome, Round, State, Step, StrategyComponent
from fedgraft.strategies.interpolate import interpolated

_HALVINGS = 12


class AnchoredOptions(Options):
    """How far the probes may drift."""

    drift: float = Field(0.05, gt=0, description="budget, in cosine distance", examples=[0.1])


def drawn_back(aggregate: Arrays, origin: Arrays, drift: Drift, bound: float) -> tuple[float, Arrays]:
    """The part s of the way from an origin within the bound to an aggregate beyond it that stays within, and its end.

    Where drift does not grow all along the way, s is one of the places where it crosses the bound.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if drift(interpolated(aggregate, origin, middle)) <= bound else (low, middle)
    return low, interpolated(aggregate, origin, low)


class Anchored(Step):
    """`drawn_back` as a step, where the aggregate is beyond the bound."""

    options: AnchoredOptions
    needs_drift = True

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The aggregate, or what the bound leaves of it."""
        reached = now.drift(aggregate)
        bound = max(self.options.drift, now.drift(now.previous))
        if reached <= bound:
            return Outcome(aggregate, figures={"aggregate_drift": reached, "drift": reached, "scale": 1.0})
        origin = now.initial if now.drift(now.initial) <= bound else now.previous
        scale, arrays = drawn_back(aggregate, origin, now.drift, bound)
        return Outcome(arrays, figures={"aggregate_drift": reached, "drift": now.drift(arrays), "scale": scale})


class Measured(Step):
    """Only measures."""

    needs_drift = True

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The aggregate as it is."""
        return Outcome(aggregate, figures={"drift": now.drift(aggregate)})


ANCHORED = StrategyComponent(
    "anchored", "draws the aggregate back where foreign classes drift too far", Anchored, options=AnchoredOptions
)
DRIFT = StrategyComponent("drift", "measures how far foreign classes drift, and changes nothing", Measured)
