"""Between where the run started and what it learnt (WiSE-FT, Wortsman et al., CVPR 2022): w_0 + c (w - w_0).

WiSE-FT interpolates once, behind the training, and so is this by default: the last round's aggregate alone. Where the
run started is the backbone itself for low-rank adapters, whose change is zero there; for a prompt it is the initial
context, random or, with `ctx_init`, the hand-written words.
"""

from typing import Literal

from pydantic import Field

from fedgraft.config.options import Options
from fedgraft.flower.messages import Arrays
from fedgraft.strategies.components import Outcome, Round, State, Step, StrategyComponent, difference, moved


class InterpolateOptions(Options):
    """How far to go, and when."""

    coefficient: float = Field(
        0.5, ge=0, le=1, description="0 is the start of the run, 1 the aggregate", examples=[0.9]
    )
    when: Literal["last", "every"] = Field("last", description="after the last round, or every one", examples=["every"])


def interpolated(aggregate: Arrays, initial: Arrays, coefficient: float) -> Arrays:
    """The point on the line from the initial parameters to the aggregate."""
    change = difference(aggregate, initial)
    return moved(initial, {name: coefficient * array for name, array in change.items()})


class Interpolate(Step):
    """`interpolated` as a step."""

    options: InterpolateOptions

    def next(self, aggregate: Arrays, now: Round, state: State) -> Outcome:
        """The point in between, or the aggregate in a round in which nothing is to be done."""
        if self.options.when == "last" and now.number < now.rounds:
            return Outcome(aggregate)
        return Outcome(interpolated(aggregate, now.initial, self.options.coefficient))


STRATEGY = StrategyComponent(
    "interpolate", "between the start of the run and the aggregate", Interpolate, options=InterpolateOptions
)
