"""What a data source is, and how a specification such as "folder:photos" names one."""

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
        open: makes the table of examples from the options and the run's seed.
        argument: the option given after the colon, as in `folder:PATH`; empty if there is none.
        folder: the option that names a local folder class/image or domain/class/image, which a local deployment
            divides among its sites; empty if there is none.
        local: the option that names a local file or folder; empty if there is none.
    """

    kind: ClassVar[str] = "data source"
    columns: ClassVar[tuple[str, ...]] = ("usage",)

    open: Callable[[Any, int], Examples]
    _: KW_ONLY
    argument: str = ""
    folder: str = ""
    local: str = ""

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
        """The options, from the argument after the colon and a table.

        Raises:
            UserError: the argument is missing or not accepted, or an option is invalid.
        """
        if argument and not self.argument:
            raise UserError(f"The data source {self.name!r} takes no argument, not {argument!r}.")
        if argument:
            values = {**values, self.argument: argument}
        elif self.argument not in values and self.argument and self.options.model_fields[self.argument].is_required():
            raise UserError(f"The data source {self.name!r} needs an argument: {self.usage}.")
        return self.parse_options(values)


def find_source(spec: str, values: dict[str, Any] | None = None) -> tuple[Source, Any]:
    """The source that a specification names, and its options; raises UserError if either is unknown or invalid."""
    name, _, argument = spec.partition(":")
    source = SOURCES.load(name)
    return source, source.parse(argument, values or {})


def open_source(spec: str, seed: int, values: dict[str, Any] | None = None) -> Examples:
    """Read the examples of a source such as "digits", "shapes:noisy" or "folder:photos".

    Raises:
        UserError: there is no such source, or its files are missing or malformed.
    """
    source, options = find_source(spec, values)
    return source.open(options, seed)
