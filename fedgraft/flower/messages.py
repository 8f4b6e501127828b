"""What travels between server and sites, as Flower records: the job, shared arrays, counts and metrics."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedgraft import __version__
from fedgraft.config.run_config import RunConfig
from fedgraft.core.plain_text import plain
from fedgraft.core.refusals import Refusal
from fedgraft.flower.array_data import read_array
from fedgraft.flower.internals import record_bytes

Arrays = dict[str, NDArray[np.float32]]

JOB, SHARED, METRICS, COUNTS = "job", "shared", "metrics", "counts"
MEASURED, UNMEASURED = "measured", "unmeasured"
"""Records of a training answer for the evaluation requested with it: its counts, or why there are none."""
SITES, FAILURES = "sites", "failures"
HELLO, CLASS_COUNTS, IMAGES = "hello", "class-counts", "images"
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
        """As a Flower record.

        Settings at their defaults are not sent, so that an older site of the series understands a run which does not
        use what it lacks; therefore no default may change within a series.
        """
        return ConfigRecord(
            {
                "config": self.config.model_dump_json(exclude_defaults=True),
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
        """From a Flower record, whose unknown keys do not matter and whose optional ones may be missing.

        Raises:
            Refusal: the server runs an incompatible version of fedgraft, or the run needs what this one lacks.
        """
        if _series(str(record["version"])) != _series(__version__):
            asked = _plain_version(str(record["version"]))
            raise Refusal(
                "version", f"the server runs fedgraft {asked}, this site {__version__}; upgrade the older one"
            )
        return cls(
            config=_known_config(json.loads(str(record["config"])), str(record["version"])),
            run=str(record["run"]),
            fingerprint=str(record["fingerprint"]),
            fold=int(str(record["fold"])),
            round=int(str(record["server-round"])),
            detailed=bool(record.get("detailed", False)),
            measure=bool(record.get("measure", False)),
            attempt=int(str(record.get("attempt", 0))),
            version=str(record["version"]),
        )


def _known_config(given: dict[str, Any], version: str) -> RunConfig:
    """The configuration from a server of the series; raises Refusal if it sets what this version does not know."""
    if unknown := sorted(given.keys() - RunConfig.model_fields.keys()):
        raise Refusal(
            "version",
            f"the run sets {plain(unknown[0], 64)!r}, which fedgraft {__version__} of this site does not know; upgrade "
            f"the site to {_plain_version(version)}, the server's version",
        )
    return RunConfig.build(given)


def _plain_version(version: str) -> str:
    return re.sub(r"[^\w.+-]", "", version, flags=re.ASCII)[:40]


def _series(version: str) -> tuple[str, ...]:
    """What compatible versions have in common: the major number and, before 1.0, the minor one."""
    parts = version.split(".")
    return tuple(parts[: 2 if parts[0] == "0" else 1])


def to_array_record(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """Arrays as a Flower record, in sorted order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)})


def from_array_record(record: ArrayRecord) -> Arrays:
    """The arrays of a Flower record, in sorted order; raises ValueError where one is not what it claims to be."""
    return {name: read_array(plain(name), record[name]) for name in sorted(record)}


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


def unpack(content: RecordDict, sites: Sequence[int] | None = None) -> dict[int, RecordDict | str]:
    """The answers that `pack` combined, or for each site the reason why it has none; never raises.

    A node with a record that belongs to none of its sites has an answer for none of them: what else it says cannot be
    trusted either.

    Args:
        sites: those that the node was asked for; by default those that it names itself.
    """
    own = {str(site): site for site in (_named_sites(content) if sites is None else sites)}
    answers: dict[int, RecordDict | str] = {}
    for name, record in content.items():
        key, _, rest = name.partition("/")
        if name == FAILURES and isinstance(record, ConfigRecord) and record.keys() <= own.keys():
            answers.update({own[key]: _failure(reason) for key, reason in record.items()})
        elif key in own and rest:
            answer = answers.setdefault(own[key], RecordDict())
            if isinstance(answer, RecordDict):
                answer[rest] = record
        else:
            return dict.fromkeys(own.values(), f"its node's answer has the record {plain(name, 64)!r}, of no site")
    return {site: answers.get(site, "its node did not answer for it") for site in own.values()}


def _failure(reason: object) -> str:
    return plain(reason) if isinstance(reason, str) else "it failed and gave no reason"


def _named_sites(content: RecordDict) -> list[int]:
    names = {name.partition("/")[0] for name in content if name != FAILURES}
    failed = content.config_records.get(FAILURES, ConfigRecord())
    return sorted(int(name) for name in names | set(failed) if re.fullmatch(r"[0-9]{1,9}", name))
