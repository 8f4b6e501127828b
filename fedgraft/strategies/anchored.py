"""Anchored aggregation: the server preserves, without any data, what the backbone knows about classes nobody trains on.

It has a broad list of class names, the drift classes, and measures with the text tower alone how far the shared
parameters w move their features from the hand-written ones z_c:

    drift(w) = mean_c (1 - cos(t_c(w), z_c))

The next shared parameters may drift up to the budget or, where the round began beyond it, as a random context does, no
farther than at the start of the round. An aggregate that drifts farther is pulled back along a line, w_0 + s (w - w_0),
with s in [0, 1] the last point within the bound. The line starts at the run's initial parameters if they are within the
bound, so that the next round can take another direction; otherwise it starts where the round began.
"""

import math
from collections.abc import Callable

from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Drift, Outcome, Round, State, Step, StrategyComponent
from fedgraft.strategies.interpolate import interpolated

_POINTS = 2**12
"""Parts of the line between whose ends s is looked for."""
_PATIENCE = 4
"""Every so many measurements the middle of what is left of the line is taken, whatever the secants say."""


class AnchoredOptions(Options):
    """How far the drift classes may drift."""

    drift: float = Field(0.05, gt=0, description="budget, in cosine distance", examples=[0.1])


def pulled_back(aggregate: Arrays, origin: Arrays, drift: Drift, bound: float) -> tuple[float, Arrays]:
    """The fraction s of the way from an origin within the bound to an aggregate beyond it, and the point reached.

    Where drift does not grow monotonically along the line, s is one of the points at which it crosses the bound.
    """
    ends = drift(origin), drift(aggregate)
    reached = last_within(lambda s: drift(interpolated(aggregate, origin, s / _POINTS)), ends, bound, _POINTS)
    return reached / _POINTS, interpolated(aggregate, origin, reached / _POINTS)


def last_within(value: Callable[[int], float], ends: tuple[float, float], bound: float, points: int) -> int:
    """A point k with value(k) <= bound < value(k + 1).

    The points are those at which a bisection ends, and so is k where values only grow, with about half of its values:
    the next is where a secant through the last two meets the bound, in the fourth root, since the drift of a product of
    two factors grows like s^4.

    Args:
        ends: value(0) <= bound and value(points) > bound.
    """

    def height(found: float) -> float:
        return math.pow(max(0.0, found), 0.25) - math.pow(bound, 0.25)

    low, high, measured = 0, points, 0
    older, newer = (0, height(ends[0])), (points, height(ends[1]))
    while high - low > 1:
        measured += 1
        slope = (newer[1] - older[1]) / (newer[0] - older[0])
        starts_there = low == 0 and ends[0] >= bound
        if starts_there or slope <= 0 or measured % _PATIENCE == 0:
            point = (low + high) // 2
        else:
            point = min(max(int(newer[0] - newer[1] / slope), low + 1), high - 1)
        found = value(point)
        low, high = (point, high) if found <= bound else (low, point)
        older, newer = newer, (point, height(found))
    return low


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
