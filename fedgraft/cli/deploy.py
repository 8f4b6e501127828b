"""`fedgraft site ...`, `fedgraft server ...`, `fedgraft run` and `fedgraft up`."""

import json
import logging
import shlex
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fedgraft.cli.fields import with_fields
from fedgraft.cli.settings import Config, Json, Set, settings_from
from fedgraft.config.run_config import DEPLOYED_PROTOCOL, RunConfig

site_app = typer.Typer(no_args_is_help=True, help="A deployed site: its folder, its check, its processes.")
server_app = typer.Typer(no_args_is_help=True, help="A deployed server: its folder, its processes, the admitted sites.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's or the server's folder.")]
_DEFAULT_PORT = 9092
_POLL_SECONDS = 0.5
_LOCAL = {"sites": 3}


@site_app.command("init")
def site_init(
    folder: Folder,
    name: Annotated[str | None, typer.Option(help="The site's name on the server.", show_default="DIR's name")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of images.")] = None,
    as_json: Json = False,
) -> None:
    """Create a site's folder with new keys."""
    from fedgraft.runs.site_folder import SiteFolder

    site = SiteFolder.create(folder, name or folder.absolute().name, data)
    if as_json:
        typer.echo(json.dumps({"name": site.settings.name, "public_key": str(site.public_key)}))
        return
    typer.echo(
        f"Wrote {folder}. Give {site.public_key} to the server, which must admit it and issues {site.certificate}."
    )
    if data is None:
        typer.echo(f"Set data to the folder of images in {folder / 'site.toml'}.")


@site_app.command("check")
def site_check(
    folder: Folder,
    data: Annotated[Path | None, typer.Option(help="The images.", show_default="as in site.toml")] = None,
    backbone: Annotated[str, typer.Option(help="mini, a Hugging Face folder or ID.")] = "mini",
    method: Annotated[str, typer.Option(help="See `fedgraft methods`.")] = "fedpgp",
    as_json: Json = False,
) -> None:
    """Read every image, count classes, report problems, estimate the cost of a round. Needs no server."""
    from dataclasses import asdict

    from fedgraft.client.site_check import check_site
    from fedgraft.core.errors import UserError
    from fedgraft.runs.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    images = data or site.data
    found = check_site(images, site.settings.labels, site.settings.backbone or backbone, method)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        for name, count in found.images.items():
            typer.echo(f"{count:6d}  {name}")
        typer.echo(f"{sum(found.images.values())} images of {len(found.images)} classes in {images}.")
        typer.echo(
            f"Estimated: {found.features_seconds:.1f} s once for image features, {found.round_seconds:.1f} s of "
            f"training per round, {found.memory_mb:.0f} MB of memory."
        )
    if found.mistakes:
        more = f" (and {len(found.mistakes) - 1} more)" if len(found.mistakes) > 1 else ""
        raise UserError(f"{found.mistakes[0]}{more}")


@site_app.command("state")
def site_state(folder: Folder, as_json: Json = False) -> None:
    """Show the personal state that the site keeps, by run, fold and round."""
    from fedgraft.runs.personal_state import PersonalState
    from fedgraft.runs.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    kept = {
        str(path.relative_to(site.state)): PersonalState(path, {}).sizes()
        for path in sorted(site.state.glob("*/*"))
        if path.is_dir()
    }
    if as_json:
        typer.echo(json.dumps(kept))
        return
    for name, sizes in kept.items():
        rounds = ", ".join(f"round {number} ({size:,} bytes)" for number, size in sizes.items())
        typer.echo(f"run {name}: {rounds or 'nothing that can be read'}")
    if not kept:
        typer.echo(f"There is no personal state in {site.state} yet.")


@site_app.command("start")
def site_start(
    folder: Folder,
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    ca: Annotated[Path | None, typer.Option(help="The server's ca.pem.", show_default="DIR/ca.pem")] = None,
) -> None:
    """Run the site's worker and Flower's SuperNode until Ctrl-C."""
    from fedgraft.deployment.running_site import RunningSite
    from fedgraft.deployment.service import supervise_until_ended
    from fedgraft.runs.site_folder import SiteFolder

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    site = RunningSite(SiteFolder.open(folder), server, ca or folder / "ca.pem")
    for process in site.processes:
        typer.echo(f"$ {shlex.join(process.command)}")
    site.start()
    supervise_until_ended(site)


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


@with_fields(RunConfig, "Settings of the run", without=("data",), defaults={"protocol": DEPLOYED_PROTOCOL})
def run(
    settings: dict[str, Any],
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The run directory.")],
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Run a federation on a running server; with the same --out again, it resumes."""
    from fedgraft.cli.printing import print_summary
    from fedgraft.core.errors import UserError
    from fedgraft.deployment.running_server import is_running
    from fedgraft.deployment.submitted import SubmittedRun
    from fedgraft.methods.plan import Plan
    from fedgraft.reports import write_report
    from fedgraft.runs.run_directory import RunDirectory
    from fedgraft.runs.server_folder import ServerFolder

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    server = ServerFolder.open(folder)
    given = {"protocol": DEPLOYED_PROTOCOL, **settings, "data": "folder:own"}
    run_config = RunConfig.build(settings_from(config, given, set_))
    Plan.of(run_config)  # a mistake is reported here, not by the server's process
    directory = RunDirectory(out)
    directory.check_free(run_config, resume=directory.begun)
    if not is_running(server):
        raise UserError(f"No server is running on port {server.port}; start it: fedgraft server start {folder}")
    submitted = SubmittedRun(server, run_config, out)
    typer.echo(f"The run's log is {submitted.log}.", err=True)
    try:
        while submitted.supervise():
            time.sleep(_POLL_SECONDS)
    finally:
        submitted.stop()
    write_report(out)
    summary = directory.summary()
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(summary, directory.report)


@with_fields(RunConfig, "Settings of the run", without=("data", "protocol"), defaults=_LOCAL)
def up(
    settings: dict[str, Any],
    data: Annotated[str, typer.Option(help="folder:PATH, class/image or domain/class/image.")],
    out: Annotated[Path, typer.Option(help="A directory for the server, the sites and the run.")] = Path("runs/up"),
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """A real deployment on this machine: SuperLink and SuperNodes with TLS and keys, each site with its own images."""
    from fedgraft.cli.printing import print_summary
    from fedgraft.cli.status import site_table
    from fedgraft.core.errors import UserError
    from fedgraft.data.sources.source import find_source
    from fedgraft.deployment.local import up as run
    from fedgraft.runs.run_directory import RunDirectory

    source, options = find_source(data)
    if not source.folder:
        raise UserError(f"Deployed sites have folders of images; give folder:PATH, not {data!r}.")
    given = settings_from(config, {**_LOCAL, **settings}, set_)
    images = Path(getattr(options, source.folder)).expanduser()
    with site_table(quiet=as_json) as watch:
        summary = run(images, given, out, watch)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        print_summary(summary, RunDirectory(out / "run").report)


@server_app.command("start")
def server_start(folder: Folder) -> None:
    """Run Flower's SuperLink until Ctrl-C."""
    from fedgraft.deployment.running_server import RunningServer
    from fedgraft.deployment.service import supervise_until_ended
    from fedgraft.runs.server_folder import ServerFolder

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    server = RunningServer(ServerFolder.open(folder))
    for process in server.processes:
        typer.echo(f"$ {shlex.join(process.command)}")
    server.start()
    typer.echo(f"Ready on port {server.folder.port}; {len(server.folder.admitted())} sites are admitted.")
    supervise_until_ended(server)
