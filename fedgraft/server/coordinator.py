"""The server's main program: find the sites, then train, checkpoint, evaluate and report the rounds of each fold."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import MessageType, RecordDict

from fedgraft.backbones import Backbone
from fedgraft.core.errors import RunFailed, reason_of
from fedgraft.core.observer import Observer
from fedgraft.core.randomness import public_key
from fedgraft.data.results import Row
from fedgraft.data.split import Fold, Split
from fedgraft.flower import messages
from fedgraft.flower.messages import Arrays, Job, from_array_record, to_array_record, wire_size
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.checkpoints import Checkpoint
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server import summary
from fedgraft.server.drift_monitor import DriftMonitor
from fedgraft.server.rounds import RoundDriver
from fedgraft.server.router import Reply, Router
from fedgraft.server.sender import Grid, Sender
from fedgraft.strategies.components import State


class Coordinator:
    """Runs a prepared run on a grid of nodes; `run` is the body of the ServerApp.

    Args:
        zero_shot: accuracy in percent of the hand-written templates by scope, for the summary.
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
        self._stopping = threading.Event()
        self._adapter = plan.adapter(Vocabulary.of(backbone, split))
        self._monitor = DriftMonitor(plan, backbone, split.class_names, self.initial())
        if plan.composition.needs_drift:
            self._monitor.require_sensitivity()
        self.job = Job(self.config, str(directory.path.absolute()), backbone.fingerprint, fold=0, round=0)

    def run(self, grid: Grid) -> None:
        """Run all folds, then write summary.json.

        Raises:
            RunFailed: sites are missing, a round has too few valid answers, or the run directory cannot be written.
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
        drivers = [self._driver(fold) for fold in self.split.folds]
        for number, (fold, driver) in enumerate(zip(self.split.folds, drivers, strict=True)):
            self.observer.on_fold_start(fold.name, number, len(drivers))
            confusion = _FoldRun(self, router, driver, number, fold).run()
            confusions.update({_confusion_name(fold, scope): value for scope, value in confusion.items()})
        self.directory.write_json("confusion.json", {"scopes": confusions})
        rows, fingerprint = self.directory.rows(), self.backbone.fingerprint
        seconds = time.monotonic() - began
        content = summary.run_summary(self.plan, fingerprint, self._adapter, rows, self.zero_shot, seconds)
        content["privacy"] = summary.privacy_account(self.plan, drivers)
        self.directory.write_json("summary.json", content)

    def _found_sites(self, grid: Grid) -> Router:
        """A router that knows which node holds which site."""
        deployed = self.plan.protocol.deployed
        resend = self.config.resend_seconds if deployed else None
        router = Router(Sender(grid, self._stopping, self.config.answer_seconds, resend))
        if deployed:
            name, attempt = self.directory.begin_attempt()
            self.job = replace(self.job, run=name, attempt=attempt)
            self._greet(router)
        else:
            router.find(RecordDict({messages.JOB: self.job.to_record()}), self.config.sites)
        return router

    def _greet(self, router: Router) -> None:
        """Report who takes part and record it in sites.json, so that a site keeps its number in a resumed run."""
        known = self.directory.read_json("sites.json") or {}
        numbers = {name: entry["number"] for name, entry in known.items()}
        greeting = router.greet(RecordDict({messages.JOB: self.job.to_record()}), self.config.sites, numbers)
        for reason in greeting.refused:
            self.observer.on_notice(f"A site does not take part: {reason}.")
        for name in sorted(set(greeting.numbers) - set(greeting.hellos)):
            self.observer.on_notice(f"The site {name!r} took part before and has not connected.")
        entries = {name: {**known.get(name, {}), "number": number} for name, number in greeting.numbers.items()}
        for name, hello in greeting.hellos.items():
            own = hello.config_records[messages.HELLO]
            entries[name] |= {key: own[key] for key in ("version", "fingerprint")}
            if messages.CLASS_COUNTS in hello.metric_records:
                entries[name]["images"] = dict(hello.metric_records[messages.CLASS_COUNTS])
            self.observer.on_notice(f"Site {greeting.numbers[name]} is {name!r}.")
        self.directory.write_json("sites.json", entries)

    def _driver(self, fold: Fold) -> RoundDriver:
        """The fold's round driver; noise that protects a deployed site has a secret key."""
        secret = self.plan.protocol.deployed and self.plan.composition.privacy() is not None
        key = self.directory.noise_key() if secret else public_key(self.config.seed)
        return RoundDriver(self.plan, fold.name or "", self.initial(), key, self._monitor.drift)

    def initial(self) -> Arrays:
        """What the server holds in round 0."""
        return {name: value.numpy().copy() for name, value in self._adapter.server_state().items()}


class _FoldRun:
    """The rounds of one fold, starting from its newest checkpoint."""

    def __init__(self, coordinator: Coordinator, router: Router, driver: RoundDriver, number: int, fold: Fold) -> None:
        self._plan, self._directory = coordinator.plan, coordinator.directory
        self._observer, self._split = coordinator.observer, coordinator.split
        self._router, self._driver, self._number, self._fold = router, driver, number, fold
        self._job = replace(coordinator.job, fold=number)
        self._rounds = self._plan.config.rounds if self._plan.method.trains else 0
        self._reported: dict[str, float] = {}
        self._arrays, self._state, self._first = self._restore(coordinator.initial())

    def run(self) -> dict[str, Any]:
        """Train and evaluate up to the last round and return its confusion counts by scope."""
        counts = self._evaluate(self._first) if self._is_evaluated_at(self._first) else {}
        for server_round in range(self._first + 1, self._rounds + 1):
            self._train(server_round)
            if self._is_evaluated_at(server_round):
                counts = self._evaluate(server_round)
        return counts

    def _restore(self, initial: Arrays) -> tuple[Arrays, State, int]:
        """The state to continue from; rows of later rounds and of an unfinished evaluation are dropped."""
        checkpoint = self._directory.checkpoints.newest(self._number, self._job.fingerprint)
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
        replies = self._router.ask(MessageType.TRAIN, content, self._driver.participants(server_round))
        result = self._driver.conclude(server_round, self._arrays, replies, self._state)
        seconds = time.monotonic() - began
        rows = summary.training_rows(self._place(server_round), result, replies, wire_size(content), seconds)
        if measure:
            self._report(earlier, summary.scope_counts(replies, messages.MEASURED), self._unmeasured(earlier, replies))
        self._arrays, self._state = result.arrays, result.state
        self._reported = {"loss": result.figures["loss"]}
        checkpoint = Checkpoint(self._number, server_round, result.arrays, rows, result.state)
        self._directory.checkpoints.save(checkpoint, self._job.fingerprint)
        self._directory.append(rows)
        for entry in result.left_out:
            self._observer.on_site_left_out(server_round, entry.site, entry.reason)

    def _evaluate(self, server_round: int) -> dict[str, Any]:
        """Evaluate every scope at every site; return the confusion counts in the last round."""
        job = replace(self._job, round=server_round, detailed=server_round == self._rounds)
        sites = range(self._plan.config.sites)
        replies = self._router.ask(MessageType.EVALUATE, self._content(job), sites)
        failed = [self._left_out(server_round, reply.site, reply.error) for reply in replies if reply.content is None]
        self._report(server_round, summary.scope_counts(replies, messages.METRICS), failed)
        return self._confusions(replies) if job.detailed else {}

    def _confusions(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """Confusion counts over all sites, with the class names of each scope."""
        tables: dict[str, np.ndarray[Any, Any]] = {}
        for reply in replies:
            if reply.content is not None:
                for scope, table in from_array_record(reply.content.array_records[messages.COUNTS]).items():
                    tables[scope] = tables.get(scope, 0) + table.astype(np.int64)
        names = self._split.class_names
        spaces = {scope.name: [names[index] for index in scope.classes] for scope in self._fold.scopes}
        return {scope: {"classes": spaces[scope], "counts": table.tolist()} for scope, table in tables.items()}

    def _unmeasured(self, server_round: int, replies: Sequence[Reply]) -> list[Row]:
        """The rows of sites that trained but could not be evaluated."""
        return [
            self._left_out(server_round, reply.site, str(reply.content.config_records[messages.UNMEASURED]["reason"]))
            for reply in replies
            if reply.content is not None and messages.UNMEASURED in reply.content.config_records
        ]

    def _left_out(self, server_round: int, site: int, reason: str) -> Row:
        self._observer.on_site_left_out(server_round, site, reason)
        return summary.left_out_row(self._place(server_round), site, f"evaluation: {reason}")

    def _report(self, server_round: int, counts: summary.ScopeCounts, failed: list[Row]) -> None:
        """Append and report the rows of one evaluation; raises RunFailed if no site could evaluate."""
        if not counts:
            raise RunFailed(f"No site could evaluate round {server_round}. {failed[0]['reason'] if failed else ''}")
        place = self._place(server_round)
        rows = [summary.evaluation_row(place, scope.name, counts[scope.name]) for scope in self._fold.scopes]
        self._directory.append([*rows, *failed])
        accuracies = {row["scope"]: row["accuracy"] for row in rows}
        self._observer.on_round_end(server_round, self._rounds, {**accuracies, **self._reported})

    def _content(self, job: Job) -> RecordDict:
        return RecordDict({messages.JOB: job.to_record(), messages.SHARED: to_array_record(self._arrays)})

    def _place(self, server_round: int) -> dict[str, Any]:
        return {"round": server_round, "fold": self._fold.name}


def _confusion_name(fold: Fold, scope: str) -> str:
    return scope if fold.name is None else f"{scope}: {fold.name}"
