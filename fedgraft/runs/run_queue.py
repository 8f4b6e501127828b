"""The runs of a server, one after another: which have been submitted, and whose turn it is.

runs/KEY.json   a run directory and its place in the queue
runs/KEY.lock   held by the `fedgraft run` that follows the run
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedgraft.core.errors import UserError
from fedgraft.core.files import locked, take_lock, write_text
from fedgraft.flower.run_state import Outcome, RunState, Wanted
from fedgraft.runs.run_directory import RunDirectory


def run_key(out: Path) -> str:
    """What tells the files of a run directory apart in a server's folder."""
    return hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class QueuedRun:
    """A submitted run.

    Attributes:
        place: in the queue; those with a smaller one go first.
        followed: whether a `fedgraft run` waits for it.
    """

    out: Path
    place: int
    followed: bool

    @property
    def directory(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.out)

    @property
    def waits(self) -> bool:
        """Whether it is at work, or will be when its turn comes."""
        if self.directory.is_locked():
            return True
        return self.followed and not self.directory.finished and RunState(self.out).wanted is not Wanted.PAUSE

    def state(self) -> str:
        """What becomes of it, in words."""
        ended, wanted, done = RunState(self.out).ended, RunState(self.out).wanted, self.directory.checkpoints
        if self.directory.finished:
            return f"stopped after round {done.newest_round()}" if wanted is Wanted.STOP else "finished"
        after = f"after round {done.newest_round()}"
        if self.directory.is_locked():
            coming = {Wanted.PAUSE: ", is paused after this one", Wanted.STOP: ", is stopped after this one"}
            return f"runs, round {done.newest_round() + 1}{coming.get(wanted, '')}"
        if wanted is Wanted.PAUSE:
            return f"paused {after}"
        if self.followed:
            return "queued"
        if ended is not None and ended.outcome is Outcome.FAILED:
            return f"failed {after}: {ended.reason}"
        return f"interrupted {after}"


class Place:
    """A run's place in the queue, held until it is left or the process ends."""

    def __init__(self, queue: "RunQueue", out: Path, number: int, lock: IO[str]) -> None:
        self._queue, self._out, self.number, self._lock = queue, out.absolute(), number, lock

    def ahead(self) -> list[Path]:
        """The run directories whose turn is before this one's."""
        others = [run for run in self._queue.runs() if run.out != self._out and run.waits]
        return [run.out for run in others if run.place < self.number or run.directory.is_locked()]

    def leave(self) -> None:
        """Let others go first; the run stays listed."""
        self._lock.close()


class RunQueue:
    """The runs that were submitted to a server.

    Args:
        folder: `runs/` of the server's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def enter(self, out: Path) -> Place:
        """Put a run at the end of the queue; raises UserError if another command follows it already."""
        self._folder.mkdir(exist_ok=True)
        lock = self._lock_file(out).open("a")
        with locked(self._folder / ".lock"):  # one process at a time takes a place
            if not take_lock(lock):
                lock.close()
                raise UserError(f"Another `fedgraft run` follows the run in {out}; wait for it or stop it.")
            number = max((run.place for run in self.runs()), default=0) + 1
            content = json.dumps({"out": str(out.absolute()), "place": number})
            write_text(self._folder / f"{run_key(out)}.json", content + "\n")
        return Place(self, out, number, lock)

    def runs(self) -> list[QueuedRun]:
        """All runs whose directories still exist or are yet to be made, in the order of their places."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                known = json.loads(path.read_text())
                out, place = Path(str(known["out"])), int(known["place"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            followed = self._is_followed(out)
            if followed or out.is_dir():
                found.append(QueuedRun(out, place, followed))
        return sorted(found, key=lambda run: run.place)

    def find(self, run: str) -> QueuedRun:
        """A run by its directory or the directory's name; raises UserError if there is none, or several."""
        runs = self.runs()
        named = [entry for entry in runs if entry.out == Path(run).absolute()] or [
            entry for entry in runs if entry.out.name == run
        ]
        if len(named) == 1:
            return named[0]
        known = ", ".join(str(entry.out) for entry in runs) or "none"
        if named:
            raise UserError(f"Several runs are named {run!r}; give the run directory. Known: {known}.")
        raise UserError(f"No run {run!r} was submitted to this server. Known: {known}.")

    def _lock_file(self, out: Path) -> Path:
        return self._folder / f"{run_key(out)}.lock"

    def _is_followed(self, out: Path) -> bool:
        if not self._lock_file(out).exists():
            return False
        with self._lock_file(out).open("a") as file:
            return not take_lock(file)
