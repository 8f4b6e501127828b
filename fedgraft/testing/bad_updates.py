"""Updates that no site of sound mind sends, made of those that it does."""

import numpy as np
from numpy.typing import NDArray

from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.flower.messages import NUM_EXAMPLES, SHARED, to_array_record

BAD_UPDATES = ("nan", "infinity", "shape", "huge", "40 MB", "names", "examples")


def spoiled(answer: bytes, how: str) -> bytes:
    """A training's answer with other shared parameters, or a number of examples that takes the whole average.

    Args:
        how: one of `BAD_UPDATES`, or any number of MB.
    """
    content = record_from_bytes(answer)
    for name in list(content.array_records):
        if name.endswith(SHARED):
            arrays = {key: array.numpy() for key, array in content.array_records[name].items()}
            spoilt = {("other" if how == "names" else key): _spoiled(array, how) for key, array in arrays.items()}
            content[name] = to_array_record(spoilt)
    for metrics in content.metric_records.values():
        if how == "examples" and NUM_EXAMPLES in metrics:
            metrics[NUM_EXAMPLES] = 10**18
    return record_bytes(content)


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
