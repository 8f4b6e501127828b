"""The five extension points ("doors"): entries of any package in an entry-point group, loaded when used."""

from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from fedgraft.config.options import Options, parse_options
from fedgraft.core.errors import UserError, unknown

if TYPE_CHECKING:
    from fedgraft.backbones.family import Family
    from fedgraft.data.protocols.protocol import Protocol
    from fedgraft.data.sources.source import Source
    from fedgraft.methods.method import Method
    from fedgraft.strategies.components import StrategyComponent
    from fedgraft.trackers.tracker import Tracker


@dataclass(frozen=True)
class Registered:
    """What an entry point refers to, whatever the door.

    Attributes:
        name: the name of the entry point.
        summary: what it is for, in half a sentence.
        options: its typed options, each with a default and an example.
    """

    kind: ClassVar[str]
    """What users see it called, such as "method"."""
    columns: ClassVar[tuple[str, ...]] = ()
    """The facts shown in the table of all entries."""

    name: str
    summary: str
    options: type[Options] = field(default=Options, kw_only=True)

    def facts(self) -> dict[str, Any]:
        """What it says about itself in listings, besides name, summary and options."""
        return {}

    def parse_options(self, values: dict[str, Any]) -> Any:
        """The validated options of a user, an instance of `options`.

        Raises:
            UserError: an option does not exist or has an invalid value.
        """
        return parse_options(self.options, values, self.kind, self.name)


Entry = TypeVar("Entry", bound=Registered)


class Registry(Generic[Entry]):
    """The entries of one door.

    Args:
        door: the last part of the entry-point group `fedgraft.<door>`.
        kind: what users see the entries called.
        entry: their class, as "package.module:Class".
    """

    def __init__(self, door: str, kind: str, entry: str) -> None:
        self.door, self.kind, self.group = door, kind, f"fedgraft.{door}"
        self._entry = entry

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        points: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            same = points.setdefault(point.name, [])
            if all((_package(point), point.value) != (_package(other), other.value) for other in same):
                same.append(point)
        return points

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._points)

    def check(self, name: str) -> str:
        """Return the name, or raise UserError if it is not registered."""
        if name not in self._points:
            raise unknown(self.kind, name, self.names())
        return name

    def load(self, name: str) -> Entry:
        """The entry of a given name.

        Raises:
            UserError: there is none or more than one, it cannot be imported, or it is of another type.
        """
        points = self._points[self.check(name)]
        where = f"The {self.kind} {name!r} of the package {_package(points[0])!r}"
        if len(points) > 1:
            packages = " and ".join(repr(_package(point)) for point in points)
            raise UserError(f"The {self.kind} {name!r} is registered by {packages}; uninstall one of them.")
        try:
            loaded = points[0].load()
        except Exception as error:  # third-party code may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{where} is registered as {points[0].value}, which cannot be imported: {reason}."
            ) from error
        module, _, expected = self._entry.partition(":")
        if not isinstance(loaded, getattr(import_module(module), expected)):
            raise UserError(f"{where} is a {type(loaded).__name__}, but {self.group} takes a {expected}.")
        if loaded.name != name:
            raise UserError(f"{where} calls itself {loaded.name!r}; its entry point must have the same name.")
        entry: Entry = loaded
        return entry

    def __iter__(self) -> Any:
        """All entries that load, sorted by name; `faults` reports the others."""
        for name in self.names():
            try:
                yield self.load(name)
            except UserError:
                continue

    def faults(self) -> list[str]:
        """A sentence for each entry that does not load."""
        sentences = []
        for name in self.names():
            try:
                self.load(name)
            except UserError as error:
                sentences.append(str(error))
        return sentences


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "unknown"


METHODS: "Registry[Method]" = Registry("methods", "method", "fedgraft.methods.method:Method")
STRATEGIES: "Registry[StrategyComponent]" = Registry(
    "strategies", "strategy", "fedgraft.strategies.components:StrategyComponent"
)
SOURCES: "Registry[Source]" = Registry("sources", "data source", "fedgraft.data.sources.source:Source")
PROTOCOLS: "Registry[Protocol]" = Registry("protocols", "protocol", "fedgraft.data.protocols.protocol:Protocol")
TRACKERS: "Registry[Tracker]" = Registry("trackers", "tracker", "fedgraft.trackers.tracker:Tracker")
BACKBONES: "Registry[Family]" = Registry("backbones", "backbone family", "fedgraft.backbones.family:Family")
