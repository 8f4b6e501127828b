"""The server's main program: find the sites, run the rounds of each fold, and sum the run up."""

import shutil
import threading
import time
from dataclasses import replace
from typing import Any

from flwr.app import RecordDict

from fedgraft.backbones import Backbone
from fedgraft.core.errors import RunFailed, RunPaused, reason_of
from fedgraft.core.observer import Observer
from fedgraft.core.randomness import public_key
from fedgraft.data.split import Fold, Split
from fedgraft.flower import messages
from fedgraft.flower.messages import Arrays, Job
from fedgraft.flower.run_state import RunState, Wanted
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server import summary
from fedgraft.server.drift_monitor import DriftMonitor
from fedgraft.server.fold_run import FoldRun
from fedgraft.server.membership import Membership
from fedgraft.server.retention import Retention
from fedgraft.server.rounds import RoundDriver
from fedgraft.server.router import Router
from fedgraft.server.sender import Grid, Sender
from fedgraft.server.site_bounds import SiteBounds, SplitBounds


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
            fold_run = FoldRun(self, router, driver, number, fold)
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


def _confusion_name(fold: Fold, scope: str) -> str:
    return scope if fold.name is None else f"{scope}: {fold.name}"
