"""The rounds of one fold: train, checkpoint, evaluate and report, from where the run stopped."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import MessageType, RecordDict

from fedgraft.core.errors import RunFailed
from fedgraft.data.results import is_evaluation
from fedgraft.data.split import Fold
from fedgraft.flower import messages
from fedgraft.flower.messages import Arrays, Job, to_array_record
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.server import summary
from fedgraft.server.measurements import Measurements, evaluated, measured
from fedgraft.server.rounds import RoundDriver, RoundResult
from fedgraft.server.router import Reply, Router
from fedgraft.server.secure_round import SecureRound
from fedgraft.strategies.answers import LeftOut
from fedgraft.strategies.components import State

if TYPE_CHECKING:
    from fedgraft.server.coordinator import Coordinator


class FoldRun:
    """The rounds of one fold, starting from its newest checkpoint.

    Attributes:
        arrays: the shared parameters after the last round so far.
    """

    def __init__(
        self, coordinator: "Coordinator", router: Router, driver: RoundDriver, number: int, fold: Fold
    ) -> None:
        self._coordinator = coordinator
        self._plan, self._directory = coordinator.plan, coordinator.directory
        self._observer, self._split = coordinator.observer, coordinator.split
        self._router, self._driver, self._number, self._fold = router, driver, number, fold
        self._job = replace(coordinator.job, fold=number)
        self._rounds = self._plan.config.rounds if self._plan.method.trains else 0
        self._bounds, self._names = coordinator.bounds(fold), coordinator.members.names
        self._reported: dict[str, float] = {}
        self.arrays, self._state, self._first = self._restore(coordinator.initial())

    def run(self) -> dict[str, Any]:
        """Train and evaluate up to the last round and return its confusion counts by scope."""
        counts = self._evaluate(self._first) if self._is_evaluated_at(self._first) else {}
        for server_round in range(self._first + 1, self._rounds + 1):
            if not self._coordinator.before_round(self._router, server_round):
                return self._stopped_after(server_round - 1)
            self._train(server_round)
            if self._is_evaluated_at(server_round):
                counts = self._evaluate(server_round)
        return counts

    def _stopped_after(self, last: int) -> dict[str, Any]:
        """Make a completed round the last one, and evaluate it as such."""
        self._coordinator.stopped_after = self._rounds = last
        rows = self._directory.rows()
        earlier = [row for row in rows if not (is_evaluation(row) and self._place(last).items() <= row.items())]
        if earlier != rows:
            self._directory.replace_rows(earlier)
        return self._evaluate(last)

    def _restore(self, initial: Arrays) -> tuple[Arrays, State, int]:
        """The state to continue from; rows of later rounds and of an unfinished evaluation are dropped."""
        checkpoint = self._directory.checkpoints.newest(self._number, self._job.fingerprint)
        if checkpoint is not None:
            checkpoint.require_shapes({name: array.shape for name, array in initial.items()})
            self._driver.require_memory(checkpoint.state)
        first = checkpoint.round if checkpoint else 0
        kept = [row for row in self._directory.rows() if row["fold"] != self._fold.name or row["round"] < first]
        self._directory.replace_rows([*kept, *(checkpoint.rows if checkpoint else [])])
        return (checkpoint.arrays, checkpoint.state, first) if checkpoint else (initial, {}, 0)

    def _is_evaluated(self, server_round: int) -> bool:
        return server_round % self._plan.config.eval_every == 0 or server_round == self._rounds

    def _is_evaluated_at(self, server_round: int) -> bool:
        """Whether a round is evaluated by separate messages."""
        return self._is_evaluated(server_round) and not self._measures_later(server_round)

    def _measures_later(self, server_round: int) -> bool:
        """Whether a round is evaluated by the next round's messages: each message costs a deployed site a process."""
        every_site = self._plan.config.participation == 1
        return self._plan.protocol.deployed and every_site and server_round < self._rounds

    def _train(self, server_round: int) -> None:
        earlier, began = server_round - 1, time.monotonic()
        measure = self._is_evaluated(earlier) and self._measures_later(earlier)
        content = self._content(replace(self._job, round=server_round, measure=measure))
        own = self._own_records(sites := self._driver.participants(server_round))
        replies = self._router.ask(MessageType.TRAIN, content, sites, own)
        result = self._conclude(server_round, replies)
        seconds = time.monotonic() - began
        downlink = summary.downlink_bytes(content, own)
        rows = summary.training_rows(self._place(server_round), result, replies, downlink, seconds)
        if measure:
            self._report(earlier, measured(replies, self._fold.scopes, self._bounds))
        self.arrays, self._state = result.arrays, result.state
        self._reported = {name: value for name, value in result.figures.items() if name == "loss"}
        checkpoint = Checkpoint(self._number, server_round, result.arrays, rows, result.state)
        self._directory.checkpoints.save(checkpoint, self._job.fingerprint)
        self._directory.append(rows)
        for entry in result.left_out:
            self._observer.on_site_left_out(server_round, entry.site, self._named(entry))
        if result.unused:
            self._observer.on_notice(summary.unused_sentence(server_round, result.unused))
        for site, times in sorted(result.shortened.items()):
            self._observer.on_notice(
                f"Round {server_round}: the update of site {site} was {times:.1f} times the norm bound; it is cut."
            )

    def _conclude(self, server_round: int, replies: Sequence[Reply]) -> RoundResult:
        """The round's result, from answers that the server sees or from their sum."""
        rule = self._plan.composition.rule.summed()
        if rule is None:
            return self._driver.conclude(server_round, self.arrays, replies, self._state)

        def require(sound: int, left_out: Sequence[LeftOut]) -> None:
            self._driver.require_quorum(server_round, sound, left_out)

        job, asked = replace(self._job, round=server_round), self._driver.participants(server_round)
        members = self._coordinator.members
        secure = SecureRound(rule, self._router, job, asked, rule.vector_size(self.arrays), require, members.is_own)
        return self._driver.conclude_sum(server_round, self.arrays, rule, secure.total(replies), self._state)

    def _evaluate(self, server_round: int) -> dict[str, Any]:
        """Evaluate every scope at every site; return the confusion counts in the last round."""
        job = replace(self._job, round=server_round, detailed=server_round == self._rounds)
        sites = range(self._plan.config.sites)
        replies = self._router.ask(MessageType.EVALUATE, self._content(job), sites, self._own_records(sites))
        result = evaluated(sites, replies, self._fold.scopes, self._bounds, job.detailed)
        self._report(server_round, result)
        return self._confusions(result)

    def _confusions(self, result: Measurements) -> dict[str, Any]:
        """Confusion counts over all sites, with the class names of each scope."""
        names = self._split.class_names
        spaces = {scope.name: [names[index] for index in scope.classes] for scope in self._fold.scopes}
        return {
            scope: {"classes": spaces[scope], "counts": table.tolist()} for scope, table in result.confusions.items()
        }

    def _named(self, entry: LeftOut) -> str:
        """The reason, with the site's name where it has one."""
        return f"{self._names[entry.site]}: {entry.reason}" if entry.site in self._names else entry.reason

    def _report(self, server_round: int, result: Measurements) -> None:
        """Append and report the rows of one evaluation; raises RunFailed if no site could evaluate."""
        place, failed = self._place(server_round), result.left_out
        for entry in failed:
            self._observer.on_site_left_out(server_round, entry.site, self._named(entry))
        if not result.counts:
            raise RunFailed(f"No site could evaluate round {server_round}. {failed[0].reason if failed else ''}")
        rows = [summary.evaluation_row(place, scope.name, result.counts[scope.name]) for scope in self._fold.scopes]
        left_out = [summary.left_out_row(place, entry.site, f"evaluation: {entry.reason}") for entry in failed]
        self._directory.append([*rows, *left_out])
        accuracies = {row["scope"]: row["accuracy"] for row in rows}
        self._observer.on_round_end(server_round, self._rounds, {**accuracies, **self._reported})

    def _content(self, job: Job) -> RecordDict:
        common = self._plan.composition.rule.common(self.arrays)
        return RecordDict({messages.JOB: job.to_record(), messages.SHARED: to_array_record(common)})

    def _own_records(self, sites: Sequence[int]) -> dict[int, RecordDict]:
        """What each of some sites receives besides, where the rule sends each its own."""
        own, state = self._plan.composition.own, self._state
        if not self._plan.composition.rule.sends_each_its_own:
            return {}
        return {s: RecordDict({messages.SHARED: to_array_record(own(s, self.arrays, state))}) for s in sites}

    def _place(self, server_round: int) -> dict[str, Any]:
        return {"round": server_round, "fold": self._fold.name}
