"""When devices ask for the next federation: what may be unknown to them, and how far their confidence may fall.

The rule reads telemetry by group, of which only the newest version counts: what an older one did not know, the newer
one may have learned.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from fedgraft.core.conditions import Figure, parse_conditions

FIGURES = {
    "unknown": Figure("predictions that were called unknown", "unknown>20%"),
    "drift": Figure("by which the mean confidence has fallen", "drift>0.1", "", 1.0),
}
"""What a rule may name."""


class GroupLine(Protocol):
    """What the devices of a group report of a version."""

    @property
    def version(self) -> int:
        """Of the bundle."""

    @property
    def group(self) -> str:
        """The group's name."""

    @property
    def unknown(self) -> float:
        """Percent of the predictions."""

    @property
    def drift(self) -> float | None:
        """The mean confidence of late predictions minus that of the first ones."""


Line = TypeVar("Line", bound=GroupLine)


@dataclass(frozen=True)
class RetrainRule:
    """The conditions, any one of which asks for the next federation: a figure and what it may not exceed."""

    terms: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """From a text such as "unknown>20% or drift>0.1"; raises UserError that names `where` if it is another."""
        return cls(parse_conditions(text, FIGURES, where))

    def reasons(self, lines: Iterable[GroupLine]) -> list[str]:
        """A sentence without its full stop for each condition that holds in a group."""
        return [
            said for line in newest_lines(lines) for name, most in self.terms if (said := _reason(line, name, most))
        ]


def newest_lines(lines: Iterable[Line]) -> list[Line]:
    """The line of each group's newest version."""
    newest: dict[str, Line] = {}
    for line in lines:
        if line.group not in newest or line.version > newest[line.group].version:
            newest[line.group] = line
    return list(newest.values())


def _reason(line: GroupLine, figure: str, most: float) -> str:
    where = f"group {line.group!r}, version {line.version}"
    if figure == "unknown" and line.unknown > most:
        return f"{where}: {line.unknown:.1f} % of the predictions are unknown, more than {most:g} %"
    if figure == "drift" and line.drift is not None and -line.drift > most:
        return f"{where}: the mean confidence fell by {-line.drift:.3f}, more than {most:g}"
    return ""
