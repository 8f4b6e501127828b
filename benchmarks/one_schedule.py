"""Plays one schedule of `benchmarks.faults` in a process of its own: `python -m benchmarks.one_schedule SEED FOLDER`.

FOLDER/result.json says how it ended; FOLDER holds everything else that the schedule needs as well.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.fault_reference import reference
from benchmarks.fault_schedules import (
    AWAY,
    BACK,
    BAD_UPDATE,
    DROPOUT,
    JOIN,
    LEAVE,
    MEMBERSHIP,
    PAUSE,
    REVOKE,
    Event,
    Schedule,
    drawn,
)
from benchmarks.faulty_worker import WorkerPlan
from benchmarks.federation import Federation
from benchmarks.injector import Injector
from fedgraft.core.errors import RunFailed, UserError
from fedgraft.core.files import write_text
from fedgraft.deployment.submitted import SubmittedRun
from fedgraft.flower.run_state import RunState, Wanted
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.testing.in_process import outcome

_LONGEST_SECONDS = 900.0


class Play:
    """A schedule on a federation.

    Args:
        root: a folder for the run directories `first` and `second`.
    """

    def __init__(self, federation: Federation, schedule: Schedule, root: Path) -> None:
        self._federation, self._schedule = federation, schedule
        self._outs = [root / "first", root / "second"][: 1 if schedule.second is None else 2]
        self._first = RunDirectory(self._outs[0])
        self._boundary = sorted(schedule.of(*MEMBERSHIP, PAUSE), key=lambda event: event.round)
        timed = [event for event in schedule.events if event.what not in (*MEMBERSHIP, PAUSE, BAD_UPDATE, DROPOUT)]
        self._injector = Injector(federation, self._first, timed, self._follow_again)
        self._runs: dict[Path, SubmittedRun] = {}
        federation.plan({name: self._plan(name) for name in schedule.members})

    @property
    def missed(self) -> list[str]:
        """The events for which there was no occasion."""
        return [*(event.what for event in self._boundary), *self._injector.never_happened]

    def run(self) -> None:
        """Play it to the end.

        Raises:
            RunFailed: a run, the server or a site gives up, a run begins before its turn, or it takes too long.
        """
        deadline = time.monotonic() + _LONGEST_SECONDS
        configs = [self._schedule.config, self._schedule.second]
        try:
            for out, config in zip(self._outs, configs, strict=False):
                assert config is not None
                self._runs[out] = SubmittedRun(self._federation.folder, config, out)
            while self._runs:
                if time.monotonic() > deadline:
                    raise RunFailed(f"It is not over after {_LONGEST_SECONDS:.0f} seconds.")
                self._federation.supervise()
                for out, run in list(self._runs.items()):
                    if not run.supervise():
                        self._runs.pop(out).stop()
                self._check_turns()
                self._injector()
                if self._is_paused():
                    self._at_pause()
                time.sleep(0.2)
        finally:
            for run in self._runs.values():
                run.stop()

    def _plan(self, name: str) -> WorkerPlan:
        """What a site's worker does; every worker asks for the pauses."""
        of = [event for event in self._schedule.events if event.site == name]
        return WorkerPlan(
            str(self._outs[0]),
            {str(event.round): event.how for event in of if event.what == BAD_UPDATE},
            {str(event.round): event.how for event in of if event.what == DROPOUT},
            [event.round - 1 for event in self._boundary],
        )

    def _follow_again(self) -> None:
        out = self._outs[0]
        if out in self._runs:
            self._runs[out].stop()
            self._runs[out] = SubmittedRun(self._federation.folder, self._schedule.config, out)

    def _check_turns(self) -> None:
        """Raise RunFailed if the second run has begun while it was not its turn."""
        begun = len(self._outs) == 2 and RunDirectory(self._outs[1]).begun
        if begun and not (self._first.finished or self._schedule.of(PAUSE)):
            raise RunFailed("The second run began before its turn.")

    def _is_paused(self) -> bool:
        wanted = RunState(self._outs[0]).wanted
        return self._outs[0] in self._runs and wanted is Wanted.PAUSE and not self._first.is_locked()

    def _at_pause(self) -> None:
        """Let what belongs before the next round happen, and the run go on."""
        coming = self._first.checkpoints.newest_round() + 1
        due = [event for event in self._boundary if event.round == coming]
        if any(event.what == PAUSE for event in due) and self._outs[-1] in self._runs:
            return  # the second run goes first
        for event in due:
            self._change(event)
            self._boundary.remove(event)
        RunState(self._outs[0]).want(Wanted.GO_ON)

    def _change(self, event: Event) -> None:
        federation = self._federation
        if event.what == JOIN:
            federation.join(event.site)
        elif event.what == BACK:
            federation.start(event.site)
        elif event.what in (AWAY, LEAVE):
            federation.stop(event.site)
        if event.what in (LEAVE, REVOKE):
            federation.revoke(event.site)


def play(schedule: Schedule, root: Path) -> dict[str, Any]:
    """How a schedule ends, and what of it never happened."""
    root.mkdir(exist_ok=True)
    began, missed, ended = time.monotonic(), list[str](), "right"
    with Federation(root, schedule.members) as federation:
        try:
            federation.admit(schedule.sites)
            federation.server.start()
            playing = Play(federation, schedule, root)
            for name in schedule.sites:
                federation.start(name)
            wanted = reference(root / "reference", schedule, federation.images)
            playing.run()
            missed = playing.missed
            folders = [member.folder for member in federation.members.values()]
            got = [outcome(root / name, folders) for name in ("first", "second")[: len(wanted)]]
            ended = _compared(wanted, got)
        except (RunFailed, UserError) as error:
            ended = f"FAILED: {error}"
    return {"ended": ended, "never_happened": missed, "seconds": round(time.monotonic() - began, 1)}


def _compared(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> str:
    wrong = [
        f"{key} of run {number}"
        for number, (one, other) in enumerate(zip(wanted, got, strict=True), 1)
        for key in one
        if one[key] != other[key]
    ]
    return f"WRONG: {', '.join(wrong)}" if wrong else "right"


def main() -> None:
    """The process."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"signal {number}"))  # stops the federation
    seed, folder = int(sys.argv[1]), Path(sys.argv[2])
    write_text(folder / "result.json", json.dumps(play(drawn(seed), folder / "work")))


if __name__ == "__main__":
    main()
