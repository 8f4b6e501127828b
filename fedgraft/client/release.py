"""What leaves a deployed site: the one place that every answer passes, and what the audit log keeps of it.

Confusion counts leave in the last round only, and never a second table for the same run. Counts per class leave only
where the policy shares them, and counts below its smallest group not at all.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedgraft.flower.internals import record_bytes
from fedgraft.flower.messages import (
    COUNTS,
    FAILURES,
    JOB,
    MEASURED,
    METRICS,
    SHARED,
    SITES,
    from_array_record,
    to_array_record,
)
from fedgraft.runs.site_policy import SitePolicy


def class_counts(counts: Mapping[str, int], policy: SitePolicy) -> dict[str, int]:
    """The number of images of each class as far as the policy tells it, sorted by name."""
    if not policy.share_counts:
        return {}
    return {name: count for name, count in sorted(counts.items()) if count >= policy.smallest_group}


def received_hash(content: RecordDict) -> str:
    """SHA-256 of what a message brings: its parameters, by name, and other records, but not its job and address."""
    digest = hashlib.sha256()
    for name, array in sorted(content.array_records.get(SHARED, ArrayRecord()).items()):
        digest.update(len(name).to_bytes(4, "big") + name.encode() + len(array.data).to_bytes(8, "big") + array.data)
    others = {name: record for name, record in content.items() if name not in (SHARED, JOB, SITES)}
    if others:
        digest.update(record_bytes(RecordDict(others)))
    return digest.hexdigest()


def released(answer: RecordDict, policy: SitePolicy, confusion: bool) -> RecordDict:
    """An answer as it may leave the site.

    Args:
        confusion: whether this is the message whose confusion counts may leave.
    """
    kept = RecordDict()
    for name, record in answer.items():
        kind = _kind(name)
        if kind == COUNTS:
            if confusion and policy.share_counts:
                kept[name] = _coarse_tables(answer.array_records[name], policy.smallest_group)
        elif kind in (METRICS, MEASURED):
            kept[name] = _coarse_measures(answer.metric_records[name], policy.smallest_group)
        else:
            kept[name] = record
    return kept


def without_confusion(answer: RecordDict) -> RecordDict:
    """An answer without its confusion counts."""
    return RecordDict({name: record for name, record in answer.items() if _kind(name) != COUNTS})


def confusion_hash(answer: RecordDict) -> str:
    """SHA-256 of the confusion counts in an answer, "" if it has none."""
    tables = [_bytes(record) for name, record in sorted(answer.array_records.items()) if _kind(name) == COUNTS]
    return hashlib.sha256(b"".join(tables)).hexdigest() if tables else ""


def description(content: RecordDict, answer: RecordDict) -> dict[str, Any]:
    """What the audit log keeps of an answer: each array's size, SHA-256 and norm, the norm of the update, all numbers.

    Args:
        content: the message that was answered.
    """
    arrays = {
        name: {"bytes": len(array.data), "sha256": hashlib.sha256(array.data).hexdigest(), "shape": list(array.shape)}
        for record in answer.array_records.values()
        for name, array in record.items()
    }
    numbers = {
        _kind(name): {key: value if isinstance(value, int | float) else list(value) for key, value in record.items()}
        for name, record in answer.metric_records.items()
    }
    found: dict[str, Any] = {"arrays": arrays, "numbers": numbers}
    for name, record in answer.array_records.items():
        if _kind(name) == SHARED:
            found |= _norms(content.array_records.get(SHARED, ArrayRecord()), record)
    return found


def failures(answer: RecordDict) -> list[str]:
    """The reasons that an answer gives in place of a result."""
    return [str(reason) for reason in answer.config_records.get(FAILURES, {}).values()]


def _norms(before: ArrayRecord, after: ArrayRecord) -> dict[str, float]:
    """The Euclidean norm of what is sent and, where it has the names and shapes of what was received, of the change."""
    sent = from_array_record(after)
    norms = {"norm": _norm(list(sent.values()))}
    received = from_array_record(before)
    if {name: array.shape for name, array in sent.items()} == {name: a.shape for name, a in received.items()}:
        norms["update_norm"] = _norm([sent[name].astype(np.float64) - received[name] for name in sent])
    return norms


def _norm(arrays: list[Any]) -> float:
    return float(np.sqrt(sum(float(np.square(array.astype(np.float64)).sum()) for array in arrays)))


def _coarse_tables(record: ArrayRecord, smallest: int) -> ArrayRecord:
    """Confusion counts without those of fewer images than the smallest group."""
    tables = from_array_record(record)
    return to_array_record({name: np.where(table < smallest, 0, table) for name, table in tables.items()})


def _coarse_measures(record: MetricRecord, smallest: int) -> MetricRecord:
    """Measurements without those of fewer images than the smallest group, which read as none at all."""
    coarse = {
        key: [0, 0] if isinstance(value, list) and value[-1] < smallest else value for key, value in record.items()
    }
    return MetricRecord(coarse)


def _bytes(record: ArrayRecord) -> bytes:
    return b"".join(name.encode() + array.data for name, array in sorted(record.items()))


def _kind(name: str) -> str:
    """What a record of an answer is, whichever site it is of."""
    return name.rpartition("/")[2]
