"""What sites measured: their counts by scope, read from their answers under a check that leaves out a bad site."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedgraft.data.split import Scope
from fedgraft.flower.messages import COUNTS, MEASURED, METRICS, UNMEASURED, from_array_record
from fedgraft.flower.record_values import arrays_in, config_in, metrics_in, right_of_total, text
from fedgraft.server.router import Reply
from fedgraft.server.site_bounds import SiteBounds
from fedgraft.strategies.answers import LeftOut

ScopeCounts = Mapping[str, Mapping[int, tuple[int, int]]]
"""For each scope and site, the number of images classified correctly and of all images."""
Confusion = NDArray[np.int64]


@dataclass
class Measurements:
    """The outcome of an evaluation.

    Attributes:
        counts: of the sites whose answers count.
        confusions: of each scope, (C, C) over all sites that told theirs; rows are true classes.
        left_out: sites without counts, and why.
    """

    counts: dict[str, dict[int, tuple[int, int]]] = field(default_factory=lambda: defaultdict(dict))
    confusions: dict[str, Confusion] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def evaluated(
    asked: Sequence[int], replies: Sequence[Reply], scopes: Sequence[Scope], bounds: SiteBounds, detailed: bool
) -> Measurements:
    """What the sites answered to an evaluation, in the order of their numbers.

    Args:
        asked: the sites that were to answer.
        detailed: whether confusion counts were asked for; what comes without having been asked for is not looked at.
    """
    result, given = Measurements(), {reply.site: reply for reply in replies}
    for site in sorted(asked):
        reply = given.get(site, Reply(site, error="it did not answer in time"))
        if reply.content is None:
            result.left_out.append(LeftOut(site, reply.error))
            continue
        try:
            pairs = _pairs(reply.content, METRICS, site, scopes, bounds)
            tables = _confusions(reply.content, pairs, scopes) if detailed and COUNTS in reply.content else {}
        except ValueError as error:
            result.left_out.append(_unreadable(site, error))
            continue
        _add(result, site, pairs)
        for scope, table in tables.items():
            result.confusions[scope] = result.confusions.get(scope, 0) + table
    return result


def measured(replies: Sequence[Reply], scopes: Sequence[Scope], bounds: SiteBounds) -> Measurements:
    """What the sites measured before they trained; one that has not answered is left out of the training already."""
    result = Measurements()
    for reply in sorted(replies, key=lambda reply: reply.site):
        if reply.content is None:
            continue
        try:
            if UNMEASURED in reply.content:
                reason = text(config_in(reply.content, UNMEASURED), "reason")
                result.left_out.append(LeftOut(reply.site, reason))
            else:
                _add(result, reply.site, _pairs(reply.content, MEASURED, reply.site, scopes, bounds))
        except ValueError as error:
            result.left_out.append(_unreadable(reply.site, error))
    return result


def _add(result: Measurements, site: int, pairs: Mapping[str, tuple[int, int]]) -> None:
    for scope, pair in pairs.items():
        result.counts[scope][site] = pair


def _unreadable(site: int, error: ValueError) -> LeftOut:
    return LeftOut(site, f"its answer cannot be read: {error}")


def _pairs(
    content: RecordDict, name: str, site: int, scopes: Sequence[Scope], bounds: SiteBounds
) -> dict[str, tuple[int, int]]:
    """The counts of every scope; raises ValueError if they are not exactly these, or cannot be."""
    record, names = metrics_in(content, name), [scope.name for scope in scopes]
    if record.keys() != set(names):
        raise ValueError(f"it counts {len(record)} scopes that are not exactly {', '.join(names)}")
    return {scope: right_of_total(record, scope, bounds.test(site, scope)) for scope in names}


def _confusions(
    content: RecordDict, pairs: Mapping[str, tuple[int, int]], scopes: Sequence[Scope]
) -> dict[str, Confusion]:
    """A site's confusion counts, which may leave out small ones; raises ValueError if they cannot be its pairs'."""
    arrays = from_array_record(arrays_in(content, COUNTS))
    if arrays.keys() != pairs.keys():
        raise ValueError(f"it has confusion counts of {len(arrays)} scopes that are not exactly {', '.join(pairs)}")
    tables = {}
    for scope in scopes:
        array, size = arrays[scope.name], len(scope.classes)
        if array.shape != (size, size):
            raise ValueError(f"the confusion counts of {scope.name!r} have the shape {array.shape}, not {(size, size)}")
        if not (np.isfinite(array).all() and (array >= 0).all() and (array == np.floor(array)).all()):
            raise ValueError(f"the confusion counts of {scope.name!r} are not all counts")
        exact, (right, total) = array.astype(np.float64), pairs[scope.name]
        correct = float(np.trace(exact))
        if correct > right or float(exact.sum()) - correct > total - right:
            raise ValueError(f"the confusion counts of {scope.name!r} exceed its counts of right and wrong images")
        tables[scope.name] = array.astype(np.int64)
    return tables
