"""The table of data sources. `open_source("folder:photos")` finds the source by what stands before the colon."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from fedgraft.data.examples import Examples
from fedgraft.errors import UserError, unknown


@dataclass(frozen=True)
class SourceRequest:
    """What a source is opened with: the text after the colon, the run's seed, and whether folders hold domains."""

    argument: str
    seed: int
    force_domains: bool = False


@dataclass(frozen=True)
class Source:
    """One entry of the table."""

    module: str
    usage: str
    summary: str

    def open(self, request: SourceRequest) -> Examples:
        """Read the source."""
        reader: Callable[[SourceRequest], Examples] = import_module(self.module).open_examples
        return reader(request)


SOURCES: dict[str, Source] = {
    "characters": Source(
        "fedgraft.data.characters",
        "characters",
        "36 letters and digits from fonts that pretraining never saw; classes share no words",
    ),
    "digits": Source("fedgraft.data.digits", "digits", "1,797 real handwritten digits (scikit-learn)"),
    "folder": Source("fedgraft.data.folder", "folder:PATH", "your images as class/image or domain/class/image"),
    "hf": Source("fedgraft.data.hub", "hf:ID", "a Hugging Face dataset with an image and a label column"),
    "shapes": Source(
        "fedgraft.data.shapes",
        "shapes[:STYLE,...]",
        "120 unseen colour-texture-shape classes in six rendering styles, three of them never pretrained on",
    ),
}


def check_source(spec: str) -> tuple[Source, str]:
    """The source that a specification names, and its argument.

    Raises:
        UserError: no such source, or an argument is missing.
    """
    name, _, argument = spec.partition(":")
    if name not in SOURCES:
        raise unknown("data source", name, SOURCES)
    source = SOURCES[name]
    if not argument and source.usage.split(":")[-1] in ("PATH", "ID"):
        raise UserError(f"The data source {name!r} needs an argument: {source.usage}.")
    return source, argument


def open_source(spec: str, seed: int, force_domains: bool = False) -> Examples:
    """Read the examples of a source such as "digits", "shapes:noisy" or "folder:photos".

    Raises:
        UserError: no such source, or its files are not as they should be.
    """
    source, argument = check_source(spec)
    return source.open(SourceRequest(argument, seed, force_domains))
