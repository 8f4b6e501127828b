"""The command `fedgraft`. Heavy imports stay inside the commands, so that help is quick."""

import errno
import sys
from collections.abc import Callable
from typing import Annotated

import click
import typer

from fedgraft.cli import listings, runs
from fedgraft.cli.backbones_import import import_backbone
from fedgraft.cli.data_check import check
from fedgraft.cli.deploy import run, up
from fedgraft.cli.doctor import cache_app, doctor
from fedgraft.cli.edge import device_app, export
from fedgraft.cli.examples import add_examples
from fedgraft.cli.fleet import fleet_app
from fedgraft.cli.fleet_monitoring import (
    device_agent,
    fleet_backup,
    fleet_embeddings,
    fleet_export_report,
    fleet_simulate,
    fleet_status,
)
from fedgraft.cli.monitoring import server_status, site_due, site_status
from fedgraft.cli.quickstart import quickstart
from fedgraft.cli.recipes import recipes
from fedgraft.cli.report import report
from fedgraft.cli.server import server_app
from fedgraft.cli.site import site_app
from fedgraft.cli.ticket import edge_report, ticket_app
from fedgraft.cli.track import track
from fedgraft.cli.watch import watch
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.plain_text import one_line

_INTERRUPTED, _LONGEST = 130, 2000

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated personalization of one frozen vision-language backbone, from simulation to edge devices.",
    epilog="Start with: fedgraft quickstart. Each command shows examples with --help.",
)
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Federations on this machine": (quickstart, runs.simulate, runs.compare, report, watch, track, runs.adapter),
    "Federations across machines": (up, run),
    "Devices": (export, edge_report),
    "What there is": (listings.methods, listings.strategies, listings.protocols, recipes),
    "This machine": (doctor,),
}
_GROUPS: dict[str, dict[str, typer.Typer]] = {
    "Federations across machines": {"server": server_app, "site": site_app},
    "Devices": {"device": device_app, "ticket": ticket_app, "fleet": fleet_app},
    "What there is": {"data": listings.data_app, "backbones": listings.backbones_app},
    "This machine": {"cache": cache_app},
}
for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for panel, groups in _GROUPS.items():
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=panel)
server_app.command("status")(server_status)
site_app.command("status")(site_status)
site_app.command("due")(site_due)
listings.data_app.command("check")(check)
listings.backbones_app.command("import")(import_backbone)
device_app.command("agent")(device_agent)
fleet_app.command("status")(fleet_status)
fleet_app.command("export-report")(fleet_export_report)
fleet_app.command("embeddings")(fleet_embeddings)
fleet_app.command("backup")(fleet_backup)
fleet_app.command("simulate")(fleet_simulate)
add_examples(app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from fedgraft import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; a mistake in the input is one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False, prog_name="fedgraft")
        if code == _INTERRUPTED:  # returned by click after Ctrl-C outside standalone mode
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except click.UsageError as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            typer.echo(error.format_message())
            sys.exit(0)
        _tell(f"{error.format_message()} See fedgraft --help.")
        sys.exit(2)
    except UserError as error:
        _tell(error)
        sys.exit(2)
    except RunFailed as error:
        _tell(error)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _tell(f"The path {error.filename} has a name that is too long for a file.")
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        typer.echo("fedgraft: stopped; run it again to resume (simulate and compare: with --resume).", err=True)
        sys.exit(_INTERRUPTED)


def _tell(problem: object) -> None:
    """Print a problem as one line, whatever names of the user's are in it."""
    typer.echo(f"fedgraft: {one_line(str(problem), _LONGEST)}", err=True)
