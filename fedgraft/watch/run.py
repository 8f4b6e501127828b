"""A run as it lies on disk, followed file by file: configuration, rows, summary, and whether a process is at work."""

from pathlib import Path
from typing import Any

from fedgraft.config.registry import PROTOCOLS
from fedgraft.config.run_config import RunConfig
from fedgraft.config.settings import read_toml
from fedgraft.core.errors import UserError
from fedgraft.core.plain_text import NAME_LENGTH, plain
from fedgraft.data.protocols.protocol import Protocol
from fedgraft.flower.run_state import Outcome, RunState, Wanted
from fedgraft.runs.history import History
from fedgraft.runs.metrics_tail import MetricsTail
from fedgraft.runs.run_files import Sites, Summary, read_json
from fedgraft.watch.files import Kept
from fedgraft.watch.processes import LOCKS, lock_holder


class WatchedRun:
    """A run directory, whether its run is to begin, at work, stopped or finished.

    Attributes:
        revision: grows when something has changed.
        problem: a sentence, if a file could not be read.
        worker: the process that holds the directory's lock; None if there is none.
        columns: values of the heat map by series and round, kept until the rows are written anew.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, plain(name or path.absolute().name, NAME_LENGTH)
        self.revision, self.problem = 0, ""
        self.worker: int | None = None
        self.columns: dict[tuple[str | None, int], list[float | None]] = {}
        self.history, self.tail = History(), MetricsTail(path / "metrics.jsonl")
        self.protocol: Protocol | None = None
        self._config: Kept[RunConfig] = Kept(path / "config.toml", read_config)
        self._summary: Kept[dict[str, Any]] = Kept(path / "summary.json", lambda file: read_json(file, Summary))
        self._sites: Kept[dict[str, Any]] = Kept(path / "sites.json", lambda file: read_json(file, Sites))
        self._state = RunState(path)
        self._ended: Kept[str] = Kept(path / "ended.json", lambda _: self._how_it_ended())
        self._control: Kept[str] = Kept(path / "control.json", lambda _: self._what_comes())

    @property
    def config(self) -> RunConfig | None:
        """The configuration; None before the run has begun."""
        return self._config.content

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty before the run has finished."""
        return self._summary.content or {}

    @property
    def deployed_sites(self) -> dict[int, tuple[str, dict[str, int]]]:
        """Name and numbers of images of each deployed site that has taken part, by its number."""
        known = self._sites.content or {}
        return {entry["number"]: (plain(name, NAME_LENGTH), entry.get("images", {})) for name, entry in known.items()}

    @property
    def state(self) -> str:
        """ "waiting", "running", "stopped" or "finished"; "unknown" where the system does not list locks."""
        if self.worker is not None:
            return "running"
        if self.summary:
            return "finished"
        if self.config is None:
            return "waiting"
        return "stopped" if LOCKS.exists() else "unknown"

    @property
    def remark(self) -> str:
        """Why a deployed run ended, or what its operator wants of it."""
        said = self._ended.content if self.state == "stopped" else self._control.content
        return said or ""

    @property
    def rounds(self) -> int:
        """How many rounds the run will have in each fold; 0 if nothing trains, as far as that is known."""
        if self.summary and not self.history.training:
            return 0
        return int(self.summary["rounds"]) if self.summary else self.config.rounds if self.config else 0

    def refresh(self) -> None:
        """Read what has changed; a mistake in a file becomes `problem`, and what was known before stays."""
        try:
            changed, self.problem = self._read(), ""
        except UserError as error:
            changed, problem = False, plain(str(error))
            changed = problem != self.problem
            self.problem = problem
        holder = lock_holder(self.path / ".lock")
        if changed or holder != self.worker:
            self.revision += 1
        self.worker = holder

    def _read(self) -> bool:
        changed = [kept.look() for kept in (self._config, self._summary, self._sites, self._ended, self._control)]
        if changed[0] and self.config is not None:
            self.protocol = PROTOCOLS.load(self.config.protocol)
        anew, rows = self.tail.read()
        if anew:
            self.history, self.columns = History(), {}
        for row in rows:
            self.history.add(row)
        return any(changed) or anew or bool(rows)

    def _how_it_ended(self) -> str:
        ended = self._state.ended
        if ended is None or ended.outcome in (Outcome.RUNNING, Outcome.FINISHED):
            return ""
        return plain(f"{ended.outcome.value} after round {ended.round}: {ended.reason}" if ended.reason else "")

    def _what_comes(self) -> str:
        coming = {Wanted.PAUSE: "It will be paused after this round.", Wanted.STOP: "It will stop after this round."}
        return coming.get(self._state.wanted, "")


def read_config(path: Path) -> RunConfig:
    """A run's configuration.

    Raises:
        UserError: this version does not understand it.
    """
    settings = read_toml(path)
    newer = sorted(settings.keys() - RunConfig.model_fields.keys())
    if newer:
        raise UserError(
            f"The run in {path.parent} is of a newer format: its config.toml has the key {newer[0]!r}, which this "
            "version of fedgraft does not know; update fedgraft."
        )
    return RunConfig.build(settings)
