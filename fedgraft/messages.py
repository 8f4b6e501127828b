"""What travels between server and sites, as Flower records: the job, shared arrays, counts and metrics."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray

from fedgraft.config import RunConfig

Arrays = dict[str, NDArray[np.float32]]

JOB, SHARED, METRICS, COUNTS = "job", "shared", "metrics", "counts"
NUM_EXAMPLES = "num-examples"


@dataclass(frozen=True)
class Job:
    """What a site is asked to do.

    Attributes:
        config: the run's configuration.
        run: the run's name; a site keeps its personal state below it.
        fingerprint: of the server's backbone; a site with another refuses.
        fold: position of the fold.
        round: the round to train or the last trained one to evaluate; 0 before any training.
        detailed: whether an evaluation also returns its confusion counts.
    """

    config: RunConfig
    run: str
    fingerprint: str
    fold: int
    round: int
    detailed: bool = False

    def to_record(self) -> ConfigRecord:
        """As a Flower record."""
        return ConfigRecord(
            {
                "config": self.config.model_dump_json(),
                "run": self.run,
                "fingerprint": self.fingerprint,
                "fold": self.fold,
                "server-round": self.round,
                "detailed": self.detailed,
            }
        )

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "Job":
        """From a Flower record."""
        return cls(
            config=RunConfig.model_validate(json.loads(str(record["config"]))),
            run=str(record["run"]),
            fingerprint=str(record["fingerprint"]),
            fold=int(str(record["fold"])),
            round=int(str(record["server-round"])),
            detailed=bool(record["detailed"]),
        )


def to_array_record(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """Arrays as a Flower record, in sorted order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)})


def from_array_record(record: ArrayRecord) -> Arrays:
    """The arrays of a Flower record, in sorted order."""
    return {name: record[name].numpy() for name in sorted(record)}


def wire_size(content: RecordDict) -> int:
    """Bytes of a message's content as Flower serializes it."""
    return len(recorddict_to_proto(content).SerializeToString())
