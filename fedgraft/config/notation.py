"""What a user writes in one line: `fedpgp(rank=4)+median`, terms with options, joined by plus signs."""

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

from fedgraft.core.errors import UserError

_TERM = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Term:
    """A name and its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_terms(text: str) -> list[Term]:
    """The terms of a line; an empty line has none. Raises UserError if a term is not NAME or NAME(key=value, ...)."""
    return [_term(word, text) for word in split(text, "+")] if text.strip() else []


def split(text: str, separator: str) -> list[str]:
    """The pieces of a text between separators outside parentheses and brackets.

    Raises:
        UserError: a parenthesis or bracket is unbalanced.
    """
    pieces, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth < 0:
            break
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    if depth:
        raise UserError(f"The parentheses of {text!r} do not match.")
    return pieces


def parse_assignments(text: str, name: str) -> dict[str, Any]:
    """Options from `key=value, key=value`, read as TOML or else as text; `name` is their owner, for messages.

    Raises:
        UserError: a piece is not key=value.
    """
    options = {}
    for assignment in split(text, ",") if text.strip() else []:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"The options of {name!r} must be key=value, not {assignment.strip()!r}.")
        options[key.strip()] = read_value(value.strip())
    return options


def read_value(text: str) -> Any:
    """A value parsed as TOML, or the text itself if it is not TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _term(word: str, text: str) -> Term:
    if not (match := _TERM.fullmatch(word)):
        raise UserError(
            f"{word.strip()!r} in {text!r} is not NAME or NAME(key=value, ...); "
            "several are joined by +, for example trimmed-mean(fraction=0.2)."
        )
    name, inside = match.groups()
    return Term(name, parse_assignments(inside or "", name))
