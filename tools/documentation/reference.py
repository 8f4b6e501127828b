"""The pages of the reference that are written from the program itself: every command, and every entry of every door."""

from collections.abc import Iterator
from typing import Any

import click
import typer

from fedgraft.config.registry import Registered, Registry

DOORS = {
    "methods": "What a site trains, and how the server aggregates it. [Methods](../methods.md) compares them.",
    "strategies": "What any method that shares parameters can be combined with.",
    "sources": "Where images come from: the part of `--data` before the colon.",
    "protocols": "How images are dealt to sites, and what is measured.",
    "backbones": "How a backbone is loaded, and what its towers can do.",
}
"""The registries by the name of their page, with its first sentence."""


def door_page(name: str) -> str:
    """Markdown of all entries of a door with their options.

    Args:
        name: a key of `DOORS`.
    """
    from fedgraft.config import registry

    entries: Registry[Any] = getattr(registry, name.upper())
    title = name.capitalize().replace("Sources", "Data sources").replace("Backbones", "Backbone families")
    return "\n".join([f"# {title}", "", DOORS[name], *(line for entry in entries for line in _entry(entry))]) + "\n"


def _entry(entry: Registered) -> Iterator[str]:
    yield from ("", f"## `{entry.name}`", "", f"{_sentence(entry.summary)}", "")
    for key, value in entry.facts().items():
        yield f"- {key}: {_text(', '.join(map(str, value)) if isinstance(value, list | tuple) else value) or 'nothing'}"
    if entry.options.model_fields:
        yield from ("", "| option | default | example | what it is |", "|---|---|---|---|")
        for key, field in entry.options.model_fields.items():
            default = "required" if field.is_required() else _code(repr(field.default))
            example = _code(repr(field.examples[0])) if field.examples else ""
            yield f"| `{key}` | {default} | {example} | {_text(field.description or '')} |"


def commands_page() -> str:
    """Markdown of all commands with their arguments and options."""
    from fedgraft.cli.main import app

    lines = ["# Commands", "", "Every command exits with 0 when it is done, 2 for a mistake in the input, 1 otherwise."]
    lines += _command(typer.main.get_command(app), "fedgraft", 2)
    return "\n".join(lines) + "\n"


def _command(command: click.Command, path: str, level: int) -> Iterator[str]:
    if command.hidden:
        return
    if isinstance(command, click.Group):
        if path != "fedgraft":
            yield from ("", f"{'#' * level} `{path}`", "", _sentence(command.help or ""))
        for name, each in command.commands.items():
            yield from _command(each, f"{path} {name}", level + (path != "fedgraft"))
        return
    yield from ("", f"{'#' * level} `{path}`", "", command.help or "", "")
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    names = " ".join(each.make_metavar(click.Context(command)) for each in arguments)
    yield from ("<!-- not run: usage -->", "```console", f"$ {path} [OPTIONS] {names}".rstrip(), "```", "")
    yield from ("| option | default | what it is |", "|---|---|---|")
    for each in command.params:
        yield f"| {_names(each)} | {_default(each)} | {_text(getattr(each, 'help', '') or '')} |"


def _names(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return f"`{parameter.human_readable_name}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: click.Parameter) -> str:
    shown = getattr(parameter, "show_default", None)
    if parameter.required:
        return "required"
    if isinstance(shown, str):
        return _text(shown)
    empty = parameter.default is None or parameter.default in (False, [], ()) or callable(parameter.default)
    return "" if empty else _code(str(parameter.default))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


def _text(value: object) -> str:
    """Plain text that may stand in a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _code(value: str) -> str:
    """The same for code."""
    return f"`{value}`".replace("|", "\\|")
