"""`fedgraft report`: a page, tables and figures of a run or of comparisons."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.cli.settings import Json
from fedgraft.core.errors import UserError

_STDOUT = "-"


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A run, a comparison, or comparisons on several data sets."),
    ],
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="html, tables as md, csv or latex, figures as svg, pdf or png; several times or with commas.",
            show_default="html",
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help='A directory, or "-" to print tables.', show_default="that of the run")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="The method that the others are set against.", show_default="the first of the comparison"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a report: a page that opens from disk, tables for papers, figures."""
    from fedgraft.reports import table_text, write_reports

    formats = [name.strip() for text in format_ or ["html"] for name in text.split(",") if name.strip()]
    if not formats:
        raise UserError("--format names no format.")
    if out == _STDOUT:
        if len(formats) > 1 or as_json:
            raise UserError("--out - prints one format of tables, without --json.")
        typer.echo(table_text(runs, formats[0], against), nl=False)
        return
    paths = write_reports(runs, formats, Path(out) if out else None, against)
    if as_json:
        page = next((str(path) for path in paths if path.suffix == ".html"), None)
        typer.echo(json.dumps({"report": page, "files": [str(path) for path in paths]}))
    else:
        for path in paths:
            typer.echo(f"Wrote {path}")
