"""Sending a run to trackers: row by row while it goes on, or at once when it has finished.

The run directory is the source. A record is always written from its first row, so that a resumed run, or one that is
sent twice, is whole; and a tracker that fails is given up with a sentence, while the run goes on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedgraft.core.errors import RunFailed, UserError, reason_of
from fedgraft.core.observer import Observer
from fedgraft.core.plain_text import one_line
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.trackers.series import flat, key_of, results_of, values_of
from fedgraft.trackers.tracker import Record, TrackedRun, Tracker, load_trackers

_LONGEST = 300


class Tracking:
    """One run's records.

    Args:
        directory: of the run; it may not have begun yet.
        root: as in `TrackedRun`.
        on_failure: receives tracker and sentence when one fails; it gets nothing more.
    """

    def __init__(
        self, directory: Path, root: Path, trackers: Sequence[Tracker], on_failure: Callable[[Tracker, str], None]
    ) -> None:
        self._directory, self._root = RunDirectory(directory), root
        self._waiting, self._on_failure = list(trackers), on_failure
        self._records: dict[str, tuple[Tracker, Record]] = {}
        self._sent: set[tuple[Any, ...]] = set()

    def look(self) -> None:
        """Send the rows that are new."""
        if not self._directory.begun:
            return
        if self._waiting:
            config = flat(self._directory.config().model_dump(mode="json"))
            tracked = TrackedRun(self._directory.path, self._root, config)
            for tracker in self._waiting:
                self._try(tracker, lambda tracker=tracker: self._open(tracker, tracked))  # type: ignore[misc]
            self._waiting = []
        if not self._records:
            return
        rows = self._directory.rows()
        steps: dict[int, dict[str, float]] = {}
        for row in rows:
            if key_of(row) not in self._sent:
                self._sent.add(key_of(row))
                steps.setdefault(row["round"], {}).update(values_of(row, rows))
        for step, values in sorted(steps.items()):
            for tracker, record in list(self._records.values()):
                self._try(tracker, lambda record=record, step=step, values=values: record.log(step, values))  # type: ignore[misc]

    def close(self) -> None:
        """Send what is left, and the results if the run has finished; end the records."""
        self.look()
        results = results_of(self._directory.summary()) if self._directory.finished else {}
        for tracker, record in list(self._records.values()):
            self._try(tracker, lambda record=record: record.close(results))  # type: ignore[misc]
        self._records.clear()

    def _open(self, tracker: Tracker, run: TrackedRun) -> None:
        self._records[tracker.name] = (tracker, tracker.open(run))

    def _try(self, tracker: Tracker, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a tracker's library may raise anything
            self._records.pop(tracker.name, None)
            self._on_failure(tracker, one_line(reason_of(error), _LONGEST))


class TrackingObserver(Observer):
    """Tracks every run that begins under it, and warns of trackers that fail.

    Args:
        names: of trackers; raises UserError as `load_trackers` does.
        root: the directory of the command.
        observer: receives the warnings.
    """

    def __init__(self, names: Sequence[str], root: Path, observer: Observer) -> None:
        self._trackers, self._root, self._observer = load_trackers(names), root, observer
        self._tracking: Tracking | None = None

    def on_run_start(self, directory: Path) -> None:
        """Begin the records."""
        if self._trackers:
            self._tracking = Tracking(directory, self._root, self._trackers, self._warn)
            self._look()

    def on_round_end(self, server_round: int, rounds: int, metrics: dict[str, float]) -> None:
        """Send the round."""
        self._look()

    def on_run_end(self, directory: Path) -> None:
        """End the records."""
        if self._tracking is not None:
            self._guarded(self._tracking.close)
            self._tracking = None

    def look(self) -> None:
        """Send what is new, for whoever watches a run of another process."""
        self._look()

    def _look(self) -> None:
        if self._tracking is not None:
            self._guarded(self._tracking.look)

    def _guarded(self, action: Callable[[], None]) -> None:
        """A run directory that cannot be read is the run's to report, not the tracker's."""
        try:
            action()
        except (OSError, UserError) as error:
            self._observer.on_notice(f"Nothing more is tracked: {one_line(reason_of(error), _LONGEST)}")
            self._tracking = None

    def _warn(self, tracker: Tracker, reason: str) -> None:
        self._observer.on_notice(
            f"The tracker {tracker.name} failed and gets nothing more of this run, which goes on; `fedgraft track` can "
            f"send it later: {reason}"
        )


def track(directory: Path, names: Sequence[str], root: Path | None = None) -> list[Path]:
    """Send a run, or every run of a comparison, to trackers; returns the directories of the runs.

    Args:
        root: where trackers that hold several runs in one store keep it; the directory by default.

    Raises:
        UserError: there is no run or tracker, or a run cannot be read.
        RunFailed: a tracker failed.
    """
    trackers = load_trackers(names)
    runs = runs_in(directory)

    def fail(tracker: Tracker, reason: str) -> None:
        raise RunFailed(f"The tracker {tracker.name} failed: {reason}")

    for run in runs:
        tracking = Tracking(run, root or directory, trackers, fail)
        tracking.close()
    return runs


def runs_in(directory: Path) -> list[Path]:
    """The directory itself if it holds a run, or those of a comparison that have begun.

    Raises:
        UserError: it holds neither.
    """
    found = RunDirectory(directory)
    if found.begun:
        return [directory]
    comparison = found.read_json("comparison.json") if directory.is_dir() else None
    names = [str(name) for name in (comparison or {}).get("runs", [])]
    if runs := [directory / name for name in names if RunDirectory(directory / name).begun]:
        return runs
    raise UserError(f"{directory} holds no run (config.toml) and no comparison with runs (comparison.json).")
