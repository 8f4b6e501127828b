"""Seeded schedules for `benchmarks.faults`: what happens to a run of a few rounds, when, and to whom.

Who takes part changes between two rounds, at a pause of the run. Bad updates and dropouts of secure aggregation belong
to a round as well. Everything else happens some seconds after a round has begun, whatever the round is doing then.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from benchmarks.loopback import CLASS_NAMES
from fedgraft.config.run_config import RunConfig
from fedgraft.testing.bad_updates import BAD_UPDATES

KINDS = ("faults", "membership", "rotation", "queue", "dropout")
JOIN, LEAVE, REVOKE, AWAY, BACK, PAUSE = "joins", "leaves", "is revoked", "is away", "is back", "the run pauses"
MEMBERSHIP = (JOIN, LEAVE, REVOKE, AWAY, BACK)
BAD_UPDATE, DROPOUT = "bad update", "drops out"
ROTATIONS = ("server certificate rotated", "site certificate renewed", "site key rotated")
FOLLOWER_ENDED = "fedgraft run ended"
STAGES = ("train", "shares", "masked", "unmask")
_AT_SERVER = ("SuperLink killed", "ServerApp killed", "gateway killed", "server restarted")
_HARMLESS = (
    "SuperNode killed",
    "SuperExec killed",
    "message process killed",
    "connections dropped",
    "network away for 10 s",
)
"""Faults at a site after which its worker still holds a round of secure aggregation."""
_AT_SITE = (*_HARMLESS, "worker killed", "worker hung", "SuperNode stopped for 8 s", "site restarted")
_BRIEF = ("worker killed", "message process killed", "connections dropped")
"""Faults that are over within the seconds in which an absent site is waited for."""
_CHANGES = ((JOIN,), (LEAVE,), (REVOKE,), (JOIN, LEAVE), (JOIN, REVOKE), (AWAY, BACK))
_NAMES = ("east", "north", "south", "west")


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Attributes:
        round: in which it happens; a change of who takes part, and a pause, come before it.
        seconds: after the round has begun.
        site: its name; "" for what happens to the server.
        how: the update is bad, or the stage at which the site drops out.
    """

    what: str
    round: int
    seconds: float = 0.0
    site: str = ""
    how: str = ""

    def __str__(self) -> str:
        how = f" ({self.how})" if self.how else ""
        where = f" at {self.site}" if self.site else ""
        return f"{self.what}{how}{where} in round {self.round}"


@dataclass(frozen=True)
class Schedule:
    """A run, or two of them, and what happens meanwhile.

    Attributes:
        sites: the names of those that take part from the beginning.
        second: a run that is queued behind the first, where there is one.
    """

    seed: int
    kind: str
    config: RunConfig
    sites: tuple[str, ...]
    events: tuple[Event, ...]
    second: RunConfig | None = None
    members: tuple[str, ...] = field(init=False)
    """The names of all that ever take part, in the order of their numbers."""

    def __post_init__(self) -> None:
        joining = [event.site for event in self.events if event.what == JOIN]
        object.__setattr__(self, "members", (*self.sites, *joining))

    def of(self, *what: str) -> list[Event]:
        """Its events of some sorts."""
        return [event for event in self.events if event.what in what]

    def present(self, server_round: int) -> set[str]:
        """The names of the sites that take part in a round."""
        names = set(self.sites)
        for event in sorted(self.of(*MEMBERSHIP), key=lambda event: event.round):
            if event.round <= server_round:
                names = names | {event.site} if event.what in (JOIN, BACK) else names - {event.site}
        return names

    def admitted(self, server_round: int) -> set[str]:
        """The names of the sites that are admitted in a round, present or not."""
        away = {event.site for event in self.of(AWAY)}
        return self.present(server_round) | away


def seeds(only: str = "", first: int = 0) -> Iterator[int]:
    """The seeds from the first one on, of all kinds or of one."""
    return (seed for seed in count(first) if not only or _kind(seed) == only)


def drawn(seed: int) -> Schedule:
    """The schedule of a seed; the kinds take turns."""
    return {
        "faults": _faults, "membership": _membership, "rotation": _rotation, "queue": _queue, "dropout": _dropout,
    }[_kind(seed)](seed, np.random.default_rng(seed))  # fmt: skip


def _kind(seed: int) -> str:
    return KINDS[seed % len(KINDS)]


def _faults(seed: int, rng: np.random.Generator) -> Schedule:
    sites, config = _NAMES[:3], _config()
    what = [*_AT_SERVER, *_AT_SITE, BAD_UPDATE, FOLLOWER_ENDED]
    events = _some(rng, what, int(rng.integers(1, 4)), sites, config.rounds)
    return Schedule(seed, "faults", config, sites, tuple(events))


def _membership(seed: int, rng: np.random.Generator) -> Schedule:
    changes = _CHANGES[int(rng.integers(len(_CHANGES)))]
    config = _config(answer_seconds=60.0) if AWAY in changes else _config()
    rounds = sorted(rng.permutation(range(2, config.rounds + 1))[: len(changes)].tolist())
    sites = _NAMES[: 2 if JOIN in changes else 3]
    gone = str(rng.choice(sites))
    events = [
        Event(what, server_round, site=_NAMES[2] if what == JOIN else gone)
        for what, server_round in zip(changes, rounds, strict=True)
    ]
    what = [*_BRIEF] if AWAY in changes else [*_AT_SERVER, *_AT_SITE, *ROTATIONS]
    staying = tuple(name for name in sites if name != gone)
    events += _some(rng, what, int(rng.integers(0, 2)), staying, config.rounds)
    return Schedule(seed, "membership", config, sites, tuple(events))


def _rotation(seed: int, rng: np.random.Generator) -> Schedule:
    sites, config = _NAMES[:3], _config()
    events = _some(rng, ROTATIONS, int(rng.integers(1, 4)), sites, config.rounds)
    events += _some(rng, [*_AT_SERVER, *_AT_SITE, FOLLOWER_ENDED], int(rng.integers(0, 2)), sites, config.rounds)
    return Schedule(seed, "rotation", config, sites, tuple(events))


def _queue(seed: int, rng: np.random.Generator) -> Schedule:
    sites, config = _NAMES[:2], _config(sites=2)
    events = [Event(PAUSE, int(rng.integers(2, config.rounds + 1)))] if rng.random() < 0.5 else []
    events += _some(rng, [*_AT_SERVER, *_AT_SITE, BAD_UPDATE], int(rng.integers(0, 3)), sites, config.rounds)
    return Schedule(seed, "queue", config, sites, tuple(events), _config(sites=2, rounds=2, seed=1))


def _dropout(seed: int, rng: np.random.Generator) -> Schedule:
    sites, config = _NAMES, _config(sites=4, rounds=2, strategy="secagg")
    events = [
        Event(DROPOUT, server_round, site=str(rng.choice(sites)), how=str(rng.choice(STAGES)))
        for server_round in rng.permutation([1, 2])[: int(rng.integers(1, 3))].tolist()
    ]
    events += _some(rng, [*_AT_SERVER, *_HARMLESS], int(rng.integers(0, 2)), sites, config.rounds)
    return Schedule(seed, "dropout", config, sites, tuple(events))


def _config(**changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "method": "fedpgp", "data": "folder:own", "protocol": "own-data", "sites": 3, "rounds": 3, "shots": 4,
        "answer_seconds": 300.0, "resend_seconds": 20.0, "protocol_options": {"class_names": CLASS_NAMES},
        "method_options": {"n_ctx": 4, "rank": 2},
    }  # fmt: skip
    return RunConfig.build({**settings, **changes})


def _some(
    rng: np.random.Generator, what: list[str] | tuple[str, ...], number: int, sites: tuple[str, ...], rounds: int
) -> list[Event]:
    """Different events; at most one of them at the server's processes."""
    events: list[Event] = []
    for name in map(str, rng.permutation(what)):
        at_server = name in (*_AT_SERVER, ROTATIONS[0], FOLLOWER_ENDED)
        event = Event(
            name,
            int(rng.integers(1, rounds + 1)),
            0.0 if name == BAD_UPDATE else round(float(rng.uniform(0, 4)), 1),
            "" if at_server else str(rng.choice(sites)),
            str(rng.choice(BAD_UPDATES)) if name == BAD_UPDATE else "",
        )
        if len(events) < number and not (name in _AT_SERVER and any(known.what in _AT_SERVER for known in events)):
            events.append(event)
    return events
