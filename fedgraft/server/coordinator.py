"""The server's main program: find the sites, then train, checkpoint, evaluate and report the rounds of each fold."""

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flwr.app import MessageType, RecordDict

from fedgraft.backbones import Backbone
from fedgraft.core.errors import RunFailed, RunPaused, reason_of
from fedgraft.core.observer import Observer
from fedgraft.core.randomness import public_key
from fedgraft.data.results import is_evaluation
from fedgraft.data.split import Fold, Split
from fedgraft.flower import messages
from fedgraft.flower.messages import Arrays, Job, to_array_record
from fedgraft.flower.run_state import RunState, Wanted
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server import summary
from fedgraft.server.drift_monitor import DriftMonitor
from fedgraft.server.measurements import Measurements, evaluated, measured
from fedgraft.server.membership import Membership
from fedgraft.server.retention import Retention
from fedgraft.server.rounds import RoundDriver, RoundResult
from fedgraft.server.router import Reply, Router
from fedgraft.server.secure_round import SecureRound
from fedgraft.server.sender import Grid, Sender
from fedgraft.server.site_bounds import SiteBounds, SplitBounds
from fedgraft.strategies.answers import LeftOut
from fedgraft.strategies.components import State


class Coordinator:
    """Runs a prepared run on a grid of nodes; `run` is the body of the ServerApp.

    Args:
        zero_shot: accuracy in percent of the hand-written templates by scope, for the summary.

    Attributes:
        members: who takes part, in a deployment.
        stopped_after: the round after which an operator stopped the run for good.
    """

    def __init__(
        self,
        plan: Plan,
        directory: RunDirectory,
        split: Split,
        backbone: Backbone,
        observer: Observer,
        zero_shot: dict[str, float],
    ) -> None:
        self.plan, self.config, self.directory = plan, plan.config, directory
        self.split, self.backbone, self.observer, self.zero_shot = split, backbone, observer, zero_shot
        self.members = Membership(self.config, directory, split, observer)
        self.stopped_after: int | None = None
        self._stopping = threading.Event()
        self._state = RunState(directory.path)
        self._adapter = plan.adapter(Vocabulary.of(backbone, split))
        self._monitor = DriftMonitor(plan, backbone, split.class_names, self.initial())
        if plan.composition.needs_drift:
            self._monitor.require_sensitivity()
        self.job = Job(self.config, str(directory.path.absolute()), backbone.fingerprint, fold=0, round=0)

    def run(self, grid: Grid) -> None:
        """Run all folds, then write summary.json.

        Raises:
            RunFailed: sites are missing, a round has too few valid answers, or the run directory cannot be written.
            RunPaused: an operator wants it to.
        """
        try:
            self._run(grid)
        except OSError as error:
            raise RunFailed(
                f"The run in {self.directory.path} stopped: {reason_of(error)}. Completed rounds are kept; resume it "
                "with --resume."
            ) from error

    def stop(self) -> None:
        """Make `run` end with `RunFailed` soon; may be called from another thread or a signal handler."""
        self._stopping.set()

    def _run(self, grid: Grid) -> None:
        began = time.monotonic()
        router = self._found_sites(grid)
        confusions: dict[str, Any] = {}
        trained: list[Arrays] = []
        drivers = [self._driver(fold) for fold in self.split.folds]
        for number, (fold, driver) in enumerate(zip(self.split.folds, drivers, strict=True)):
            self.observer.on_fold_start(fold.name, number, len(drivers))
            fold_run = _FoldRun(self, router, driver, number, fold)
            confusion = fold_run.run()
            trained.append(fold_run.arrays)
            confusions.update({_confusion_name(fold, scope): value for scope, value in confusion.items()})
        self.directory.write_json("confusion.json", {"scopes": confusions})
        rows, fingerprint = self.directory.rows(), self.backbone.fingerprint
        seconds = time.monotonic() - began
        content = summary.run_summary(self.plan, fingerprint, self._adapter, rows, self.zero_shot, seconds)
        by_fold = {fold.name: driver for fold, driver in zip(self.split.folds, drivers, strict=True)}
        content["privacy"] = summary.privacy_account(self.plan, by_fold, rows, content["shared_parameters"])
        retention = Retention(self.plan, self.backbone, self.split)
        content["retention"] = retention.measured(trained, rows, self.zero_shot)
        content["often_left_out"] = summary.often_left_out(rows, self.members.names)
        if self.stopped_after is not None:
            content |= {"rounds": self.stopped_after, "stopped_after": self.stopped_after}
        shutil.rmtree(self.directory.open_rounds, ignore_errors=True)
        self.directory.write_json("summary.json", content)
        for entry in content["often_left_out"]:
            self.observer.on_notice(summary.often_left_out_sentence(entry))

    def _found_sites(self, grid: Grid) -> Router:
        """A router that knows which node holds which site."""
        deployed = self.plan.protocol.deployed
        resend = self.config.resend_seconds if deployed else None
        router = Router(Sender(grid, self._stopping, self.config.answer_seconds, resend))
        if deployed:
            name, attempt = self.directory.begin_attempt()
            self.job = replace(self.job, run=name, attempt=attempt)
            self.members.greet(router, self.job)
        else:
            router.find(RecordDict({messages.JOB: self.job.to_record()}), self.config.sites)
        return router

    def before_round(self, router: Router, server_round: int) -> bool:
        """Let sites join, come back and leave; whether the run goes on with a round.

        Raises:
            RunPaused: an operator wants it to.
        """
        if not self.plan.protocol.deployed:
            return True
        self.members.refresh(router, server_round)
        if (wanted := self._state.wanted) is Wanted.PAUSE:
            raise RunPaused(f"The run is paused after round {server_round - 1}.")
        return wanted is not Wanted.STOP

    def _driver(self, fold: Fold) -> RoundDriver:
        """The fold's round driver; noise that protects a deployed site has a secret key."""
        secret = self.plan.protocol.deployed and self.plan.composition.privacy() is not None
        key = self.directory.noise_key() if secret else public_key(self.config.seed)
        drift, bounds = self._monitor.drift, self.bounds(fold)
        known = None
        if self.plan.composition.needs_slope:
            known = self._monitor.knowledge(Vocabulary.of(self.backbone, self.split), fold.train_classes)
        return RoundDriver(self.plan, fold.name or "", self.initial(), key, drift, bounds, known)

    def bounds(self, fold: Fold) -> SiteBounds:
        """How many images the sites may count."""
        return self.members.bounds if self.plan.protocol.deployed else SplitBounds(fold)

    def initial(self) -> Arrays:
        """What the server holds in round 0."""
        return {name: value.numpy().copy() for name, value in self._adapter.server_state().items()}


class _FoldRun:
    """The rounds of one fold, starting from its newest checkpoint.

    Attributes:
        arrays: the shared parameters after the last round so far.
    """

    def __init__(self, coordinator: Coordinator, router: Router, driver: RoundDriver, number: int, fold: Fold) -> None:
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


def _confusion_name(fold: Fold, scope: str) -> str:
    return scope if fold.name is None else f"{scope}: {fold.name}"
