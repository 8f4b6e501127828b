"""What `fedgraft site status` shows, from the files of a site's folder; the site need not be running."""

from dataclasses import dataclass
from pathlib import Path

from fedgraft.core.errors import RunFailed, UserError
from fedgraft.deployment.folder_status import FolderStatus, folder_status
from fedgraft.flower.node_status import NodeStatus
from fedgraft.runs.fleet_request import FleetRequest, fleet_request
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_peers import read_peers


@dataclass(frozen=True)
class SiteStatus:
    """A site's status.

    Attributes:
        connected: when its SuperNode last reached the server; None if it has not.
        obstacle: what keeps it from the server, or kept it before it ended.
        doing: "idle", "waiting" for the worker's answer, or "sending" it.
        message: the kind of the newest message, with `received` and `answered` in seconds since the epoch.
        task: the kind of message that the worker is handling.
        runs: the newest round of each run whose personal state the site keeps.
        peers: the sites whose keys it knows; None if it has no list and masks with any key that the server passes on.
        fleet: what its devices ask for; None if site.toml names no report of theirs, or it cannot be used.
    """

    name: str
    server: str
    folder: FolderStatus
    connected: float | None
    obstacle: str
    doing: str
    message: str
    received: float | None
    answered: float | None
    task: str
    runs: dict[str, int]
    peers: list[str] | None
    fleet: FleetRequest | None


def site_status(site: SiteFolder) -> SiteStatus:
    """The status of a site's folder."""
    found, said = folder_status(site.path, [site.certificate, site.path / "ca.pem"])
    running = found.pid is not None
    node = NodeStatus(**said.get("supernode", {})) if running else NodeStatus()
    obstacle = str(said.get("obstacle", ""))
    if obstacle:
        found.problems.append(obstacle if running else f"Before it ended: {obstacle}")
    elif running and said and node.connected is None:
        found.problems.append("It has not reached its server yet.")
    peers = None
    try:
        peers = None if (known := read_peers(site)) is None else sorted(known)
    except UserError as error:
        found.problems.append(str(error))
    fleet = None
    try:
        fleet = fleet_request(site)
        if fleet is not None and fleet.stale:
            found.problems.append(fleet.in_words)
    except (UserError, RunFailed) as error:
        found.problems.append(str(error))
    return SiteStatus(
        name=site.settings.name,
        server=str(said.get("server", "")),
        folder=found,
        connected=node.connected,
        obstacle=obstacle,
        doing=node.doing,
        message=node.kind,
        received=node.received,
        answered=node.answered,
        task=str(said.get("task", "")) if running else "",
        runs=_newest_rounds(site.state),
        peers=peers,
        fleet=fleet,
    )


def _newest_rounds(state: Path) -> dict[str, int]:
    """By run, from the names of the files that hold personal state; reading them would need torch."""
    return {
        run.name: max(rounds)
        for run in sorted(state.glob("*"))
        if (rounds := [int(path.stem.removeprefix("round-")) for path in run.glob("*/round-[0-9]*.safetensors")])
    }
