"""A site's worker that keeps to a plan in its folder: bad updates, dropouts of secure aggregation, pauses."""

import json
import os
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import grpc

from fedgraft.client.worker import Worker, main
from fedgraft.core.files import write_text
from fedgraft.flower.internals import record_from_bytes
from fedgraft.flower.messages import JOB, Job
from fedgraft.flower.run_state import RunState, Wanted
from fedgraft.strategies.secagg import records
from fedgraft.testing.bad_updates import spoiled

_FILE = "plan.json"


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker does in the rounds of one run, and in those of others nothing.

    Attributes:
        out: the run directory.
        bad: how an update is bad, by round.
        dropouts: at which stage the site drops out, by round.
        pauses: the rounds after which the run is to pause; the worker says so before it answers in that round.
    """

    out: str
    bad: dict[str, str] = field(default_factory=dict)
    dropouts: dict[str, str] = field(default_factory=dict)
    pauses: list[int] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Keep it in a site's folder."""
        write_text(folder / _FILE, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The plan in a site's folder."""
        return cls(**json.loads((folder / _FILE).read_text()))


class FaultyWorker(Worker):
    """Sound but for what is planned."""

    def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        """As the worker's own, spoiled or missing where it is to be."""
        plan, content = WorkerPlan.read(self._site.path), record_from_bytes(data)
        job = Job.from_record(content.config_records[JOB])
        if kind not in ("train", "secagg") or not job.run.startswith(f"{Path(plan.out).name}-"):
            return super().answer(kind, data, context)
        stage = kind if kind == "train" else str(content.config_records[records.SECAGG]["stage"])
        if stage == "train" and job.round in plan.pauses:
            RunState(Path(plan.out)).want(Wanted.PAUSE)
        drops_out = plan.dropouts.get(str(job.round)) == stage
        if drops_out and stage != "train":
            self._die_once(job)
        answer = super().answer(kind, data, context)
        if drops_out and stage == "train":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "It drops out of this round.")
        how = plan.bad.get(str(job.round)) if stage == "train" else None
        return answer if how is None else spoiled(answer, how)

    def _die_once(self, job: Job) -> None:
        """End as a killed process does, and with it what is kept of the round; the next one only lacks that."""
        died = self._site.path / f"died-in-round-{job.round}-of-attempt-{job.attempt}"
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(FaultyWorker)
