"""A site's worker whose update is bad in one round, which `bad-update.json` in its folder names."""

import json

import grpc
import numpy as np
from numpy.typing import NDArray

from fedgraft.client.relay import from_bytes, to_bytes
from fedgraft.client.worker import Worker, main
from fedgraft.flower.messages import JOB, SHARED, Job, to_array_record

BAD_UPDATES = ("nan", "infinity", "shape", "huge", "40 MB", "names")


def spoiled(answer: bytes, how: str) -> bytes:
    """A training's answer with other shared parameters.

    Args:
        how: one of `BAD_UPDATES`, or any number of MB.
    """
    content = from_bytes(answer)
    for name in list(content.array_records):
        if name.endswith(SHARED):
            arrays = {key: array.numpy() for key, array in content.array_records[name].items()}
            spoilt = {("other" if how == "names" else key): _spoiled(array, how) for key, array in arrays.items()}
            content[name] = to_array_record(spoilt)
    return to_bytes(content)


def _spoiled(array: NDArray[np.float32], how: str) -> NDArray[np.float32]:
    if how == "nan":
        return np.full_like(array, np.nan)
    if how == "infinity":
        return np.full_like(array, np.inf)
    if how == "shape":
        return array[..., :-1]
    if how == "huge":
        return array + np.float32(1000 * np.linalg.norm(array))
    if how.endswith(" MB"):
        return np.zeros(int(how.removesuffix(" MB")) * 2**18, np.float32)
    return array


class FaultyWorker(Worker):
    """Sound but for the round that `bad-update.json` names."""

    def answer(self, kind: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        """As the worker's own, spoiled where it is to be."""
        answer = super().answer(kind, data, context)
        plan = self._site.path / "bad-update.json"
        if kind == "train" and plan.exists():
            wanted = json.loads(plan.read_text())
            if Job.from_record(from_bytes(data).config_records[JOB]).round == wanted["round"]:
                return spoiled(answer, wanted["how"])
        return answer


if __name__ == "__main__":
    main(FaultyWorker)
