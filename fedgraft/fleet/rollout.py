"""A staged rollout: which devices a release is for at each stage, and what halts it. Pure functions of figures."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from fedgraft.core.conditions import Figure, parse_conditions
from fedgraft.core.errors import UserError

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
FIGURES = {
    "failed": Figure("devices that went back or refused the release, of those that tried it", "failed>2%"),
    "unknown": Figure("predictions of the release that were called unknown", "unknown>20%"),
}
"""What a halting condition may name, in percent."""


@dataclass(frozen=True)
class HaltRule:
    """The conditions that halt a rollout, any one of them: the figure and the percentage that it may not exceed."""

    terms: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a text such as "failed>2% or unknown>20%"; raises UserError if it is another."""
        return cls(parse_conditions(text, FIGURES, "--halt-if"))

    def broken(self, percentages: Mapping[str, float]) -> str | None:
        """In words, the first condition that holds; None if none does.

        Args:
            percentages: of the figures that are known.
        """
        for name, most in self.terms:
            if percentages.get(name, 0.0) > most:
                return f"{name} is {percentages[name]:.1f} %, more than {most:g} %"
        return None


@dataclass(frozen=True)
class RolloutPlan:
    """The stages of a rollout.

    Attributes:
        percents: of the channel's devices, ascending; the last stage stays.
        after: seconds that a stage lasts before the next begins.
        halt: what ends the ascent.
    """

    percents: tuple[float, ...] = (100.0,)
    after: float = 3600.0
    halt: HaltRule = HaltRule()

    @classmethod
    def build(
        cls, percent: float = 100.0, then: str | None = None, after: str | None = None, halt_if: str | None = None
    ) -> Self:
        """From the options of a command; raises UserError if they make no plan."""
        stages = [percent, *_percents(then or "")]
        for stage in stages:
            if not 0 < stage <= 100:
                raise UserError(f"A stage of {stage:g} % is out of range; a percentage is above 0 and at most 100.")
        if any(later <= earlier for earlier, later in pairwise(stages)):
            raise UserError(f"The stages {', '.join(f'{stage:g}' for stage in stages)} % do not ascend.")
        seconds = cls.after if after is None else span(after)
        return cls(tuple(stages), seconds, HaltRule() if halt_if is None else HaltRule.parse(halt_if))

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {"percents": list(self.percents), "after": self.after, "halt": [list(term) for term in self.halt.terms]}

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        """From `content`."""
        terms = tuple((str(name), float(most)) for name, most in content["halt"])
        return cls(tuple(map(float, content["percents"])), float(content["after"]), HaltRule(terms))


def span(text: str) -> float:
    """Seconds of a span such as 30s, 10m, 1h or 2d; raises UserError if it is none."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise UserError(f"{text!r} is not a span of time; write 30s, 10m, 1h or 2d.")
    return float(found[1]) * _SECONDS[found[2]]


def place(device: str, release: str) -> float:
    """Where a device stands in the rollout of a release, from 0 to below 100: the same at every stage and restart.

    Each release orders the devices anew, so that it is not always the same ones that try what is new.
    """
    value = int.from_bytes(hashlib.sha256(f"{release}/{device}".encode()).digest()[:8], "big")
    return 100 * value / 2**64


def _percents(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"{text!r} is not a list of percentages such as 25,100.") from error
