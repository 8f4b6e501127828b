"""Several data sources at once, for protocols that train on some data sets and measure on others."""

import re
from pathlib import Path

from pydantic import Field

from fedgraft.config.notation import parse_assignments, split
from fedgraft.config.options import Options
from fedgraft.core.errors import UserError
from fedgraft.data.examples import DataSet, Examples
from fedgraft.data.joined import join
from fedgraft.data.sources.source import Source, find_source

_WITH_OPTIONS = re.compile(r"(.*?)\(([^()]*=[^()]*)\)", re.DOTALL)


class SeveralOptions(Options):
    """Which data sources."""

    sources: str = Field(
        description="joined by plus signs, each as --data takes it, with its options in parentheses",
        examples=["digits+characters"],
    )


def open_examples(options: SeveralOptions, seed: int) -> Examples:
    """Open each source as it is opened alone.

    Raises:
        UserError: there are fewer than two, or one cannot be opened.
    """
    specs = [word.strip() for word in split(options.sources, "+")]
    if "" in specs or len(specs) < 2:
        raise UserError(f"several: takes at least two data sources joined by +, not {options.sources!r}.")
    return join([DataSet(name, _opened(spec, seed)) for name, spec in zip(_names(specs), specs, strict=True)])


def _opened(spec: str, seed: int) -> Examples:
    bare, values = _parsed(spec)
    source, options = find_source(bare, values)
    if source is SOURCE:
        raise UserError(f"several: takes plain data sources, not {spec!r}; list them all in one line.")
    examples: Examples = source.open(options, seed)
    return examples


def _parsed(spec: str) -> tuple[str, dict[str, object]]:
    """The specification without its options, and the options."""
    match = _WITH_OPTIONS.fullmatch(spec)
    return (match[1].strip(), parse_assignments(match[2], match[1])) if match else (spec, {})


def _names(specs: list[str]) -> list[str]:
    """The last part of each specification where that tells them apart, and the whole of it otherwise."""
    bare = [_parsed(spec)[0] for spec in specs]
    short = [Path(spec.rpartition(":")[2]).name or spec for spec in bare]
    return [spec if short.count(name) > 1 else name for spec, name in zip(bare, short, strict=True)]


SOURCE = Source(
    "several",
    "several of these at once, each with its own classes: several:digits+characters",
    open_examples,
    options=SeveralOptions,
    argument="sources",
)
