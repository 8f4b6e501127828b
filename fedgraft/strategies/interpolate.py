"""Interpolation between the run's start and what it learnt (WiSE-FT, Wortsman et al., CVPR 2022): w_0 + c (w - w_0).

WiSE-FT interpolates once, after training, and so does this by default: only the last round's aggregate. For low-rank
adapters, whose initial change is zero, the start is the backbone itself; for a prompt it is the initial context, random
or, with `ctx_init`, hand-written words.
"""

from typing import Literal

from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Outcome, Round, State, Step, StrategyComponent, apply_update, update_of


class InterpolateOptions(Options):
    """How far to go, and when."""

    coefficient: float = Field(0.5, ge=0, le=1, description="0 is the run's start, 1 the aggregate", examples=[0.9])
    when: Literal["last", "every"] = Field("last", description="after the last or every round", examples=["every"])


def interpolated(aggregate: Arrays, initial: Arrays, coefficient: float) -> Arrays:
    """The point on the line from the initial parameters to the aggregate."""
    change = update_of(aggregate, initial)
    return apply_update(initial, {name: coefficient * array for name, array in change.items()})


class Interpolate(Step):
    """`interpolated` as a step."""

    options: InterpolateOptions

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The interpolated parameters, or the aggregate in a round without interpolation."""
        if self.options.when == "last" and now.number < now.rounds:
            return Outcome(aggregate)
        return Outcome(interpolated(aggregate, now.initial, self.options.coefficient))


STRATEGY = StrategyComponent(
    "interpolate", "interpolates between the run's start and the aggregate", Interpolate, options=InterpolateOptions
)
