"""What other packages can add under an entry-point group: names first, each loaded when it is used."""

from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fedgraft.errors import UserError, unknown


class Registry:
    """The entries of a group.

    Args:
        group: of entry points.
        kind: what users are told that the entries are, such as "method".
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group, self.kind = group, kind

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in sorted(entry_points(group=self.group), key=lambda point: point.name)}

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._points)

    def check(self, name: str) -> str:
        """Return the name.

        Raises:
            UserError: it is not registered.
        """
        if name not in self._points:
            raise unknown(self.kind, name, self.names())
        return name

    def load(self, name: str) -> Any:
        """What is registered under a name.

        Raises:
            UserError: nothing is, or its package cannot be imported.
        """
        point = self._points[self.check(name)]
        try:
            return point.load()
        except ImportError as error:
            raise UserError(
                f"The {self.kind} {name!r} is registered as {point.value}, which cannot be imported: {error}."
            ) from error


STRATEGIES = Registry("fedgraft.strategies", "strategy")
