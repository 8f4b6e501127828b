"""What `fedgraft server status` shows, from the server's folder and the run directories; the server need not run."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import plain
from fedgraft.data.results import Row
from fedgraft.deployment.contacts import Contact, read_contacts
from fedgraft.deployment.folder_status import FolderStatus, folder_status
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.server_folder import ServerFolder

_GONE_SECONDS = 90.0
"""A SuperNode gives a sign of life every 30 seconds."""
_SLOW_SECONDS, _SLOW_FACTOR = 60.0, 3.0
"""A site is slow if it takes longer than both: this, and this many times what a round of the run has taken."""


@dataclass(frozen=True)
class SiteLine:
    """What the server knows of a site.

    Attributes:
        state: "answered", "working", "slow", "connected", "gone" or "never seen".
        reason: why its answer was last left out, or why it is gone.
        seen: its last request, in seconds since the epoch; None if there was none.
        answered: when it last sent an answer.
        last_round: the last round in which its answer counted.
    """

    name: str
    number: int | None
    state: str
    reason: str
    seen: float | None
    answered: float | None
    last_round: int | None
    certificate_days: int | None


@dataclass(frozen=True)
class RunStatus:
    """A run on the server: the rounds that are complete, of how many, and since when the present one goes on."""

    path: str
    state: str
    round: int
    rounds: int
    round_began: float | None


@dataclass(frozen=True)
class ServerStatus:
    """A server's status.

    Attributes:
        run: the run at work, or else the newest.
        unfinished: the directories of other runs that were submitted and have not ended.
    """

    port: int
    folder: FolderStatus
    run: RunStatus | None
    unfinished: list[str]
    sites: list[SiteLine]


def server_status(server: ServerFolder) -> ServerStatus:
    """The status of a server's folder."""
    sites = [server.certificate_of(key.stem) for key in server.admitted()]
    found, _ = folder_status(server.path, [server.certificate, server.authority, *sites])
    directories = _submitted(server)
    present = next((directory for directory in directories if directory.is_locked()), None)
    shown = present or next(iter(directories), None)
    run = None if shown is None else _run_status(shown, working=present is not None)
    lines = _site_lines(server, found, shown, run if present else None)
    if present is not None:
        known = present.read_json("sites.json") or {}
        found.problems.extend(
            f"The site {line.name!r} is {line.state}: {line.reason}"
            for line in lines
            if line.name in known and line.state in ("gone", "slow")
        )
    unfinished = [str(other.path) for other in directories if other is not shown and not other.finished]
    return ServerStatus(server.port, found, run, unfinished, lines)


def _submitted(server: ServerFolder) -> list[RunDirectory]:
    """The directories of the runs that were submitted to a server, the newest first."""
    return [run.directory for run in reversed(server.queue.runs())]


def _run_status(run: RunDirectory, working: bool) -> RunStatus:
    state = "running" if working else "finished" if run.finished else "interrupted" if run.begun else "submitted"
    try:
        rounds = run.config().rounds
    except UserError:
        rounds = 0
    began = max((path.stat().st_mtime for path in _marks(run)), default=None)
    return RunStatus(str(run.path), state, run.checkpoints.newest_round(), rounds, began)


def _marks(run: RunDirectory) -> list[Path]:
    """Files whose last change is the beginning of the present round."""
    files = [run.path / "attempts.json", *(run.path / "checkpoints").glob("*.safetensors")]
    return [path for path in files if path.exists()]


def _site_lines(
    server: ServerFolder, found: FolderStatus, run: RunDirectory | None, present: RunStatus | None
) -> list[SiteLine]:
    known = {} if run is None else run.read_json("sites.json") or {}
    rows, contacts = [] if run is None else run.rows(), read_contacts(server.path)
    usual = statistics.median([row["seconds"] for row in rows if row["scope"] == "train"] or [0.0])
    names = sorted({*known, *(key.stem for key in server.admitted())})
    lines = []
    for name in names:
        number = known.get(name, {}).get("number")
        contact = contacts.get(name, Contact())
        state, reason = _state(contact, present, usual)
        counted = [row["round"] for row in rows if row["scope"] == "train" and number in row["sites"]]
        lines.append(
            SiteLine(
                name=plain(name),
                number=number,
                state=state,
                reason=reason or _left_out(rows, number),
                seen=contact.seen or None,
                answered=contact.answered or None,
                last_round=max(counted, default=None),
                certificate_days=found.certificate_days.get(f"{name}.pem"),
            )
        )
    return lines


def _state(contact: Contact, run: RunStatus | None, usual: float) -> tuple[str, str]:
    """A site's state, and its reason where it is a bad one."""
    now = time.time()
    if not contact.seen:
        return "never seen", ""
    if (silent := now - contact.seen) > _GONE_SECONDS:
        return "gone", f"it has not been heard for {silent:.0f} seconds."
    if run is None or run.round_began is None:
        return "connected", ""
    if contact.received > contact.answered:
        taken = now - contact.received
        if taken > max(_SLOW_SECONDS, _SLOW_FACTOR * usual):
            return "slow", f"it has had the message for {taken:.0f} seconds."
        return "working", ""
    return ("answered", "") if contact.answered > run.round_began else ("connected", "")


def _left_out(rows: list[Row], number: int | None) -> str:
    """Why a site's answer was left out, if that happened in the run's newest rounds."""
    newest = max((row["round"] for row in rows), default=0)
    own = [row for row in rows if row["scope"] == "left_out" and row["site"] == number and row["round"] >= newest - 1]
    return f"left out of round {own[-1]['round']}: {plain(own[-1]['reason'])}" if own else ""
