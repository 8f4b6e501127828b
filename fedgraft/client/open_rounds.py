"""What a site keeps of a round of secure aggregation between two messages, in memory or in a folder."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedgraft.flower.internals import record_bytes, record_from_bytes
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.encoding import Integers
from fedgraft.strategies.secagg.keys import PublicKeys, SiteSecrets

_SECRETS, _KEYS, _SEALED = "secrets", "keys", "sealed"


@dataclass(frozen=True)
class OpenRound:
    """A round whose sum is not unmasked yet.

    Attributes:
        round, attempt: as in the job that the site was trained for.
        vector: its encoded update; empty once it was sent.
        keys: of all sites, from the first stage on.
        sharers, sealed: the sites that shared their secrets, and what they sealed for this one.
        next_stage: the only stage that it will answer.
    """

    round: int
    attempt: int
    secrets: SiteSecrets
    vector: Integers
    keys: Mapping[int, PublicKeys] = field(default_factory=dict)
    sharers: tuple[int, ...] = ()
    sealed: Mapping[int, bytes] = field(default_factory=dict)
    next_stage: str = records.SHARES

    def to_record(self) -> RecordDict:
        """As Flower records."""
        own = self.secrets
        plain: dict[str, Any] = {
            "round": self.round,
            "attempt": self.attempt,
            "secrets": [own.sealing, own.masking, own.own],
            "vector": self.vector.tobytes(),
            "sharers": list(self.sharers),
            "stage": self.next_stage,
        }
        return RecordDict(
            {
                _SECRETS: ConfigRecord(plain),
                _KEYS: records.shares_request(self.keys),
                _SEALED: records.sealed_record(self.sealed),
            }
        )

    @classmethod
    def from_record(cls, content: RecordDict) -> "OpenRound":
        """From `to_record`."""
        plain = content.config_records[_SECRETS]
        own: Any = plain["secrets"]
        vector: Any = plain["vector"]
        return cls(
            round=int(str(plain["round"])),
            attempt=int(str(plain["attempt"])),
            secrets=SiteSecrets(*own),
            vector=np.frombuffer(vector, np.uint64),
            keys=records.keys_of(content.config_records[_KEYS]),
            sharers=tuple(records.sites_in(plain, "sharers")),
            sealed=records.sealed_of(content.config_records[_SEALED]),
            next_stage=str(plain["stage"]),
        )


class OpenRounds(ABC):
    """The open rounds of a process's sites; each site has one at most."""

    @abstractmethod
    def keep(self, fold: int, site: int, open_round: OpenRound) -> None:
        """Keep a site's round in place of an earlier one."""

    @abstractmethod
    def kept(self, fold: int, site: int) -> OpenRound | None:
        """What is kept for a site, if anything."""

    @abstractmethod
    def forget(self, fold: int, site: int) -> None:
        """Forget a site's round."""


class RoundsInMemory(OpenRounds):
    """At a deployed site: the round's secrets are on no disk, and end with the worker."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[int, int], OpenRound] = {}

    def keep(self, fold: int, site: int, open_round: OpenRound) -> None:
        """Keep it."""
        self._rounds[fold, site] = open_round

    def kept(self, fold: int, site: int) -> OpenRound | None:
        """What is kept."""
        return self._rounds.get((fold, site))

    def forget(self, fold: int, site: int) -> None:
        """Forget it."""
        self._rounds.pop((fold, site), None)


class RoundsInFolder(OpenRounds):
    """In a simulation, where any process may answer a site's next message."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, fold: int, site: int, open_round: OpenRound) -> None:
        """Write its file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(fold, site).write_bytes(record_bytes(open_round.to_record()))

    def kept(self, fold: int, site: int) -> OpenRound | None:
        """Read its file."""
        try:
            return OpenRound.from_record(record_from_bytes(self._file(fold, site).read_bytes()))
        except FileNotFoundError:
            return None

    def forget(self, fold: int, site: int) -> None:
        """Delete its file."""
        self._file(fold, site).unlink(missing_ok=True)

    def _file(self, fold: int, site: int) -> Path:
        return self._folder / f"{fold:03d}-{site:06d}"
