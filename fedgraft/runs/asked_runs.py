"""The runs that a site has been asked for, as its audit log tells: the configuration, the decision, what was done."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.runs.audit_log import Entry

_DAY = timedelta(days=1)
SHORT = 12
"""Digits of a configuration's hash that are shown."""


def configuration_hash(config: RunConfig, fingerprint: str) -> str:
    """The SHA-256 that an approval is for: of the whole configuration and of the server's backbone."""
    content = json.dumps({"configuration": config.model_dump(mode="json"), "fingerprint": fingerprint}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass
class AskedRun:
    """One configuration of one run.

    Attributes:
        name: of the run, from the server.
        configuration: its hash.
        asked: when the site first heard of it, UTC.
        settings: the configuration itself.
        decision: "approved" or "refused" by the operator, "" before.
        fingerprint: of the server's backbone.
        version: of the server's fedgraft.
        decided_by: the account that gave the decision.
        refused: the public reason of the last refusal, "" if something has been done since.
        last_round: the last round of the run; 0 where the method does not train.
        rounds: the highest round that the site has trained.
        finished: whether the last round was trained and measured.
        asked_for: what the site has begun, a hash of kind, round and received parameters each, by kind.
        answered: what it has answered.
        refusals: every reason for which it refused a message.
        confusion: SHA-256 of the confusion counts that have left the site.
        sent: bytes that have left the site since the last approval, by round.
        seconds: that the site has worked since then.
        earlier: bytes and seconds before it.
        open_since: when it began what it has not ended, "" otherwise.
    """

    name: str
    configuration: str
    asked: str
    settings: dict[str, Any]
    fingerprint: str
    last_round: int
    version: str = ""
    decision: str = ""
    decided_by: str = ""
    refused: str = ""
    rounds: int = 0
    finished: bool = False
    asked_for: dict[str, set[str]] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    refusals: set[str] = field(default_factory=set)
    confusion: str = ""
    sent: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    earlier: tuple[int, float] = (0, 0.0)
    open_since: str = ""

    def state(self, needs_approval: bool) -> str:
        """Waiting, approved, refused or finished."""
        if self.decision == "refused":
            return "refused"
        if self.finished:
            return "finished"
        if needs_approval and self.decision != "approved":
            return "waiting"
        return "refused" if self.refused else "approved"

    @property
    def all_bytes(self) -> int:
        """Bytes that have left the site for the run."""
        return self.earlier[0] + sum(self.sent.values())

    @property
    def all_seconds(self) -> float:
        """Seconds that the site has worked for the run."""
        return self.earlier[1] + self.seconds

    def begin(self, kind: str, key: str) -> None:
        """Count something that the site was asked to do."""
        self.asked_for.setdefault(kind, set()).add(key)


class AskedRuns:
    """All runs of a log, in the order in which they were asked."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._runs: dict[tuple[str, str], AskedRun] = {}
        self.add(entries)

    def add(self, entries: Iterable[Entry]) -> None:
        """Take further entries into account; raises RunFailed for one that no version of fedgraft wrote."""
        for entry in entries:
            try:
                if "configuration" in entry:
                    self._add(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise RunFailed(
                    f"An entry of the audit log cannot be read: {entry}; see `fedgraft site log`."
                ) from error

    def __iter__(self) -> Iterator[AskedRun]:
        """The runs in order."""
        return iter(self._runs.values())

    def get(self, name: str, configuration: str) -> AskedRun | None:
        """One of them."""
        return self._runs.get((name, configuration))

    def asked_within_a_day(self) -> int:
        """How many were first asked in the last 24 hours."""
        now = datetime.now(UTC)
        return sum(abs(now - datetime.fromisoformat(run.asked)) < _DAY for run in self._runs.values())

    def named(self, name: str, configuration: str = "") -> AskedRun:
        """The run of a name that an operator decides on.

        Args:
            configuration: the beginning of its hash; needed where the name was asked with several.

        Raises:
            UserError: there is none, or more than one.
        """
        same = [run for run in self if run.name == name and run.configuration.startswith(configuration)]
        if not same:
            known = ", ".join(sorted({run.name for run in self})) or "none"
            behind = f" with the configuration {configuration!r}" if configuration else ""
            raise UserError(f"The site was not asked for a run {name!r}{behind}. Known: {known}.")
        if len(same) > 1:
            hashes = ", ".join(run.configuration[:SHORT] for run in same)
            raise UserError(
                f"The run {name!r} was asked with {len(same)} configurations; add --configuration: {hashes}."
            )
        return same[0]

    def _add(self, entry: Entry) -> None:
        key, event = (entry["run"], entry["configuration"]), entry["event"]
        if event == "asked":
            settings, fingerprint = entry["settings"], entry["fingerprint"]
            run = AskedRun(*key, entry["time"], settings, fingerprint, entry["last_round"], entry["version"])
            self._runs[key] = run
        elif (known := self._runs.get(key)) is not None:
            _ADDED[event](known, entry)


def _began(run: AskedRun, entry: Entry) -> None:
    run.begin(entry["kind"], entry["key"])
    run.open_since = entry["time"]


def _ended(run: AskedRun, entry: Entry) -> None:
    run.seconds += entry["seconds"]
    run.open_since = ""


def _sent(run: AskedRun, entry: Entry) -> None:
    _ended(run, entry)
    run.answered.add(entry["key"])
    run.refused, server_round = "", entry["round"]
    run.sent[server_round] = run.sent.get(server_round, 0) + entry["bytes"]
    if entry["kind"] == "train":
        run.rounds = max(run.rounds, server_round)
    if entry["kind"] == "evaluate":
        run.confusion = entry.get("confusion", run.confusion)
        run.finished = run.finished or server_round == run.last_round


def _decided(run: AskedRun, entry: Entry) -> None:
    """Note the operator's decision; an approval grants again what a server may have used up."""
    run.decision, run.decided_by = entry["event"], entry["by"]
    if run.decision == "approved":
        run.earlier = run.all_bytes, run.all_seconds
        run.sent, run.seconds, run.asked_for, run.refused = {}, 0.0, {}, ""


def _declined(run: AskedRun, entry: Entry) -> None:
    run.refusals.add(entry["reason"])
    run.refused = entry["reason"]
    run.seconds += entry.get("seconds", 0.0)
    run.open_since = ""


_ADDED = {
    "began": _began,
    "interrupted": _ended,
    "sent": _sent,
    "approved": _decided,
    "refused": _decided,
    "declined": _declined,
}
"""How each event of a run changes what is known of it."""
