"""`fedgraft server ...`: a deployed server's folder, its processes and the admitted sites."""

import json
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgraft.cli.settings import Json, MetricsPort
from fedgraft.core import ports

if TYPE_CHECKING:
    from fedgraft.flower.run_state import Wanted
    from fedgraft.runs.run_queue import QueuedRun

server_app = typer.Typer(no_args_is_help=True, help="A deployed server: its folder, its processes, the admitted sites.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
Name = Annotated[str, typer.Argument(help="The site's name on the server.")]
Run = Annotated[str, typer.Argument(help="The run directory, or its name.")]
_AS = "as before"


@server_app.command("init")
def server_init(
    folder: Folder,
    host: Annotated[list[str] | None, typer.Option(help="A name or address by which sites reach the server.")] = None,
    port: Annotated[int, typer.Option(help="The port that sites reach.")] = ports.SERVER,
) -> None:
    """Create a server's folder with a certificate authority and a certificate."""
    from fedgraft.runs.certificates import is_host
    from fedgraft.runs.server_folder import ServerFolder

    machine = [name for name in [socket.gethostname()] if is_host(name)]
    hosts = list(dict.fromkeys([*(host or []), *machine, "localhost", "127.0.0.1"]))
    server = ServerFolder.create(folder, hosts, port)
    typer.echo(f"Wrote {folder} for {', '.join(hosts)}. Every site needs {server.authority}.")


@server_app.command("start")
def server_start(folder: Folder, metrics_port: MetricsPort = None) -> None:
    """Run Flower's SuperLink until Ctrl-C."""
    from fedgraft.deployment.running_server import RunningServer
    from fedgraft.deployment.service import log_to_folder, run_until_ended
    from fedgraft.runs.server_folder import ServerFolder

    server = RunningServer(ServerFolder.open(folder))
    log_to_folder(server)
    for process in server.processes.values():
        typer.echo(f"$ {shlex.join(process.command)}")

    def say_ready() -> None:
        typer.echo(f"Ready on port {server.folder.port}; {len(server.folder.admitted())} sites are admitted.")

    run_until_ended(server, metrics_port, say_ready)


@server_app.command("admit")
def server_admit(
    folder: Folder,
    key: Annotated[Path, typer.Argument(help="keys/site.pub of a site.")],
    replace: Annotated[bool, typer.Option("--replace", help="It is a new key of a site that is admitted.")] = False,
) -> None:
    """Admit a site by its public key; takes effect at once if the server is running."""
    from fedgraft.deployment.registration import register_key
    from fedgraft.deployment.running_server import is_running
    from fedgraft.runs.server_folder import ServerFolder

    server = ServerFolder.open(folder)
    name = server.admit(key, replace)
    if is_running(server):
        register_key(server, server.path / "admitted" / f"{name}.pub")
    typer.echo(f"Admitted {name!r}. Give {server.certificate_of(name)} to the site, as site.pem in its folder.")
    if replace:
        typer.echo("The key before counts until the site has connected with the new one, 30 days at most.")


@server_app.command("renew")
def server_renew(folder: Folder, name: Name) -> None:
    """Issue a new certificate for a site's key; the one before stays valid until its last day."""
    from fedgraft.runs.server_folder import ServerFolder

    certificate = ServerFolder.open(folder).renew(name)
    typer.echo(f"Give {certificate} to the site, as site.pem in its folder; a running site takes it by itself.")


@server_app.command("rotate")
def server_rotate(
    folder: Folder,
    host: Annotated[list[str] | None, typer.Option(help="A name or address of the server.", show_default=_AS)] = None,
) -> None:
    """Issue a new certificate for the server itself, by the same authority; a running server takes it by itself."""
    from fedgraft.runs.certificates import certificate_hosts
    from fedgraft.runs.server_folder import ServerFolder

    server = ServerFolder.open(folder)
    server.rotate(list(dict.fromkeys(host or [])))
    hosts = ", ".join(certificate_hosts(server.certificate))
    typer.echo(f"Wrote {server.certificate} for {hosts}. Sites need nothing new: the authority is the same.")


@server_app.command("revoke")
def server_revoke(folder: Folder, name: Name) -> None:
    """Take a site's admission back; a running server closes its connections within a few seconds."""
    from fedgraft.deployment.registration import unregister_keys
    from fedgraft.deployment.running_server import is_running
    from fedgraft.runs.server_folder import ServerFolder

    server = ServerFolder.open(folder)
    keys = server.revoke(name)
    if is_running(server):
        unregister_keys(server, keys)
    typer.echo(
        f"Revoked {name!r}. Its key is kept in {server.path / 'revoked'} and counts no more; if the site is to come "
        "back, `fedgraft site rotate` makes it a new one."
    )


@server_app.command("runs")
def server_runs(folder: Folder, as_json: Json = False) -> None:
    """List the runs that were submitted, in the order of the queue."""
    from fedgraft.runs.server_folder import ServerFolder

    runs = ServerFolder.open(folder).queue.runs()
    if as_json:
        typer.echo(json.dumps([{"out": str(run.out), "place": run.place, "state": run.state()} for run in runs]))
        return
    for run in runs:
        typer.echo(f"{run.out}: {run.state()}")
    if not runs:
        typer.echo("No run was submitted to this server.")


@server_app.command("pause")
def server_pause(folder: Folder, run: Run) -> None:
    """Let a run pause after its present round; other runs may go on meanwhile."""
    from fedgraft.flower.run_state import Wanted

    _want(folder, run, Wanted.PAUSE)
    typer.echo("The run pauses after its present round; `fedgraft server resume` lets it go on.")


@server_app.command("resume")
def server_resume(folder: Folder, run: Run) -> None:
    """Let a paused run go on, behind the runs that are queued."""
    from fedgraft.flower.run_state import Wanted

    found = _want(folder, run, Wanted.GO_ON)
    if found.followed or found.directory.is_locked():
        typer.echo("The run goes on when it is its turn.")
    else:
        config = found.out / "config.toml"
        typer.echo(
            f"No command follows the run; this one does: fedgraft run {folder} --out {found.out} --config {config}"
        )


@server_app.command("stop")
def server_stop(folder: Folder, run: Run) -> None:
    """End a run for good after its present round; it is evaluated and summarized as it is."""
    from fedgraft.flower.run_state import Wanted

    found = _want(folder, run, Wanted.STOP)
    typer.echo("The run ends after its present round, with a summary of what there is.")
    if not found.followed and not found.directory.is_locked():
        typer.echo(f"No command follows it; `fedgraft run {folder} --out {found.out} ...` takes the summary.")


def _want(folder: Path, run: str, wanted: "Wanted") -> "QueuedRun":
    from fedgraft.core.errors import UserError
    from fedgraft.flower.run_state import RunState
    from fedgraft.runs.server_folder import ServerFolder

    found = ServerFolder.open(folder).queue.find(run)
    if found.directory.finished:
        raise UserError(f"The run in {found.out} has ended: {found.state()}.")
    RunState(found.out).want(wanted)
    return found
