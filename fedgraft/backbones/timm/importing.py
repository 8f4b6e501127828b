"""timm without torchvision.

timm imports torchvision for training transforms, data sets and one norm layer of detectors; no model's forward uses it.
A CPU build of torch beside the registry's torchvision, built for CUDA, cannot import it. So where torchvision is
missing or fails, timm is imported with stand-ins in its place, which are taken away again afterwards.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from fedgraft.core.errors import UserError

_MISSING = "torchvision"


def import_timm() -> Any:
    """The package timm; raises UserError without the extra."""
    try:
        with without_torchvision():
            return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise UserError(
            "This backbone's image tower is one of timm, which is not installed; run: pip install 'fedgraft[timm]'."
        ) from error


def is_installed() -> bool:
    """Whether the extra is there."""
    return find_spec("timm") is not None


@contextmanager
def without_torchvision() -> Iterator[None]:
    """Let imports of torchvision find stand-ins if it cannot be imported itself."""
    if _importable():
        yield
        return
    finder = _StandInFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget()


def _importable() -> bool:
    try:
        importlib.import_module(_MISSING)
    except (ImportError, RuntimeError, OSError):
        _forget()
        return False
    return True


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == _MISSING]:
        del sys.modules[name]


class _AnyAttribute(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name)


def _stand_in(name: str) -> type:
    """A class of which nothing is an instance, for imports, base classes, annotations and isinstance."""
    return _AnyAttribute(name, (), {})


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _stand_in(name)
        setattr(self, name, found)
        return found


class _StandInFinder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A stand-in for torchvision and what is in it."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == _MISSING else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty module in which every name is a class."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
