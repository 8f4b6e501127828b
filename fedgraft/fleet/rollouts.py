"""Rollouts in the registry's database: what a device should run, when a stage ends, and what halts the ascent."""

import json
from dataclasses import dataclass

from fedgraft.device.agent.metadata import Channel
from fedgraft.fleet.database import Database
from fedgraft.fleet.rollout import RolloutPlan, place


@dataclass(frozen=True)
class Rollout:
    """Where the rollout of a release stands.

    Attributes:
        stage: the position in the plan's percentages.
        began: when the stage began.
        state: going, done (for all devices), halted, withdrawn.
        reason: why it is halted.
    """

    channel: str
    release: str
    version: int
    plan: RolloutPlan
    stage: int
    began: float
    state: str
    reason: str

    @property
    def percent(self) -> float:
        """Of the channel's devices that the release is for."""
        return 100.0 if self.state == "done" else self.plan.percents[self.stage]

    def includes(self, device: str, current: str) -> bool:
        """Whether the release is for a device; a halted one only for those that run it already."""
        if self.state == "withdrawn":
            return False
        if self.state == "halted":
            return current == self.release
        return place(device, self.release) < self.percent


@dataclass(frozen=True)
class Figures:
    """What is known of a release in a channel.

    Attributes:
        tried: devices that run it or have run it, or refused it.
        settled: those that came back with it after they had switched.
        failed: those that went back or refused it.
        predictions, unknown: of all its devices.
    """

    tried: int
    settled: int
    failed: int
    predictions: int
    unknown: int

    @property
    def percentages(self) -> dict[str, float]:
        """By the names of halting conditions, where there is something to divide by."""
        known = {}
        if self.tried:
            known["failed"] = 100 * self.failed / self.tried
        if self.predictions:
            known["unknown"] = 100 * self.unknown / self.predictions
        return known

    @property
    def is_known_to_work(self) -> bool:
        """Whether most of the devices that tried it have shown how it is, and most of those run it."""
        return self.settled > self.failed and 2 * (self.settled + self.failed) >= self.tried


def rollouts(database: Database, channel: str | None = None) -> list[Rollout]:
    """The rollouts of a channel or of all, the oldest first."""
    rows = database.rows(
        "SELECT o.*, r.version FROM rollouts o JOIN releases r ON r.id = o.release "
        "WHERE ? IS NULL OR o.channel = ? ORDER BY o.channel, o.number",
        channel, channel,
    )  # fmt: skip
    return [
        Rollout(
            channel=row["channel"],
            release=row["release"],
            version=row["version"],
            plan=RolloutPlan.parse(json.loads(row["plan"])),
            stage=row["stage"],
            began=row["began"],
            state=row["state"],
            reason=row["reason"],
        )
        for row in rows
    ]


def target(channel: Channel, known: list[Rollout], device: str, current: str) -> str:
    """The release that a device should run: the newest one that is for it; "" if none is."""
    by_release = {rollout.release: rollout for rollout in known}
    for release in reversed(channel.releases):
        rollout = by_release.get(release.id)
        if rollout is not None and rollout.includes(device, current):
            return release.id
    return ""


def figures(database: Database, channel: str, release: str) -> Figures:
    """What devices of a channel have reported of a release."""
    outcomes = database.row(
        "SELECT COUNT(*) AS tried, COALESCE(SUM(o.result = 'settled'), 0) AS settled, "
        "COALESCE(SUM(o.result = 'failed'), 0) AS failed "
        "FROM outcomes o JOIN devices d ON d.id = o.device WHERE o.release = ? AND d.channel = ?",
        release, channel,
    )  # fmt: skip
    counted = database.row(
        "SELECT COALESCE(SUM(t.predictions), 0) AS predictions, COALESCE(SUM(t.unknown), 0) AS unknown "
        "FROM telemetry t JOIN devices d ON d.id = t.device WHERE t.release = ? AND d.channel = ?",
        release, channel,
    )  # fmt: skip
    assert outcomes is not None
    assert counted is not None
    return Figures(
        outcomes["tried"], outcomes["settled"], outcomes["failed"], counted["predictions"], counted["unknown"]
    )


def advance(database: Database, now: float) -> list[Rollout]:
    """Halt rollouts whose condition holds, and begin the next stage of those whose stage has lasted; all rollouts.

    A stage ends only when its devices have shown that the release works, unless it has no device at all. The stage for
    all devices is watched as long as another where there is a condition that could halt it.
    """
    for rollout in rollouts(database):
        if rollout.state != "going":
            continue
        known = figures(database, rollout.channel, rollout.release)
        reason = rollout.plan.halt.broken(known.percentages)
        where = (rollout.channel, rollout.release)
        if reason is not None:
            database.execute(
                "UPDATE rollouts SET state = 'halted', reason = ? WHERE channel = ? AND release = ?", reason, *where
            )
        elif now - rollout.began >= rollout.plan.after and (known.is_known_to_work or _is_empty(database, rollout)):
            last = len(rollout.plan.percents) - 1
            stage = min(rollout.stage + 1, last)
            ended = rollout.plan.percents[stage] >= 100 and (rollout.stage == last or not rollout.plan.halt.terms)
            database.execute(
                "UPDATE rollouts SET stage = ?, began = ?, state = ? WHERE channel = ? AND release = ?",
                stage, now, "done" if ended else "going", *where,
            )  # fmt: skip
    return rollouts(database)


def _is_empty(database: Database, rollout: Rollout) -> bool:
    rows = database.rows("SELECT id FROM devices WHERE channel = ? AND NOT revoked", rollout.channel)
    return not any(rollout.includes(row["id"], "") for row in rows)
