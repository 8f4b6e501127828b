"""What comes back of a fleet: its status, a report, a backup; a simulated one; and the agent of a device."""

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedgraft.cli.device_errors import device_errors
from fedgraft.cli.settings import Json
from fedgraft.core.wording import plural

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The fleet's folder.")]


def fleet_status(
    folder: Folder,
    smallest: Annotated[
        int, typer.Option(min=1, help="Groups with fewer devices and counts below it are not in the telemetry.")
    ] = 5,
    as_json: Json = False,
) -> None:
    """Show devices, channels, rollouts and telemetry; exit code 1 if something needs attention."""
    from dataclasses import asdict

    from fedgraft.cli.fleet_tables import print_fleet
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.status import fleet_status as status_of

    status = status_of(FleetFolder.open(folder), smallest)
    if as_json:
        typer.echo(json.dumps(asdict(status)))
    else:
        print_fleet(status)
    if status.problems:
        raise typer.Exit(1)


def fleet_export_report(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="A TOML file.", show_default="standard output")] = None,
    unknown: Annotated[
        float, typer.Option(min=0, max=100, help="Percent of unknown predictions that is too much.")
    ] = 20.0,
    drift: Annotated[float, typer.Option(min=0, max=1, help="Fall of the mean confidence that is too much.")] = 0.1,
    smallest: Annotated[int, typer.Option(min=1, help="Smaller groups and counts are left out.")] = 5,
    as_json: Json = False,
) -> None:
    """Say whether unknown images or drift call for another federation, with the telemetry; a site.toml can name it."""
    from fedgraft.core.files import write_text
    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.report import as_toml, fleet_report
    from fedgraft.runs.retrain_rule import RetrainRule

    rule = RetrainRule((("unknown", unknown), ("drift", drift)))
    report = fleet_report(FleetFolder.open(folder), rule, smallest)
    text = json.dumps(report) if as_json else as_toml(report)
    if out is None:
        typer.echo(text)
    else:
        write_text(out, text)
        typer.echo(f"Wrote {out}: {'; '.join(report['reasons']) or 'nothing calls for another federation'}.")


def fleet_simulate(
    out: Annotated[Path, typer.Option(help="A new folder for the registry and the devices.")],
    devices: Annotated[int, typer.Option(min=1, max=100_000, help="Number of devices.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the faults.")] = 0,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes that the devices run in.")] = 2,
    faults: Annotated[float, typer.Option(min=0, max=0.9, help="Fraction of looks in which something fails.")] = 0.05,
    kills: Annotated[int, typer.Option(min=0, max=1000, help="How often the registry is killed.")] = 0,
    stage_seconds: Annotated[float, typer.Option(min=0.1, help="How long a stage of a rollout lasts.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Play a fleet with faults: staged rollouts, a bad release, a rollback; exit code 1 if anything is lost."""
    from dataclasses import asdict

    from fedgraft.cli.progress import progress
    from fedgraft.fleet.simulation import FleetSimulation, simulate_fleet

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # with the processes that it has started
    settings = FleetSimulation(devices, seed, processes, faults, kills, stage_seconds)
    with progress(quiet=as_json) as observer:
        done = simulate_fleet(out, settings, observer)
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        happened = ", ".join(f"{count} {fault}" for fault, count in done.faults.items())
        typer.echo(
            f"{plural(done.devices, 'device')} in {done.seconds:.0f} s, {done.looks} looks; faults: {happened}; the "
            f"registry was killed {done.kills} times and had {done.registry_mb:.0f} MB at most."
        )
        typer.echo(f"Devices astray: {len(done.astray)}. Predictions lost or counted twice: {done.lost}.")
    if not done.whole:
        raise typer.Exit(1)


def fleet_embeddings(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="A safetensors file.")],
    version: Annotated[
        int | None, typer.Option(help="Of this version.", show_default="the newest that was shared of")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Of a group's devices.", show_default="all")] = None,
    as_json: Json = False,
) -> None:
    """Write embeddings of unknown images from devices that share them, to see what no class covers."""
    from dataclasses import asdict

    from fedgraft.fleet.fleet_folder import FleetFolder
    from fedgraft.fleet.shared_embeddings import write_embeddings

    written = write_embeddings(FleetFolder.open(folder), out, version, group)
    if as_json:
        typer.echo(json.dumps(asdict(written)))
    else:
        what, whose = plural(written.embeddings, "embedding"), plural(written.devices, "device")
        typer.echo(f"Wrote {out}: {what} of unknown images from {whose}, by the encoder of version {written.version}.")


def fleet_backup(folder: Folder, out: Annotated[Path, typer.Argument(help="A new folder.")]) -> None:
    """Copy a fleet's folder as it is at one moment, while it is served."""
    from fedgraft.fleet.fleet_folder import FleetFolder

    FleetFolder.open(folder).backup(out)
    typer.echo(f"Wrote {out}; `fedgraft fleet serve` serves it.")


def device_agent(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The registry.")],
    dir: Annotated[Path, typer.Option(help="The device's folder.")],
    ca: Annotated[Path | None, typer.Option(help="The fleet's ca.pem; kept once the device has enrolled.")] = None,
    token: Annotated[str | None, typer.Option(envvar="FEDGRAFT_TOKEN", help="To enrol, once.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look and report a single time.")] = False,
    interval: Annotated[float, typer.Option(min=1, help="Seconds between two looks.")] = 300.0,
    key: Annotated[str | None, typer.Option(help="A publisher's public key that must be among the fleet's.")] = None,
    share_embeddings: Annotated[
        bool, typer.Option("--share-embeddings", help="Report embeddings of some images that are called unknown.")
    ] = False,
) -> None:
    """Keep this device at the version that its fleet's registry names."""
    from fedgraft.core.errors import RunFailed
    from fedgraft.device.commands import agent
    from fedgraft.device.errors import DeviceError

    try:
        agent(server, ca, token, dir, once, interval, key, share_embeddings)
    except DeviceError as error:
        if error.exit_code == 1:
            raise RunFailed(str(error)) from error
        with device_errors():
            raise
