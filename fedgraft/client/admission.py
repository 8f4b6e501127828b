"""What a deployed site does with a message before and after the work: it decides whether to do it, and keeps the log.

Bounds, policy and approval are checked before an image is read or a backbone is loaded. What was asked, decided, done
and sent stands in the site's audit log, from which a new worker knows all of it again.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from flwr.app import RecordDict

from fedgraft.client.job_bounds import check_fold, check_job, read_job
from fedgraft.client.known_peers import KnownPeers
from fedgraft.client.release import (
    confusion_hash,
    description,
    failures,
    received_hash,
    released,
    without_confusion,
)
from fedgraft.client.run_in_words import in_words
from fedgraft.config.run_config import RunConfig
from fedgraft.core.refusals import WAITS, Refusal, refusing
from fedgraft.flower.internals import record_bytes
from fedgraft.flower.messages import Job
from fedgraft.methods.plan import Plan
from fedgraft.runs.asked_runs import AskedRun, AskedRuns, configuration_hash
from fedgraft.runs.audit_log import AuditLog
from fedgraft.runs.site_folder import SiteFolder
from fedgraft.runs.site_policy import planned_measurements

_REPEATS = 2
"""How many times what a run needs a server may ask for different things: one that resumes has to ask some again."""
_STAGES = 100
"""Messages of another kind that a round may have: a server that resumes repeats its stages with other keys."""
_TURNED_AWAY = 1000
"""Refusals of messages without a readable run that a worker logs."""
_log = logging.getLogger("fedgraft.worker")


@dataclass(frozen=True)
class Task:
    """A message that was admitted.

    Attributes:
        key: identifies what is asked for, the same for a repeated message.
    """

    kind: str
    content: RecordDict
    job: Job
    asked: AskedRun
    key: str


class Admission:
    """Admits messages and releases answers, for one worker of a site."""

    def __init__(self, site: SiteFolder) -> None:
        self._policy, self._peers = site.settings.policy, KnownPeers(site)
        self._log = AuditLog(site.audit_log)
        self._runs = AskedRuns(self._log.fresh())
        self._turned_away: set[str] = set()
        self._plan = lru_cache(maxsize=1)(_deployed_plan)
        self._close_interrupted(site.settings.task_seconds)

    def admit(self, kind: str, content: RecordDict) -> Task:
        """Decide whether to do what a message asks; raises `Refusal`, which is logged."""
        try:
            job = read_job(content)
            check_job(job, content)
            plan = self._plan(job.config.model_dump_json())
            check_fold(job, plan)
            asked = self._asked(job, plan)
        except Refusal as refusal:
            self._turn_away(refusal)
            raise
        task = Task(kind, content, job, asked, _key(kind, job.fold, job.round, content))
        try:
            self._policy.check(job.config, job.fingerprint)
            self._peers.require_acceptable(plan)
            self._check_decision(asked)
            self._check_amounts(task, len(plan.announced.folds))
        except Refusal as refusal:
            self.decline(task, refusal.public, str(refusal))
            raise
        return task

    def release(self, task: Task, answer: RecordDict, seconds: float) -> bytes:
        """An answer as it leaves the site; raises `Refusal` if it has more bytes than the policy lets leave."""
        kept = released(answer, self._policy, self._is_last_evaluation(task))
        if (table := confusion_hash(kept)) and task.asked.confusion not in ("", table):
            _log.warning("other confusion counts of the run %s have left the site before; these do not", task.job.run)
            kept, table = without_confusion(kept), ""
        data = record_bytes(kept)
        self._check_bytes(task, len(data))
        if reasons := failures(kept):
            for reason in reasons:
                self.decline(task, reason, "", seconds)
            return data
        done = description(task.content, kept)
        answered = hashlib.sha256(
            f"{task.key}{done['arrays']}{done['numbers'] if task.kind == 'hello' else ''}".encode()
        )
        if (key := answered.hexdigest()) in task.asked.answered:
            self._count(task, len(data), seconds)
            return data
        more = {"confusion": table} if table else {}
        place = {"fold": task.job.fold, "round": task.job.round, "attempt": task.job.attempt, "key": key}
        self._add(
            "sent", task.asked, {"kind": task.kind, **place, "bytes": len(data), "seconds": seconds, **done, **more}
        )
        return data

    def repeat(self, task: Task, data: bytes) -> bytes:
        """The answer that a message got before, again; raises as `release` does."""
        self._check_bytes(task, len(data))
        self._count(task, len(data), 0.0)
        return data

    def decline(self, task: Task, reason: str, detail: str, seconds: float = 0.0) -> None:
        """Log that a message was refused, once for each reason; a full disk does not change the refusal."""
        if reason in task.asked.refusals and not task.asked.open_since:
            task.asked.seconds += seconds
            return
        content = {"kind": task.kind, "round": task.job.round, "reason": reason, "detail": detail}
        with suppress(OSError):
            self._add("declined", task.asked, {**content, "seconds": seconds})

    # --- before the work --------------------------------------------------------------------------

    def _asked(self, job: Job, plan: Plan) -> AskedRun:
        """What is known of the job's run; a new one is logged, and told in words."""
        self._refresh()
        configuration = configuration_hash(job.config, job.fingerprint)
        if (known := self._runs.get(job.run, configuration)) is not None:
            return known
        if self._runs.asked_within_a_day() >= self._policy.new_runs_per_day:
            raise Refusal("too-many-runs")
        content = {
            "run": job.run,
            "configuration": configuration,
            "fingerprint": job.fingerprint,
            "version": job.version,
            "last_round": job.config.rounds if plan.method.trains else 0,
            "settings": job.config.model_dump(mode="json"),
        }
        self._log.append("asked", content)
        self._refresh()
        asked = self._runs.get(job.run, configuration)
        assert asked is not None
        for line in in_words(asked):
            _log.info("%s", line)
        return asked

    def _check_decision(self, asked: AskedRun) -> None:
        if asked.decision == "refused":
            raise Refusal("refused-by-operator")
        if self._policy.approve and asked.decision != "approved":
            raise Refusal(WAITS)

    def _check_amounts(self, task: Task, folds: int) -> None:
        """Refuse more than the run needs, or than the policy lets it take; log that work begins."""
        config, asked, policy = task.job.config, task.asked, self._policy
        if asked.seconds >= policy.run_seconds:
            raise Refusal("policy", f"the site's policy accepts at most {policy.run_seconds:g} seconds of work per run")
        rounds = _REPEATS * config.rounds * folds
        limits = {
            "train": rounds,
            "evaluate": min(policy.max_measurements, _REPEATS * planned_measurements(config) * folds),
        }
        for kind, server_round, key in _works(task):
            known = asked.asked_for.get(kind, set())
            if key in known:
                continue
            most = limits.get(kind, _STAGES * rounds)
            if len(known) >= most:
                raise Refusal(
                    "policy", f"the site's policy accepts at most {most} different messages to {kind} per run"
                )
            self._add("began", asked, {"kind": kind, "fold": task.job.fold, "round": server_round, "key": key})

    def _turn_away(self, refusal: Refusal) -> None:
        if len(self._turned_away) < _TURNED_AWAY and refusal.public not in self._turned_away:
            self._turned_away.add(refusal.public)
            with suppress(OSError):
                self._log.append("declined", {"reason": refusal.public, "detail": str(refusal)})

    # --- after it ---------------------------------------------------------------------------------

    def _is_last_evaluation(self, task: Task) -> bool:
        """Whether the confusion counts that a message asks for may leave."""
        last = task.kind == "evaluate" and task.job.detailed and task.job.round == task.asked.last_round
        if task.job.detailed and not last:
            _log.warning(
                "the server asked for confusion counts in round %d of %d; they leave in the last round only",
                task.job.round, task.asked.last_round,
            )  # fmt: skip
        return last

    def _check_bytes(self, task: Task, size: int) -> None:
        sent, policy = task.asked.sent, self._policy
        for known, most, what in (
            (sent.get(task.job.round, 0), policy.round_bytes, "round"),
            (sum(sent.values()), policy.run_bytes, "run"),
        ):
            if known + size > most:
                raise Refusal("policy", f"the site's policy lets at most {most} bytes leave per {what}")

    def _count(self, task: Task, size: int, seconds: float) -> None:
        """Count what is not logged a second time."""
        asked, server_round = task.asked, task.job.round
        asked.sent[server_round] = asked.sent.get(server_round, 0) + size
        asked.seconds += seconds

    def _close_interrupted(self, most: float) -> None:
        """Count the work over which an earlier worker was killed, at most the seconds of one message."""
        for run in self._runs:
            if run.open_since:
                taken = (datetime.now(UTC) - datetime.fromisoformat(run.open_since)).total_seconds()
                with suppress(OSError):
                    self._add("interrupted", run, {"seconds": min(max(0.0, taken), most)})

    def _add(self, event: str, asked: AskedRun, content: dict[str, Any]) -> None:
        self._log.append(event, {"run": asked.name, "configuration": asked.configuration, **content})
        self._refresh()

    def _refresh(self) -> None:
        self._runs.add(self._log.fresh())


def _deployed_plan(config_json: str) -> Plan:
    with refusing("configuration"):
        plan = Plan.of(RunConfig.model_validate_json(config_json))
    if not plan.protocol.deployed:
        raise Refusal(
            "configuration", f"the protocol {plan.protocol.name!r} is for simulations, but this is a deployed site"
        )
    return plan


def _works(task: Task) -> Iterator[tuple[str, int, str]]:
    """Kind, round and key of all that a message asks to be computed."""
    job = task.job
    if task.kind != "hello":
        yield task.kind, job.round, task.key
    if task.kind == "train" and job.measure:
        yield "evaluate", job.round - 1, _key("evaluate", job.fold, job.round - 1, task.content)


def _key(kind: str, fold: int, server_round: int, content: RecordDict) -> str:
    return hashlib.sha256(f"{kind}/{fold}/{server_round}/{received_hash(content)}".encode()).hexdigest()
