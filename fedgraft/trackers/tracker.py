"""What a tracker is: something that opens a record of a run and takes its series, step by step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fedgraft.config.registry import TRACKERS, Registered
from fedgraft.core.errors import UserError


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run before it has any series.

    Attributes:
        directory: of the run.
        root: of the command that made it: the run's, or that of its comparison or deployment.
        config: all settings, flat: an option of a table is called TABLE.OPTION.
    """

    directory: Path
    root: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name among others."""
        return self.directory.resolve().name


class Record(Protocol):
    """One run in a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take values of a round. Steps may come again, and start again with the next fold; series differ then."""

    def close(self, results: Mapping[str, float]) -> None:
        """End the record, with the results of a finished run or nothing."""


@dataclass(frozen=True)
class Tracker(Registered):
    """A registered tracker.

    Attributes:
        open: begins a record; one that the same run had before is replaced.
        library: the module that must be importable; it is imported by `open` alone.
        extra: the extra of fedgraft that installs it.
    """

    kind: ClassVar[str] = "tracker"

    open: Callable[[TrackedRun], Record]
    _: KW_ONLY
    library: str
    extra: str


def load_trackers(names: Sequence[str]) -> list[Tracker]:
    """The trackers of these names, each once.

    Raises:
        UserError: there is no such tracker, or its library is not installed.
    """
    trackers = [TRACKERS.load(name) for name in dict.fromkeys(names)]
    for tracker in trackers:
        if find_spec(tracker.library) is None:
            raise UserError(
                f"The tracker {tracker.name} needs the package {tracker.library}, which is not installed: "
                f'pip install "fedgraft[{tracker.extra}]".'
            )
    return trackers
