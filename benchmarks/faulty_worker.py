"""A site's worker whose update is bad in one round, which `bad-update.json` in its folder names."""

import json

import grpc

from fedgraft.client.worker import Worker, main
from fedgraft.flower.internals import record_from_bytes
from fedgraft.flower.messages import JOB, Job
from fedgraft.testing.bad_updates import spoiled


class FaultyWorker(Worker):
    """Sound but for the round that `bad-update.json` names."""

    def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        """As the worker's own, spoiled where it is to be."""
        answer = super().answer(kind, data, context)
        plan = self._site.path / "bad-update.json"
        if kind == "train" and plan.exists():
            wanted = json.loads(plan.read_text())
            if Job.from_record(record_from_bytes(data).config_records[JOB]).round == wanted["round"]:
                return spoiled(answer, wanted["how"])
        return answer


if __name__ == "__main__":
    main(FaultyWorker)
