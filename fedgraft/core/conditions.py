"""Conditions such as "failed>2% or unknown>20%": figures, each with the value that it may not exceed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedgraft.core.errors import UserError

_TERM = re.compile(r"\s*([a-z_]+)\s*>\s*(\d+(?:\.\d+)?)\s*(%?)\s*")
_SHOWN = 80


@dataclass(frozen=True)
class Figure:
    """What a condition may name.

    Attributes:
        meaning: in words.
        example: a condition on it.
        unit: after the number, "%" or "".
        largest: value that a condition may give.
    """

    meaning: str
    example: str
    unit: str = "%"
    largest: float = 100.0


def parse_conditions(text: str, figures: Mapping[str, Figure], where: str) -> tuple[tuple[str, float], ...]:
    """The names and largest values of conditions that are joined by "or".

    Args:
        figures: that may be named.
        where: the text stands, for the message.

    Raises:
        UserError: a part of the text is no condition on one of the figures.
    """
    terms = []
    for part in text.split(" or "):
        found = _TERM.fullmatch(part)
        figure = figures.get(found[1]) if found else None
        if found is None or figure is None or found[3] != figure.unit or float(found[2]) > figure.largest:
            examples = [known.example for known in figures.values()]
            ranges = ", ".join(f"{name} from 0 to {known.largest:g}{known.unit}" for name, known in figures.items())
            raise UserError(
                f"{part.strip()[:_SHOWN]!r} in {where} is not a condition; write one as {examples[0]}, or several as "
                f'"{" or ".join(examples)}"; known: {ranges}.'
            )
        terms.append((found[1], float(found[2])))
    return tuple(terms)
