"""`fedgraft fleet ...`: a registry of devices, and what is published to them."""

import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedgraft.cli.device_errors import device_errors
from fedgraft.cli.settings import Json, MetricsPort
from fedgraft.core import ports
from fedgraft.core.wording import plural

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fedgraft.fleet.publishing import Published

fleet_app = typer.Typer(no_args_is_help=True, help="A fleet of devices: its registry, releases and rollouts.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's folder.")]
Channel = Annotated[str, typer.Option(help="The channel, such as stable or canary.")]
Key = Annotated[Path | None, typer.Option(help="The publisher's signing key.", show_default="the user's own")]
Days = Annotated[float, typer.Option(min=0.01, max=3650, help="Days until devices want a newer document.")]
_DAY = 86400.0


@fleet_app.command("serve")
def fleet_serve(
    folder: Folder,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port that devices reach.", show_default=f"as before or {ports.FLEET}"),
    ] = None,
    host: Annotated[list[str] | None, typer.Option(help="A name or address of the registry, for a new folder.")] = None,
    publisher: Annotated[
        str | None,
        typer.Option(
            help="Public key of who publishes, for a new folder: a PEM file or 64 digits.",
            show_default="the user's own",
        ),
    ] = None,
    metrics_port: MetricsPort = None,
    page_port: Annotated[
        int | None, typer.Option(help="Serve a page of the status on this port of 127.0.0.1.", show_default="no page")
    ] = None,
) -> None:
    """Serve a fleet's folder until Ctrl-C; a folder that is missing or empty is made first."""
    from fedgraft.core.logs import log_lines_to
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.serving import RunningRegistry, serve

    fresh = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if fresh:
        hosts = list(dict.fromkeys([*(host or []), socket.gethostname(), "localhost", "127.0.0.1"]))
        FleetFolder.create(folder, hosts, port or ports.FLEET, _publisher(publisher))
        typer.echo(f"Wrote {folder} for {', '.join(hosts)}. Every device needs {folder / 'ca.pem'} and a token.")
    opened = FleetFolder.open(folder)
    log_lines_to(folder / "registry.log", "registry")

    def say_ready(registry: RunningRegistry) -> None:
        if metrics_port is not None:
            from fedgraft.fleet.metrics import serve_fleet_metrics

            serve_fleet_metrics(opened, metrics_port)
        if page_port is not None:
            from fedgraft.fleet.page import serve_page

            typer.echo(f"The page is http://127.0.0.1:{serve_page(opened, page_port)}/.")
        typer.echo(f"Ready on port {registry.port}.")

    serve(opened, port, say_ready)


@fleet_app.command("token")
def fleet_token(
    folder: Folder,
    group: Annotated[str, typer.Option(help="The group that the device joins.")] = "all",
    channel: Channel = "stable",
    tag: Annotated[list[str] | None, typer.Option(help="A tag of the device; may be repeated.")] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=87600, help="How long the token counts.")] = 168.0,
    as_json: Json = False,
) -> None:
    """Make a token that lets one device in."""
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.tokens import new_token

    with FleetFolder.open(folder).database() as database:
        token = new_token(database, group, channel, tag, hours * 3600)
    typer.echo(json.dumps({"token": token, "group": group, "channel": channel}) if as_json else token)


@fleet_app.command("publish")
def fleet_publish(
    folder: Folder,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a class bank of --classes-for.")],
    channel: Channel,
    percent: Annotated[float, typer.Option(help="The percentage of the channel's devices that get it first.")] = 100.0,
    then: Annotated[str | None, typer.Option(help="The percentages after that, such as 25,100.")] = None,
    after: Annotated[str | None, typer.Option(help="How long a stage lasts: 30m, 1h, 2d.", show_default="1h")] = None,
    halt_if: Annotated[
        str | None, typer.Option(help='What halts it, such as "failed>2% or unknown>20%".', show_default="nothing")
    ] = None,
    expires_days: Days = 30.0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Publish a bundle in a channel, to all its devices or in stages."""
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.publishing import publish
    from fedgraft.fleet.rollout import RolloutPlan

    plan = RolloutPlan.build(percent, then, after, halt_if)
    opened = FleetFolder.open(folder)
    with device_errors():
        done = publish(opened, bundle, channel, _signing_key(key), plan, expires_days * _DAY)
    stages = ", ".join(f"{stage:g} %" for stage in plan.percents)
    _say_published(done, f"Published version {done.version} in {channel!r} for {stages} of its devices", as_json)


@fleet_app.command("rollback")
def fleet_rollback(
    folder: Folder,
    channel: Channel,
    to: Annotated[
        int | None, typer.Option(help="The version to go back to.", show_default="the last that all devices had")
    ] = None,
    expires_days: Days = 30.0,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Withdraw the newest release of a channel: all its devices go back, by a signed document."""
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.publishing import rollback

    opened = FleetFolder.open(folder)
    with device_errors():
        done = rollback(opened, channel, _signing_key(key), to, expires_days * _DAY)
    _say_published(done, f"The channel {channel!r} goes back to version {done.version}", as_json)


@fleet_app.command("renew")
def fleet_renew(
    folder: Folder, channel: Channel, expires_days: Days = 30.0, key: Key = None, as_json: Json = False
) -> None:
    """Sign what a channel has anew, before it expires."""
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.publishing import renew

    done = renew(FleetFolder.open(folder), channel, _signing_key(key), expires_days * _DAY)
    _say_published(
        done, f"The channel {channel!r} with version {done.version} counts for {expires_days:g} days", as_json
    )


@fleet_app.command("rotate")
def fleet_rotate(
    folder: Folder,
    new_key: Annotated[Path, typer.Option(help="The publisher's next signing key, created if missing.")],
    key: Key = None,
) -> None:
    """Hand over to another publisher's key, by a document that the present one signs."""
    from fedgraft.edge_export.signing import public_bytes, signing_key
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.publishing import rotate

    opened, old, new = FleetFolder.open(folder), _signing_key(key), signing_key(new_key)
    version = rotate(opened, old, new)
    typer.echo(f"The publisher's key is {public_bytes(new).hex()} now, by trust document {version}; publish with it.")


@fleet_app.command("certificate")
def fleet_certificate(
    folder: Folder,
    host: Annotated[
        list[str] | None, typer.Option(help="A name or address of the registry.", show_default="as before")
    ] = None,
) -> None:
    """Issue a new certificate for the registry, by the same authority; one that runs shows it by itself."""
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.runs.certificates import certificate_hosts, write_server_certificate

    opened = FleetFolder.open(folder)
    write_server_certificate(opened.path, list(dict.fromkeys(host or [])) or certificate_hosts(opened.certificate))
    typer.echo(f"Wrote {opened.certificate} for {', '.join(certificate_hosts(opened.certificate))}.")


@fleet_app.command("revoke")
def fleet_revoke(folder: Folder, device: Annotated[str, typer.Argument(help="The device's id.")]) -> None:
    """Let a device in no more."""
    from fedgraft.core.errors import UserError
    from fedgraft.fleet.fleet_folder import FleetFolder

    with FleetFolder.open(folder).database() as database:
        if not database.execute("UPDATE devices SET revoked = 1 WHERE id = ?", device):
            raise UserError(f"There is no device {ascii(device)[:80]}; see `fedgraft fleet status`.")
    typer.echo(f"The device {device} is let in no more; it goes on predicting with what it has.")


@fleet_app.command("move")
def fleet_move(
    folder: Folder,
    channel: Channel,
    device: Annotated[str | None, typer.Option(help="The id of one device.")] = None,
    group: Annotated[str | None, typer.Option(help="All devices of a group.")] = None,
) -> None:
    """Move a device, or the devices of a group, to another channel."""
    from fedgraft.core.errors import UserError
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.tokens import check_name

    check_name("channel", channel)
    if (device is None) == (group is None):
        raise UserError("Give either --device or --group.")
    where = "id = ?" if device is not None else "grp = ?"
    with FleetFolder.open(folder).database() as database:
        moved = database.execute(f"UPDATE devices SET channel = ? WHERE {where}", channel, device or group)
    if not moved:
        raise UserError(f"There is no such device: {ascii(device or group)[:80]}.")
    typer.echo(f"Moved {plural(moved, 'device')} to {channel!r}.")


def _publisher(text: str | None) -> bytes:
    from fedgraft.device.ed25519 import read_public_key
    from fedgraft.edge_export.signing import default_key, public_bytes, signing_key

    if text is None:
        return public_bytes(signing_key(default_key()))
    with device_errors():
        return read_public_key(text)


def _signing_key(path: Path | None) -> "Ed25519PrivateKey":
    """The publisher's key, which must exist: a new one would be nobody's."""
    from fedgraft.core.errors import UserError
    from fedgraft.edge_export.signing import default_key, signing_key

    path = path or default_key()
    if not path.exists():
        raise UserError(f"There is no signing key {path}; give the publisher's with --key.")
    return signing_key(path)


def _say_published(done: "Published", sentence: str, as_json: bool) -> None:
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(done)))
    else:
        typer.echo(f"{sentence}: {done.bytes / 1e6:.2f} MB, document {done.sequence} of the channel.")
