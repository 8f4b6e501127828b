"""`fedgraft site ...`: a deployed site's folder, its check and its processes."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.cli.settings import Json, MetricsPort

site_app = typer.Typer(no_args_is_help=True, help="A deployed site: its folder, its check, its processes.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]


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
    metrics_port: MetricsPort = None,
) -> None:
    """Run the site's worker and Flower's SuperNode until Ctrl-C."""
    from fedgraft.deployment.running_site import RunningSite
    from fedgraft.deployment.service import log_to_folder, supervise_until_ended
    from fedgraft.runs.site_folder import SiteFolder

    site = RunningSite(SiteFolder.open(folder), server, ca or folder / "ca.pem")
    log_to_folder(site)
    for process in site.processes.values():
        typer.echo(f"$ {shlex.join(process.command)}")
    site.start()
    supervise_until_ended(site, metrics_port)
