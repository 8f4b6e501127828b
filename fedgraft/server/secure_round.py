"""The server's side of a round of secure aggregation: it passes on keys and shares, and takes the masks off the sum.

Sites may drop out between any two stages, down to the fewest that a sum may have. A site that drops out before its
masked vector arrives is left out of the round; one that drops out after it still counts.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeVar

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedgraft.flower.messages import JOB, METRICS, SECAGG_STAGE, Job, wire_size
from fedgraft.flower.record_values import metrics_in, real_number
from fedgraft.server.router import Reply, Router
from fedgraft.strategies.answers import LeftOut
from fedgraft.strategies.masked_sum import SummedAnswers
from fedgraft.strategies.secagg import records
from fedgraft.strategies.secagg.encoding import Integers, unpacked
from fedgraft.strategies.secagg.keys import PublicKeys, is_public_key
from fedgraft.strategies.secagg.protocol import holders, unmasked
from fedgraft.strategies.secagg.statements import Statement

Content = TypeVar("Content")
_Require = Callable[[int, Sequence[LeftOut]], None]
_IsOwn = Callable[[int, PublicKeys, Statement, bytes], bool]


@dataclass(frozen=True)
class MaskedSum:
    """The sum of the sites' vectors.

    Attributes:
        vector: the sum; None where the masks cannot be taken off it.
        problem: why they cannot.
        counted: the sites in it, sorted.
        left_out: the other sites that were asked, and why.
        downlink, uplink: bytes per site of all messages after the training.
        seconds: that the sites have trained, together, as they report it.
    """

    vector: Integers | None
    counted: list[int]
    left_out: list[LeftOut]
    downlink: int
    uplink: int
    seconds: float
    problem: str = ""

    def unmasked(self) -> Integers:
        """The sum; raises ValueError if the masks cannot be taken off it."""
        if self.vector is None:
            raise ValueError(self.problem)
        return self.vector


@dataclass
class SecureRound:
    """One round.

    Args:
        asked: the sites that were asked to train.
        size: the number of values in a site's vector.
        require: raises RunFailed if so many sites are too few, with the reasons of the others.
        is_own: whether a site's keys are its own, by its number, its statement about them and the round's place.
    """

    rule: SummedAnswers
    router: Router
    job: Job
    asked: Sequence[int]
    size: int
    require: _Require
    is_own: _IsOwn = lambda site, keys, statement, place: True
    _failed: dict[int, str] = field(default_factory=dict)
    _downlink: int = 0
    _uplink: int = 0

    def total(self, replies: Sequence[Reply]) -> MaskedSum:
        """The sum after all stages.

        Args:
            replies: of the training.

        Raises:
            RunFailed: too few sites are left after a stage.
        """
        terms = self.rule.terms(len(self.asked), self.job.place)
        published = self._published(replies, terms.place)
        keys = {site: own for site, (own, _) in published.items()}
        statements = {site: statement for site, (_, statement) in published.items()}
        answers = self._stage(records.shares_request(keys, statements), sorted(keys), _shares)
        commitments = {site: commitment for site, (commitment, _) in answers.items()}
        sharers = sorted(answers)
        sealed: dict[int, dict[int, bytes]] = {site: {} for site in sharers}
        for site, (_, own) in answers.items():
            for holder in holders(site, keys, terms.neighbours):
                if holder in sealed and holder in own:
                    sealed[holder][site] = own[holder]
        own_records = {
            site: RecordDict({records.SEALED: records.sealed_record(given)}) for site, given in sealed.items()
        }
        vectors = self._stage(records.masked_request(sharers), sharers, self._vector, own_records)
        survivors = sorted(vectors)
        dropped = sorted(set(sharers) - set(survivors))
        left_out = self._left_out()
        revealed = self._stage(records.unmask_request(survivors, dropped), survivors, records.revealed_of)
        width = self.rule.encoding(len(self.asked)).width
        masked = reduce(np.add, (unpacked(data, self.size, width) for data in vectors.values()))
        vector, problem = None, ""
        try:
            vector = unmasked(masked, keys, commitments, survivors, revealed, terms)
        except ValueError as error:
            problem = f"the masks cannot be taken off: {error}"
        count = max(1, len(keys))
        downlink, uplink, seconds = self._downlink // count, self._uplink // count, _training_seconds(replies)
        return MaskedSum(vector, survivors, left_out, downlink, uplink, seconds, problem)

    def _published(self, replies: Sequence[Reply], place: bytes) -> dict[int, tuple[PublicKeys, Statement]]:
        """The keys that the trained sites published, and their statements.

        A site whose keys others would refuse is left out here, or it could end the round for all of them.
        """
        self._failed = dict.fromkeys(self.asked, "it did not answer in time")
        published = self._read(replies, _public_keys)
        for site, (keys, statement) in list(published.items()):
            if not self.is_own(site, keys, statement, place):
                self._failed[site] = "its keys of the round are not signed with its admitted key"
                del published[site]
        self.require(len(published), self._left_out())
        return published

    def _stage(
        self,
        request: ConfigRecord,
        sites: Sequence[int],
        read: Callable[[ConfigRecord], Content],
        own: Mapping[int, RecordDict] | None = None,
    ) -> dict[int, Content]:
        """The readable answers to a stage, by site.

        Raises:
            RunFailed: they are too few.
        """
        content = RecordDict({JOB: self.job.to_record(), records.SECAGG: request})
        self._failed.update(dict.fromkeys(sites, "it did not answer in time during secure aggregation"))
        replies = self.router.ask(SECAGG_STAGE, content, sites, own)
        self._downlink += wire_size(content) * len(sites) + sum(map(wire_size, (own or {}).values()))
        self._uplink += sum(wire_size(reply.content) for reply in replies if reply.content is not None)
        answers = self._read(replies, read)
        self.require(len(answers), self._left_out())
        return answers

    def _read(self, replies: Sequence[Reply], read: Callable[[ConfigRecord], Content]) -> dict[int, Content]:
        answers: dict[int, Content] = {}
        for reply in replies:
            try:
                if reply.content is None:
                    raise ValueError(reply.error)
                answers[reply.site] = read(reply.content.config_records[records.SECAGG])
                del self._failed[reply.site]
            except (KeyError, ValueError, TypeError) as error:
                self._failed[reply.site] = reply.error or f"its answer cannot be read: {error}"
        return answers

    def _vector(self, record: ConfigRecord) -> bytes:
        return records.vector_of(record, self.size * self.rule.encoding(len(self.asked)).width)

    def _left_out(self) -> list[LeftOut]:
        return [LeftOut(site, reason) for site, reason in sorted(self._failed.items())]


def _training_seconds(replies: Sequence[Reply]) -> float:
    seconds = 0.0
    for reply in replies:
        with suppress(ValueError):
            seconds += 0.0 if reply.content is None else real_number(metrics_in(reply.content, METRICS), "seconds")
    return seconds


def _public_keys(record: ConfigRecord) -> tuple[PublicKeys, Statement]:
    keys = records.public_keys_of(record)
    if not is_public_key(keys.sealing) or not is_public_key(keys.masking):
        raise ValueError("a key that is none")
    return keys, records.statement_of(record)


def _shares(record: ConfigRecord) -> tuple[bytes, dict[int, bytes]]:
    return records.commitment_of(record), records.sealed_of(record)
