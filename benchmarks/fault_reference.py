"""What a schedule of `benchmarks.faults` must end with: its runs in one process, with the rounds' own events alone.

The same sites take part in the same rounds, the same updates are bad, and the same sites drop out at the same stages;
nothing is killed, stopped, rotated, paused or queued.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flwr.app import Error, Message

from benchmarks.fault_schedules import BAD_UPDATE, DROPOUT, Schedule
from fedgraft.config.run_config import RunConfig
from fedgraft.core.observer import Observer
from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import JOB, SECAGG_STAGE, Job
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.server.preparation import prepare
from fedgraft.strategies.secagg import records
from fedgraft.testing.bad_updates import spoiled
from fedgraft.testing.grids import Said
from fedgraft.testing.in_process import InProcessGrid, outcome

_ABSENT = Error(100, "it does not take part")
_TRAIN = "train"


class ReferenceGrid(InProcessGrid):
    """Sites that are there, and answer, as a schedule has it round by round.

    Args:
        sites: all that ever take part, in the order of their numbers.
        out: the run directory, which tells the present round.
    """

    def __init__(self, sites: Sequence[SiteFolder], schedule: Schedule, out: Path) -> None:
        super().__init__(sites, 0, {})
        self._schedule, self._directory = schedule, RunDirectory(out)
        self._names = dict(zip(self.nodes, schedule.members, strict=True))
        self._events = {(event.site, event.round): event for event in schedule.of(BAD_UPDATE, DROPOUT)}

    @property
    def round(self) -> int:
        """The round that comes next, or is under way."""
        return min(self._directory.checkpoints.newest_round() + 1, self._schedule.config.rounds)

    def get_node_ids(self) -> list[int]:
        """The nodes of the sites that take part in the present round."""
        present = self._schedule.present(self.round)
        return [node for node, name in self._names.items() if name in present]

    def said(self, message: Message) -> Said:
        """The site's answer, if it takes part and neither drops out nor spoils it."""
        node, content = message.metadata.dst_node_id, message.content
        if node not in self.get_node_ids():
            return _ABSENT
        kind = message.metadata.message_type
        if kind not in (_TRAIN, SECAGG_STAGE):
            return super().said(message)
        stage = _TRAIN if kind == _TRAIN else str(content.config_records[records.SECAGG]["stage"])
        server_round = Job.from_record(content.config_records[JOB]).round
        event = self._events.get((self._names[node], server_round))
        drops_out = event is not None and event.what == DROPOUT and event.how == stage
        if drops_out and stage != _TRAIN:
            return _ABSENT
        answer = super().said(message)
        if drops_out:
            return _ABSENT
        if event is not None and event.what == BAD_UPDATE and not isinstance(answer, Error) and answer is not None:
            return record_from_bytes(spoiled(record_bytes(answer), event.how))
        return answer


def reference(root: Path, schedule: Schedule, images: Path) -> list[dict[str, Any]]:
    """The outcome of each of the schedule's runs.

    Args:
        root: a new folder.
        images: holds each site's images by its name.
    """
    sites = [SiteFolder.create(root / name, name, images / name) for name in schedule.members]
    quiet = Schedule(schedule.seed, schedule.kind, schedule.config, schedule.sites, ())
    first = _outcome(root / "first", schedule, schedule.config, sites)
    return [first] if schedule.second is None else [first, _outcome(root / "second", quiet, schedule.second, sites)]


def _outcome(out: Path, schedule: Schedule, config: RunConfig, sites: list[SiteFolder]) -> dict[str, Any]:
    with ReferenceGrid(sites, schedule, out) as grid:
        coordinator = prepare(config, out, False, Observer())
        assert coordinator is not None
        coordinator.members.admitted = lambda: schedule.admitted(grid.round)
        try:
            coordinator.run(grid)
        finally:
            coordinator.directory.unlock()
    return outcome(out, sites)
