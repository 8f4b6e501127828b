"""Command-line options generated from a pydantic model's fields: name, type, help and default are written once."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Command = Callable[..., None]
_PLAIN = (bool, int, float, str)


def with_fields(
    model: type[BaseModel], panel: str, without: Collection[str] = (), defaults: Mapping[str, object] | None = None
) -> Callable[[Command], Command]:
    """Give a command an option for each plain field of a model; the values given arrive as `settings`.

    Args:
        panel: the heading of these options in the command's help.
        without: fields that the command does not offer.
        defaults: the command's own, shown in its help in place of the fields'.
    """
    shown = {name: field.default for name, field in model.model_fields.items()} | dict(defaults or {})
    kinds = {name: _plain_type(field.annotation) for name, field in model.model_fields.items() if name not in without}
    fields = {name: (kind, model.model_fields[name]) for name, kind in kinds.items() if kind is not None}

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, _option(field, shown[name], panel)],
            )
            for name, (kind, field) in fields.items()
        ]

        @wraps(command)
        def wrapper(**given: Any) -> None:
            settings = {name: value for name in fields if (value := given.pop(name)) is not None}
            command(settings=settings, **given)

        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        wrapper.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
        return wrapper

    return decorate


def _option(field: FieldInfo, default: object, panel: str) -> Any:
    text = field.description or ""
    if get_origin(field.annotation) is Literal:
        text += f" ({', '.join(map(str, get_args(field.annotation)))})"
    shown = False if default in ("", None) else str(default)
    return typer.Option(help=text[:1].upper() + text[1:] + ".", show_default=shown, rich_help_panel=panel)


def _plain_type(annotation: Any) -> type | None:
    """The command-line type of a field; None for a field that is not a single value."""
    if get_origin(annotation) is Literal:
        return str  # the model itself checks the value
    if isinstance(annotation, UnionType):
        inner = [kind for kind in get_args(annotation) if kind is not NoneType]
        return _plain_type(inner[0]) if len(inner) == 1 else None
    return annotation if annotation in _PLAIN else None
