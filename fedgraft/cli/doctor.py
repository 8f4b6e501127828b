"""`fedgraft doctor` and `fedgraft cache`: what works here, and what is kept between runs."""

import json
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from fedgraft.cli.settings import Json

if TYPE_CHECKING:
    from fedgraft.doctor.finding import Finding

cache_app = typer.Typer(no_args_is_help=True, help="What is kept between runs: sizes, and how to clear it.")
_MANY = 10
"""So many fine findings of an area share one line."""
_MARKS = {"fine": "[green]fine[/]", "note": "[yellow]note[/]", "fails": "[bold red]fails[/]"}


def doctor(as_json: Json = False) -> None:
    """Check versions, processors, GPUs, disk, caches, ports and the kernel; exit code 1 if something will fail."""
    from fedgraft.doctor.examination import examine, fails

    found = examine()
    failing = fails(found)
    if as_json:
        typer.echo(json.dumps({"ok": not failing, "findings": [asdict(finding) for finding in found]}))
    else:
        _show(found)
    raise typer.Exit(1 if failing else 0)


@cache_app.command("show")
def cache_show(as_json: Json = False) -> None:
    """What the cache holds, and its size."""
    from fedgraft.core.files import cache_root
    from fedgraft.doctor.caches import caches, size

    found = caches()
    if as_json:
        kept = [{**asdict(cache), "path": str(cache.path)} for cache in found]
        typer.echo(json.dumps({"folder": str(cache_root()), "caches": kept}))
        return
    for cache in found:
        typer.echo(f"{cache.name:<10} {size(cache.bytes):>10}  {cache.holds}")
    typer.echo(f"{'total':<10} {size(sum(cache.bytes for cache in found)):>10}  {cache_root()}")


@cache_app.command("clear")
def cache_clear(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="All unless given.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what is cached; the next run makes it again. Not while a run is at work."""
    from fedgraft.core.files import cache_root
    from fedgraft.doctor.caches import clear, require_known, size

    require_known(names or ())
    if not (yes or as_json):
        typer.confirm(f"Remove {', '.join(names) if names else 'everything'} cached in {cache_root()}?", abort=True)
    cleared = clear(names or ())
    freed = sum(cache.bytes for cache in cleared)
    if as_json:
        typer.echo(json.dumps({"cleared": [cache.name for cache in cleared], "bytes": freed}))
    else:
        typer.echo(f"Removed {', '.join(cache.name for cache in cleared) or 'nothing'}: {size(freed)}.")


def _show(found: "list[Finding]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("", "", ""):
        table.add_column(column, overflow="fold")
    for area, findings in groupby(found, key=lambda finding: finding.area):
        table.add_row(f"[bold]{escape(area)}[/]", "", "")
        shown = list(findings)
        fine = [finding for finding in shown if finding.state == "fine"]
        if len(fine) > _MANY:
            versions = ", ".join(f"{finding.name} {finding.text}" for finding in fine)
            table.add_row(_MARKS["fine"], f"{len(fine)} of {len(shown)}", escape(versions))
            shown = [finding for finding in shown if finding not in fine]
        for finding in shown:
            text = escape(finding.text) + (f" → {escape(finding.fix)}" if finding.fix else "")
            table.add_row(_MARKS[finding.state], escape(finding.name), text)
    console.print(table)
    counts = {state: sum(finding.state == state for finding in found) for state in _MARKS}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()) + ".", highlight=False)
