"""What a data source is, and `open_source("folder:photos")`, which finds one by what stands before the colon."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from fedgraft.config.registry import SOURCES, Registered
from fedgraft.core.errors import UserError
from fedgraft.data.examples import Examples


@dataclass(frozen=True)
class Source(Registered):
    """A registered data source.

    Attributes:
        open: from options and the run's seed to the table of examples.
        argument: the option that stands behind the colon, as in `folder:PATH`; empty where there is none.
        folder: the option that names a folder class/image or domain/class/image on this machine, which a local
            deployment divides among its sites; empty where there is none.
    """

    kind: ClassVar[str] = "data source"
    columns: ClassVar[tuple[str, ...]] = ("usage",)

    open: Callable[[Any, int], Examples]
    _: KW_ONLY
    argument: str = ""
    folder: str = ""

    @property
    def usage(self) -> str:
        """How it is written, such as `folder:PATH`."""
        if not self.argument:
            return self.name
        behind = f":{self.argument.upper()}"
        return self.name + (behind if self.options.model_fields[self.argument].is_required() else f"[{behind}]")

    def facts(self) -> dict[str, str]:
        """How it is written."""
        return {"usage": self.usage}

    def parse(self, argument: str, values: dict[str, Any]) -> Any:
        """Its options from what stands behind the colon, and from a table.

        Raises:
            UserError: the argument is missing or takes no part, or an option is wrong.
        """
        if argument and not self.argument:
            raise UserError(f"The data source {self.name!r} takes no argument, not {argument!r}.")
        if argument:
            values = {**values, self.argument: argument}
        elif self.argument not in values and self.argument and self.options.model_fields[self.argument].is_required():
            raise UserError(f"The data source {self.name!r} needs an argument: {self.usage}.")
        return self.parse_options(values)


def find_source(spec: str, values: dict[str, Any] | None = None) -> tuple[Source, Any]:
    """The source that a specification names, and its options.

    Raises:
        UserError: there is no such source, or an option is wrong.
    """
    name, _, argument = spec.partition(":")
    source = SOURCES.load(name)
    return source, source.parse(argument, values or {})


def open_source(spec: str, seed: int, values: dict[str, Any] | None = None) -> Examples:
    """Read the examples of a source such as "digits", "shapes:noisy" or "folder:photos".

    Raises:
        UserError: there is no such source, or its files are not as they should be.
    """
    source, options = find_source(spec, values)
    return source.open(options, seed)
