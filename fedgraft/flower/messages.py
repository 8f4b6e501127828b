"""What travels between server and sites, as Flower records: the job, shared arrays, counts and metrics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedgraft import __version__
from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.flower.internals import record_bytes

Arrays = dict[str, NDArray[np.float32]]

JOB, SHARED, METRICS, COUNTS = "job", "shared", "metrics", "counts"
MEASURED, UNMEASURED = "measured", "unmeasured"
"""Records of a training answer for the evaluation requested with it: its counts, or why there are none."""
SITES, FAILURES = "sites", "failures"
HELLO, CLASS_COUNTS = "hello", "class-counts"
NUM_EXAMPLES = "num-examples"
SECAGG_STAGE = "train.secagg"
"""The type of the messages that follow a training whose answers are summed under masks."""


@dataclass(frozen=True)
class Job:
    """What a site is asked to do.

    Attributes:
        config: the run's configuration.
        run: the run's name; a site keeps its personal state under it.
        fingerprint: of the server's backbone; a site with another backbone refuses.
        fold: position of the fold.
        round: the round to train, or the last trained round, to evaluate; 0 before any training.
        detailed: whether an evaluation also returns its confusion counts.
        measure: whether a training first evaluates the arrays that it starts from.
        attempt: how many server processes have started the run, including this one; 0 in a simulation.
        version: of the server's fedgraft.
    """

    config: RunConfig
    run: str
    fingerprint: str
    fold: int
    round: int
    detailed: bool = False
    measure: bool = False
    attempt: int = 0
    version: str = __version__

    @property
    def place(self) -> str:
        """The round among all that any server process has begun; one that is repeated after a restart is another."""
        return f"{self.run}/{self.fold}/{self.round}/{self.attempt}"

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
                "measure": self.measure,
                "attempt": self.attempt,
                "version": self.version,
            }
        )

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "Job":
        """From a Flower record; raises UserError if the server runs an incompatible version of fedgraft."""
        if _series(str(record["version"])) != _series(__version__):
            raise UserError(
                f"the server runs fedgraft {record['version']!s}, this site {__version__}; upgrade the older one"
            )
        return cls(
            config=RunConfig.model_validate(json.loads(str(record["config"]))),
            run=str(record["run"]),
            fingerprint=str(record["fingerprint"]),
            fold=int(str(record["fold"])),
            round=int(str(record["server-round"])),
            detailed=bool(record["detailed"]),
            measure=bool(record["measure"]),
            attempt=int(str(record["attempt"])),
            version=str(record["version"]),
        )


def _series(version: str) -> tuple[str, ...]:
    """What compatible versions have in common: the major number and, before 1.0, the minor one."""
    parts = version.split(".")
    return tuple(parts[: 2 if parts[0] == "0" else 1])


def to_array_record(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """Arrays as a Flower record, in sorted order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)})


def from_array_record(record: ArrayRecord) -> Arrays:
    """The arrays of a Flower record, in sorted order."""
    return {name: record[name].numpy() for name in sorted(record)}


def wire_size(content: RecordDict) -> int:
    """Size in bytes of a message's content as Flower serializes it."""
    return len(record_bytes(content))


# --- several sites on one node: what they have in common travels once -----------------------------


def for_sites(content: RecordDict, sites: Sequence[int], own: Mapping[int, RecordDict] | None = None) -> RecordDict:
    """A message's content, addressed to some of the receiving node's sites.

    Args:
        own: records for one site only, by site; they are named SITE/NAME.
    """
    single = {f"{site}/{name}": record for site in sites for name, record in (own or {}).get(site, {}).items()}
    return RecordDict({**content, **single, SITES: MetricRecord({SITES: list(sites)})})


def sites_of(content: RecordDict) -> list[int]:
    """The sites that content from `for_sites` is addressed to, or those that a node's hello names."""
    return [int(site) for site in content.metric_records[SITES][SITES]]  # type: ignore[union-attr]


def pack(answers: Mapping[int, RecordDict | str]) -> RecordDict:
    """The answers of a node's sites in one record; a string is the reason why a site has none."""
    records = {f"{site}/{name}": r for site, a in answers.items() if isinstance(a, RecordDict) for name, r in a.items()}
    failures = {str(site): answer for site, answer in answers.items() if isinstance(answer, str)}
    return RecordDict({**records, FAILURES: ConfigRecord(failures)})  # type: ignore[arg-type]


def unpack(content: RecordDict) -> dict[int, RecordDict | str]:
    """The answers that `pack` combined, by site; raises ValueError if a record's name does not begin with a site."""
    answers: dict[int, RecordDict | str] = {}
    for name, record in content.items():
        if name == FAILURES:
            continue
        site, _, rest = name.partition("/")
        answer = answers.setdefault(int(site), RecordDict())
        assert isinstance(answer, RecordDict)
        answer[rest] = record
    failures = content.config_records.get(FAILURES, ConfigRecord())
    return {**answers, **{int(site): str(reason) for site, reason in failures.items()}}
