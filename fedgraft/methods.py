"""The table of methods: names from the entry-point group `fedgraft.methods`, loaded when one is used."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from fedgraft.errors import UserError, unknown

if TYPE_CHECKING:
    from fedgraft.adapters.base import Method

GROUP = "fedgraft.methods"


@cache
def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def method_names() -> tuple[str, ...]:
    """The names of all registered methods, sorted."""
    return tuple(_registered())


def check_method(name: str) -> str:
    """Return the name.

    Raises:
        UserError: no such method is registered.
    """
    if name not in _registered():
        raise unknown("method", name, method_names())
    return name


def load_method(name: str) -> "Method":
    """The method of a name.

    Raises:
        UserError: it is not registered, or its package cannot be imported.
    """
    point = _registered()[check_method(name)]
    try:
        loaded: Method = point.load()
    except ImportError as error:
        raise UserError(
            f"The method {name!r} is registered as {point.value}, which cannot be imported: {error}."
        ) from error
    return loaded
