"""`fedgraft server ...`: a deployed server's folder, its processes and the admitted sites."""

import shlex
import socket
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.cli.settings import MetricsPort

server_app = typer.Typer(no_args_is_help=True, help="A deployed server: its folder, its processes, the admitted sites.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
_DEFAULT_PORT = 9092


@server_app.command("init")
def server_init(
    folder: Folder,
    host: Annotated[list[str] | None, typer.Option(help="A name or address by which sites reach the server.")] = None,
    port: Annotated[int, typer.Option(help="The port that sites reach.")] = _DEFAULT_PORT,
) -> None:
    """Create a server's folder with a certificate authority and a certificate."""
    from fedgraft.runs.server_folder import ServerFolder

    hosts = list(dict.fromkeys([*(host or []), socket.gethostname(), "localhost", "127.0.0.1"]))
    server = ServerFolder.create(folder, hosts, port)
    typer.echo(f"Wrote {folder} for {', '.join(hosts)}. Every site needs {server.authority}.")


@server_app.command("start")
def server_start(folder: Folder, metrics_port: MetricsPort = None) -> None:
    """Run Flower's SuperLink until Ctrl-C."""
    from fedgraft.deployment.running_server import RunningServer
    from fedgraft.deployment.service import log_to_folder, supervise_until_ended
    from fedgraft.runs.server_folder import ServerFolder

    server = RunningServer(ServerFolder.open(folder))
    log_to_folder(server)
    for process in server.processes.values():
        typer.echo(f"$ {shlex.join(process.command)}")
    server.start()
    typer.echo(f"Ready on port {server.folder.port}; {len(server.folder.admitted())} sites are admitted.")
    supervise_until_ended(server, metrics_port)


@server_app.command("admit")
def server_admit(folder: Folder, key: Annotated[Path, typer.Argument(help="keys/site.pub of a site.")]) -> None:
    """Admit a site by its public key; takes effect at once if the server is running."""
    from fedgraft.deployment.running_server import is_running, register_key
    from fedgraft.runs.server_folder import ServerFolder

    server = ServerFolder.open(folder)
    name = server.admit(key)
    if is_running(server):
        register_key(server, server.path / "admitted" / f"{name}.pub")
    typer.echo(f"Admitted {name!r}. Give {server.certificate_of(name)} to the site, as site.pem in its folder.")


@server_app.command("revoke")
def server_revoke(folder: Folder, name: Annotated[str, typer.Argument(help="The site's name on the server.")]) -> None:
    """Take a site's admission back; a running server closes its connections within a few seconds."""
    from fedgraft.runs.server_folder import ServerFolder

    key = ServerFolder.open(folder).revoke(name)
    typer.echo(f"Revoked {name!r}. Its public key is kept as {key}; admit a new one if the site is to come back.")
