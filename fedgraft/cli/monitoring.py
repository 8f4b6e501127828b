"""`fedgraft server status`, `fedgraft site status` and `fedgraft site due`: tables, JSON, exit codes for monitoring."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedgraft.cli.consoles import table_console
from fedgraft.cli.settings import Json

if TYPE_CHECKING:
    from fedgraft.deployment.folder_status import FolderStatus
    from fedgraft.deployment.server_status import RunStatus, SiteLine

_DAY = 86400.0


def server_status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")], as_json: Json = False
) -> None:
    """Show whether the server runs, the round, and each site; exit code 1 if something needs attention."""
    from fedgraft.deployment.server_status import server_status as status_of
    from fedgraft.runs.server_folder import ServerFolder

    status = status_of(ServerFolder.open(folder))
    if not as_json:
        console = table_console()
        _print_folder(console, "server", status.folder, f"port {status.port}")
        _print_run(console, status.run, status.unfinished)
        console.print(_table_of_sites(status.sites))
    _end(asdict(status), as_json, status.folder.problems)


def site_status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")], as_json: Json = False
) -> None:
    """Show whether the site runs, is connected and works on a message; exit code 1 if something needs attention."""
    from fedgraft.deployment.site_status import site_status as status_of
    from fedgraft.runs.site_folder import SiteFolder

    status = status_of(SiteFolder.open(folder))
    if not as_json:
        console = table_console()
        _print_folder(
            console, f"site {escape(status.name)}", status.folder, f"server {status.server or 'not known yet'}"
        )
        connected = f"since {_clock(status.connected)}" if status.connected else "no"
        console.print(f"Connected: {connected}. Messages: {status.doing}, worker: {status.task or 'idle'}.")
        if status.received:
            answered = _clock(status.answered) if status.answered and status.answered >= status.received else "not yet"
            console.print(f"Newest message: {status.message}, received {_clock(status.received)}, answered {answered}.")
        if status.peers is None:
            console.print("Peers: no list, so other sites' keys in masked sums are not checked.")
        else:
            console.print(f"Peers: {escape(', '.join(status.peers)) or 'none, so it takes part in no masked sum'}.")
        if status.fleet is not None and not status.fleet.stale:  # that is a problem below
            console.print(escape(status.fleet.in_words))
        for run, newest in status.runs.items():
            console.print(f"Run {escape(run)}: trained up to round {newest}.")
    _end(asdict(status), as_json, status.folder.problems)


def site_due(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing; the exit code is the answer.")] = False,
    as_json: Json = False,
) -> None:
    """Say whether the site's devices ask for the next federation: exit code 0 if they do, 1 if they do not."""
    from fedgraft.core.errors import UserError
    from fedgraft.runs.fleet_request import fleet_request
    from fedgraft.runs.site_folder import SiteFolder

    request = fleet_request(SiteFolder.open(folder))
    if request is None:
        raise UserError(
            f"{folder / 'site.toml'} names no report of devices; give the file that `fedgraft fleet export-report "
            f"--out` writes as report in the table [fleet]."
        )
    if not quiet:
        typer.echo(json.dumps(asdict(request)) if as_json else request.in_words)
    if not request.asks:
        raise typer.Exit(1)


def _print_folder(console: Console, title: str, status: "FolderStatus", where: str) -> None:
    running = f"running since {_clock(status.began)}, process {status.pid}" if status.pid else "stopped"
    version = f"fedgraft {status.version}" if status.version else "never started"
    console.print(f"[bold]{title}[/bold]: {running}, {version}, {where}")
    days = ", ".join(f"{escape(name)} {left} days" for name, left in status.certificate_days.items())
    console.print(f"Disk: {status.disk_free_bytes / 2**30:.1f} GB free. Certificates: {days or 'none yet'}.")
    for process in status.processes:
        state = "running" if process.running else "ended"
        console.print(f"  {process.name:10} {state}, process {process.pid}, restarted {process.restarts} times")
    if status.shortcoming:
        console.print(escape(status.shortcoming))


def _print_run(console: Console, run: "RunStatus | None", unfinished: Sequence[str]) -> None:
    if run is None:
        console.print("No run was submitted yet.")
        return
    began = f", the present round since {_clock(run.round_began)}" if run.state == "running" else ""
    console.print(f"Run {escape(run.path)}: {run.state}, {run.round} of {run.rounds} rounds complete{began}.")
    for path in unfinished:
        console.print(f"Not finished: {escape(path)}.")


def _table_of_sites(sites: Sequence["SiteLine"]) -> Table:
    table = Table("site", "number", "state", "last request", "last answer", "last round", "remark")
    for site in sites:
        number, newest = ("" if value is None else str(value) for value in (site.number, site.last_round))
        words = [site.name, number, site.state, _clock(site.seen), _clock(site.answered), newest, site.reason]
        table.add_row(*map(escape, words))
    return table


def _end(status: dict[str, object], as_json: bool, problems: Sequence[str]) -> None:
    if as_json:
        typer.echo(json.dumps(status))
    else:
        for problem in problems:
            typer.echo(f"Problem: {problem}")
    if problems:
        raise typer.Exit(1)


def _clock(seconds: float | None) -> str:
    """A time of this machine's clock; with its date if it is not of the last day."""
    if seconds is None:
        return ""
    recent = time.time() - seconds < _DAY
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S" if recent else "%Y-%m-%d %H:%M")
