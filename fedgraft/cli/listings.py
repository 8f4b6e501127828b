"""`fedgraft methods`, `strategies`, `data`, `protocols` and `backbones`: all registered entries."""

import json
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fedgraft.cli.settings import Json
from fedgraft.config.registry import BACKBONES, METHODS, PROTOCOLS, SOURCES, STRATEGIES, Registered, Registry

Name = Annotated[str | None, typer.Argument(help="Show only this one, with its options.", show_default="all")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show all options.")]


def methods(name: Name = None, verbose: Verbose = False, as_json: Json = False) -> None:
    """What a site can train, and how the server aggregates it."""
    _list(METHODS, name, verbose, as_json)


def strategies(name: Name = None, verbose: Verbose = False, as_json: Json = False) -> None:
    """What any method that shares parameters can be combined with."""
    _list(STRATEGIES, name, verbose, as_json)


class _ListUnlessNamed(TyperGroup):
    """A group whose command `list` is run where none of its commands is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` in front of anything but a command or a call for help."""
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["list", *args])


data_app = typer.Typer(cls=_ListUnlessNamed, help="Where images can come from, and how a source is read.")


@data_app.command("list")
def data(name: Name = None, verbose: Verbose = False, as_json: Json = False) -> None:
    """Where images can come from."""
    _list(SOURCES, name, verbose, as_json)


def protocols(name: Name = None, verbose: Verbose = False, as_json: Json = False) -> None:
    """How images are assigned to sites, and what is measured."""
    _list(PROTOCOLS, name, verbose, as_json)


backbones_app = typer.Typer(cls=_ListUnlessNamed, help="Which backbones can be loaded, and how others are imported.")


@backbones_app.command("list")
def backbones(name: Name = None, verbose: Verbose = False, as_json: Json = False) -> None:
    """Which backbones can be loaded, and what their towers can do."""
    _list(BACKBONES, name, verbose, as_json)


def _list(registry: Registry[Any], name: str | None, verbose: bool, as_json: bool) -> None:
    entries: list[Registered] = list(registry) if name is None else [registry.load(name)]
    if as_json:
        typer.echo(json.dumps([_described(entry) for entry in entries]))
    elif name is None and not verbose:
        _print_table(entries)
    else:
        for entry in entries:
            _print_entry(entry)
    if name is None:
        for fault in registry.faults():
            typer.echo(f"fedgraft: {fault}", err=True)


def _described(entry: Registered) -> dict[str, Any]:
    fields = entry.options.model_fields.items()
    options = {key: None if field.is_required() else field.default for key, field in fields}
    return {"name": entry.name, "summary": entry.summary, **entry.facts(), "options": options}


def _written(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _print_table(entries: list[Registered]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = entries[0].columns
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("name", no_wrap=True, min_width=max(len(entry.name) for entry in entries))
    for column in columns:
        table.add_column(column, no_wrap=len(column) > 10)
    table.add_column("what it is for", overflow="fold")
    for entry in entries:
        facts = entry.facts()
        table.add_row(entry.name, *(escape(_written(facts[column])) for column in columns), escape(entry.summary))
    Console().print(table)


def _print_entry(entry: Registered) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{entry.name}[/bold]: {escape(entry.summary)}", highlight=False)
    for key, value in entry.facts().items():
        console.print(f"  {key}: {escape(_written(value)) or 'nothing'}", highlight=False)
    if entry.options.model_fields:
        table = Table("option", "default", "example", "description", box=box.SIMPLE, pad_edge=False)
        for key, field in entry.options.model_fields.items():
            default = "required" if field.is_required() else repr(field.default)
            table.add_row(key, *map(escape, (default, repr((field.examples or [""])[0]), field.description or "")))
        console.print(table)
