"""`fedgraft site ...`: a deployed site's folder, its check and its processes."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedgraft.cli.settings import Json, MetricsPort

if TYPE_CHECKING:
    from fedgraft.runs.asked_runs import AskedRun, AskedRuns
    from fedgraft.runs.site_folder import SiteFolder

site_app = typer.Typer(no_args_is_help=True, help="A deployed site: its folder, its check, its runs, its processes.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as `fedgraft site runs` shows it.")]
Configuration = Annotated[
    str, typer.Option(metavar="HASH", help="The beginning of the configuration's hash, where a run has several.")
]


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
    from fedgraft.runs.fleet_request import fleet_request
    from fedgraft.runs.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    fleet = fleet_request(site)
    images, settings = data or site.data, site.settings
    own_backbone = settings.backbone or settings.backbones.get(backbone, backbone)
    found = check_site(images, settings.labels, own_backbone, method, settings.policy)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "fleet": asdict(fleet) if fleet else None}))
    else:
        for name, count in found.images.items():
            typer.echo(f"{count:6d}  {name}")
        typer.echo(f"{sum(found.images.values())} images of {len(found.images)} classes in {images}.")
        typer.echo(f"A server learns the number of images of {len(found.told)} of the {len(found.images)} classes.")
        typer.echo(f"The backbone's fingerprint is {found.fingerprint}.")
        typer.echo(
            f"Estimated: {found.features_seconds:.1f} s once for image features, {found.round_seconds:.1f} s of "
            f"training per round, {found.memory_mb:.0f} MB of memory."
        )
        if fleet is not None:
            typer.echo(fleet.in_words)
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


@site_app.command("rotate")
def site_rotate(folder: Folder) -> None:
    """Make a new key pair; the old one is used until the server's certificate for the new one is there."""
    from fedgraft.runs.key_rotation import new_key_pair
    from fedgraft.runs.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    typer.echo(
        f"Give {new_key_pair(site)} to the server, for `fedgraft server admit --replace`. Put the certificate that it "
        f"issues into {site.certificate}; a running site then connects with the new key by itself."
    )


@site_app.command("key")
def site_key(folder: Folder) -> None:
    """Print the site's public key with its name: a line for the file `peers` of other sites, two during an exchange."""
    from fedgraft.runs.site_folder import SiteFolder
    from fedgraft.runs.site_peers import own_keys

    for line in own_keys(SiteFolder.open(folder)):
        typer.echo(line)


@site_app.command("peers")
def site_peers(folder: Folder, as_json: Json = False) -> None:
    """Check the file `peers`, and print the fingerprints of this site's keys and of those in the file."""
    from fedgraft.runs.site_folder import SiteFolder
    from fedgraft.runs.site_peers import key_fingerprint, own_keys, peer_fingerprints

    site = SiteFolder.open(folder)
    own, peers = [key_fingerprint(line) for line in own_keys(site)], peer_fingerprints(site)
    if as_json:
        typer.echo(json.dumps({"name": site.settings.name, "own": own, "peers": peers}))
        return
    for fingerprint in own:
        typer.echo(f"{fingerprint}  {site.settings.name} (this site)")
    for name, fingerprints in sorted((peers or {}).items()):
        for fingerprint in fingerprints:
            typer.echo(f"{fingerprint}  {name}")
    if peers is None:
        typer.echo(f"There is no file {site.peers}, so other sites' keys in masked sums are not checked.")


@site_app.command("start")
def site_start(
    folder: Folder,
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    ca: Annotated[Path | None, typer.Option(help="The server's ca.pem.", show_default="DIR/ca.pem")] = None,
    metrics_port: MetricsPort = None,
) -> None:
    """Run the site's worker and Flower's SuperNode until Ctrl-C."""
    from fedgraft.deployment.running_site import RunningSite
    from fedgraft.deployment.service import log_to_folder, run_until_ended
    from fedgraft.runs.site_folder import SiteFolder

    site = RunningSite(SiteFolder.open(folder), server, ca or folder / "ca.pem")
    log_to_folder(site)
    for process in site.processes.values():
        typer.echo(f"$ {shlex.join(process.command)}")
    run_until_ended(site, metrics_port)


@site_app.command("runs")
def site_runs(folder: Folder, as_json: Json = False) -> None:
    """Show which runs servers have asked for, and what became of them."""
    from fedgraft.cli.consoles import table_console
    from fedgraft.cli.printing import runs_table
    from fedgraft.client.run_in_words import in_words

    site, runs = _asked_runs(folder)
    approve = site.settings.policy.approve
    if as_json:
        typer.echo(json.dumps([_run_facts(run, approve) for run in runs]))
        return
    facts = [_run_facts(run, approve) for run in runs]
    if not facts:
        typer.echo(f"No server has asked {folder} for a run yet.")
        return
    table_console().print(runs_table(facts))
    for run in runs:
        if run.refused:
            typer.echo(f"{run.name} was refused: {run.refused}.")
        if run.state(approve) == "waiting":
            typer.echo("\n".join(["", *in_words(run)]))
            typer.echo(f"Decide with `fedgraft site approve {folder} {run.name}` or `fedgraft site refuse ...`.")


@site_app.command("approve")
def site_approve(folder: Folder, run: RunName, configuration: Configuration = "") -> None:
    """Let the site take part in a run, with the configuration that it was asked with and no other."""
    _decide("approved", folder, run, configuration)


@site_app.command("refuse")
def site_refuse(folder: Folder, run: RunName, configuration: Configuration = "") -> None:
    """Let the site refuse a run, also one that it has begun."""
    _decide("refused", folder, run, configuration)


@site_app.command("log")
def site_log(
    folder: Folder,
    known: Annotated[str, typer.Option(metavar="HASH", help="A hash printed earlier, which must be in the log.")] = "",
    as_json: Json = False,
) -> None:
    """Check the audit log, and print what was asked of the site, what was decided and what left it.

    With --json, each entry is printed as it is in the file; otherwise hashes are shortened.
    """
    from fedgraft.core.errors import RunFailed
    from fedgraft.runs.audit_log import START, AuditLog
    from fedgraft.runs.site_folder import SiteFolder

    log = AuditLog(SiteFolder.open(folder).audit_log)
    entries = log.verified()
    if known and all(entry["hash"] != known for entry in entries):
        raise RunFailed(f"{log.path} does not hold the entry {known}: its end was cut, or it was replaced.")
    for entry in entries:
        typer.echo(json.dumps(entry) if as_json else _log_line(entry))
    if not as_json:
        head = entries[-1]["hash"] if entries else START
        count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
        typer.echo(f"{count}, none changed and none missing between them. The last one's hash is {head}.")


def _log_line(entry: dict[str, Any]) -> str:
    """An entry for a person: without the whole configuration, and with the beginning of each hash."""
    hidden = ("number", "time", "event", "previous", "hash", "key", "settings")
    facts = json.dumps({key: value for key, value in entry.items() if key not in hidden})
    short = re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", facts)
    return f"{entry['number']:6d}  {entry['time']}  {entry['event']}  {short}"


def _asked_runs(folder: Path) -> "tuple[SiteFolder, AskedRuns]":
    from fedgraft.runs.asked_runs import AskedRuns
    from fedgraft.runs.audit_log import AuditLog
    from fedgraft.runs.site_folder import SiteFolder

    site = SiteFolder.open(folder)
    return site, AskedRuns(AuditLog(site.audit_log).fresh())


def _run_facts(run: "AskedRun", approve: bool) -> dict[str, Any]:
    return {
        "run": run.name,
        "configuration": run.configuration,
        "asked": run.asked,
        "server_version": run.version,
        "decision": run.decision,
        "decided_by": run.decided_by,
        "state": run.state(approve),
        "method": run.settings["method"],
        "strategy": run.settings["strategy"],
        "rounds": run.rounds,
        "of": run.last_round,
        "seconds": round(run.all_seconds, 3),
        "bytes": run.all_bytes,
        "reason": run.refused,
        "settings": run.settings,
    }


def _decide(decision: str, folder: Path, name: str, configuration: str) -> None:
    import getpass

    from fedgraft.client.run_in_words import in_words
    from fedgraft.runs.asked_runs import SHORT
    from fedgraft.runs.audit_log import AuditLog

    site, runs = _asked_runs(folder)
    run = runs.named(name, configuration)
    content = {"run": run.name, "configuration": run.configuration, "by": getpass.getuser()}
    AuditLog(site.audit_log).append(decision, content)
    typer.echo("\n".join(in_words(run)))
    typer.echo(f"{decision.capitalize()}: the run {run.name} with the configuration {run.configuration[:SHORT]}.")
