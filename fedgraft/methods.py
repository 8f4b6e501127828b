"""The table of methods: names from the entry-point group `fedgraft.methods`, loaded when one is used."""

from typing import TYPE_CHECKING

from fedgraft.registry import Registry

if TYPE_CHECKING:
    from fedgraft.adapters.base import Method

GROUP = "fedgraft.methods"
_METHODS = Registry(GROUP, "method")


def method_names() -> tuple[str, ...]:
    """The names of all registered methods, sorted."""
    return _METHODS.names()


def check_method(name: str) -> str:
    """Return the name.

    Raises:
        UserError: no such method is registered.
    """
    return _METHODS.check(name)


def load_method(name: str) -> "Method":
    """The method of a name.

    Raises:
        UserError: it is not registered, or its package cannot be imported.
    """
    method: Method = _METHODS.load(name)
    return method
