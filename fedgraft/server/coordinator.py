"""The server's main program: hello, then for each fold the rounds of train, checkpoint, evaluate, report."""

import platform
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedgraft import __version__
from fedgraft.adapters.base import Adapter, Method, Seat, Vocabulary
from fedgraft.backbones import Backbone
from fedgraft.config import RunConfig
from fedgraft.data.protocols import Deal, Fold
from fedgraft.errors import RunFailed, reason_of
from fedgraft.messages import (
    CLASS_COUNTS,
    COUNTS,
    HELLO,
    JOB,
    MEASURED,
    METRICS,
    UNMEASURED,
    Arrays,
    Job,
    from_array_record,
    to_array_record,
    wire_size,
)
from fedgraft.methods import load_method
from fedgraft.randomness import derived_seed, public_key
from fedgraft.server import metrics
from fedgraft.server.delivery import Delivery
from fedgraft.server.exchange import Exchange
from fedgraft.server.observer import Observer
from fedgraft.server.probe import Probe
from fedgraft.server.run_directory import Checkpoint, Row, RunDirectory
from fedgraft.strategies.base import FederatedStrategy
from fedgraft.strategies.composition import Addition, compose


class Coordinator:
    """Runs a prepared run on a Flower grid; `run` is the body of the ServerApp.

    Args:
        zero_shot: accuracy in percent of the hand-written templates by scope, for the summary.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        deal: Deal,
        backbone: Backbone,
        observer: Observer,
        zero_shot: dict[str, float],
    ) -> None:
        self.config, self.directory, self.deal, self.backbone = config, directory, deal, backbone
        self.observer = observer
        self.zero_shot = zero_shot
        self._stopping = threading.Event()
        self.method = load_method(config.method)
        self._adapter = initial_adapter(self.method, config, deal, backbone)
        self._composition = compose(config)
        self._probe = Probe(self.method, config, backbone, deal.class_names, self._initial())
        if self._composition.needs_drift():
            self._probe.require_answer()
        self._job = Job(config, str(directory.path.absolute()), backbone.fingerprint, fold=0, round=0)

    def run(self, grid: Grid) -> None:
        """All folds, then summary.json.

        Raises:
            RunFailed: sites are missing, a round has too few sound answers, or the run directory cannot be written.
        """
        try:
            self._run(grid)
        except OSError as error:
            raise RunFailed(
                f"The run in {self.directory.path} stopped: {reason_of(error)}. What is complete is kept; it goes on "
                "with --resume."
            ) from error

    def _run(self, grid: Grid) -> None:
        began = time.monotonic()
        deployed = self.config.protocol == "own-data"
        resend = self.config.resend_seconds if deployed else None
        exchange = Exchange(Delivery(grid, self._stopping, self.config.answer_seconds, resend))
        if deployed:
            name, attempt = self.directory.begin_attempt()
            self._job = replace(self._job, run=name, attempt=attempt)
            self._greet(exchange)
        else:
            exchange.hello(RecordDict({JOB: self._job.to_record()}), self.config.sites)
        confusions: dict[str, Any] = {}
        for number, fold in enumerate(self.deal.folds):
            self.observer.fold_begins(fold.name, number, len(self.deal.folds))
            strategy = self._strategy(fold)
            confusion = self._run_fold(grid, exchange, strategy, number, fold)
            confusions.update({_confusion_name(fold, scope): value for scope, value in confusion.items()})
        self.directory.write_json("confusion.json", {"scopes": confusions})
        self.directory.write_json("summary.json", self._summary(time.monotonic() - began))

    def _greet(self, exchange: Exchange) -> None:
        """Who takes part, told to the observer and kept in sites.json: a site keeps its number when a run resumes."""
        known = self.directory.read_json("sites.json") or {}
        numbers = {name: entry["number"] for name, entry in known.items()}
        greeting = exchange.greet(RecordDict({JOB: self._job.to_record()}), self.config.sites, numbers)
        for reason in greeting.refused:
            self.observer.notice(f"A site does not take part: {reason}.")
        for name in sorted(set(greeting.numbers) - set(greeting.hellos)):
            self.observer.notice(f"The site {name!r} took part before and has not come.")
        entries = {name: {**known.get(name, {}), "number": n} for name, n in greeting.numbers.items()}
        for name, hello in greeting.hellos.items():
            said = hello.config_records[HELLO]
            entries[name] |= {key: said[key] for key in ("version", "fingerprint")}
            if CLASS_COUNTS in hello.metric_records:
                entries[name]["images"] = dict(hello.metric_records[CLASS_COUNTS])
            self.observer.notice(f"Site {greeting.numbers[name]} is {name!r}.")
        self.directory.write_json("sites.json", entries)

    # --- one fold ---------------------------------------------------------------------------------

    def _run_fold(
        self, grid: Grid, exchange: Exchange, strategy: FederatedStrategy, number: int, fold: Fold
    ) -> dict[str, Any]:
        rounds = self.config.rounds if self.method.trains else 0
        job = replace(self._job, fold=number)
        arrays, first = self._begin(job, fold, strategy)
        counts: dict[str, Any] = {}
        reported: dict[str, float] = {}
        if self._is_evaluated(first, rounds) and not self._measures_later(first, rounds):
            counts = self._evaluate(grid, exchange, strategy, arrays, replace(job, round=first), fold, rounds, {})
        for server_round in range(first + 1, rounds + 1):
            earlier = server_round - 1
            measure = self._is_evaluated(earlier, rounds) and self._measures_later(earlier, rounds)
            job = replace(job, round=server_round, measure=measure)
            arrays, rows, replies = self._train(grid, exchange, strategy, arrays, job, fold)
            if measure:
                counts_by_site = _measured(replies, MEASURED)
                self._report(fold, earlier, rounds, counts_by_site, self._unmeasured(fold, earlier, replies), reported)
            reported = {"loss": rows[0]["loss"]}
            checkpoint = Checkpoint(number, server_round, arrays, rows, strategy.state)
            self.directory.save_checkpoint(checkpoint, self.backbone.fingerprint)
            self.directory.append(rows)
            for entry in strategy.left_out:
                self.observer.left_out(server_round, entry.site, entry.reason)
            if self._is_evaluated(server_round, rounds) and not self._measures_later(server_round, rounds):
                counts = self._evaluate(grid, exchange, strategy, arrays, job, fold, rounds, reported)
        return counts

    def _measures_later(self, server_round: int, rounds: int) -> bool:
        """Whether a round is evaluated on the way to the next: a deployed site's message costs it a process."""
        return self.config.protocol == "own-data" and self.config.participation == 1 and server_round < rounds

    def _is_evaluated(self, server_round: int, rounds: int) -> bool:
        return server_round % self.config.eval_every == 0 or server_round == rounds

    def _begin(self, job: Job, fold: Fold, strategy: FederatedStrategy) -> tuple[Arrays, int]:
        """The arrays and the round to go on from; rows of later rounds and of an unfinished evaluation go."""
        checkpoint = self.directory.newest_checkpoint(job.fold, job.fingerprint)
        server_round = checkpoint.round if checkpoint else 0
        kept = [row for row in self.directory.rows() if row["fold"] != fold.name or row["round"] < server_round]
        self.directory.replace_rows([*kept, *(checkpoint.rows if checkpoint else [])])
        if checkpoint:
            strategy.state = checkpoint.state
            return checkpoint.arrays, server_round
        return self._initial(), 0

    def _train(
        self, grid: Grid, exchange: Exchange, strategy: FederatedStrategy, arrays: Arrays, job: Job, fold: Fold
    ) -> tuple[Arrays, list[Row], list[Message]]:
        began = time.monotonic()
        messages = list(strategy.configure_train(job.round, to_array_record(arrays), job.to_record(), grid))
        replies = exchange(messages)
        aggregated, train_metrics = strategy.aggregate_train(job.round, replies)
        assert aggregated is not None
        assert train_metrics is not None
        place = {"round": job.round, "fold": fold.name}
        row = {
            **place,
            "scope": "train",
            **{key.replace("-", "_"): value for key, value in train_metrics.items()},
            "downlink_bytes_per_site": _mean_size(messages),
            "uplink_bytes_per_site": _mean_size(replies),
            "seconds": round(time.monotonic() - began, 3),
            "training_seconds": round(sum(map(_training_seconds, replies)), 3),
            "sites": strategy.counted,
        }
        left_out = [{**place, "scope": "left_out", "site": e.site, "reason": e.reason} for e in strategy.left_out]
        return from_array_record(aggregated), [row, *left_out], replies

    def _evaluate(
        self,
        grid: Grid,
        exchange: Exchange,
        strategy: FederatedStrategy,
        arrays: Arrays,
        job: Job,
        fold: Fold,
        rounds: int,
        reported: dict[str, float],
    ) -> dict[str, Any]:
        """Measure every scope at every site; in the last round return the confusion counts as well."""
        job = replace(job, detailed=job.round == rounds)
        sites = {node: site for site, node in strategy.site_nodes.items()}
        messages = list(strategy.configure_evaluate(job.round, to_array_record(arrays), job.to_record(), grid))
        confusions: dict[str, np.ndarray[Any, Any]] = {}
        failed: list[Row] = []
        replies = sorted(exchange(messages), key=lambda reply: sites[reply.metadata.src_node_id])
        for reply in replies:
            site = sites[reply.metadata.src_node_id]
            if reply.has_error():
                place = {"round": job.round, "fold": fold.name, "scope": "left_out"}
                failed.append({**place, "site": site, "reason": f"evaluation: {reply.error.reason}"})
                self.observer.left_out(job.round, site, str(reply.error.reason))
                continue
            if job.detailed:
                for scope, table in from_array_record(reply.content.array_records[COUNTS]).items():
                    confusions[scope] = confusions.get(scope, 0) + table.astype(np.int64)
        self._report(fold, job.round, rounds, _measured(replies, METRICS), failed, reported)
        names = self.deal.class_names
        spaces = {scope.name: [names[index] for index in scope.classes] for scope in fold.scopes}
        return {s: {"classes": spaces[s], "counts": table.tolist()} for s, table in confusions.items()}

    def _unmeasured(self, fold: Fold, server_round: int, replies: list[Message]) -> list[Row]:
        """The rows of sites that trained and could not be measured."""
        rows: list[Row] = []
        for reply in replies:
            if not reply.has_error() and UNMEASURED in reply.content.config_records:
                site = reply.metadata.src_node_id
                reason = str(reply.content.config_records[UNMEASURED]["reason"])
                place = {"round": server_round, "fold": fold.name, "scope": "left_out"}
                rows.append({**place, "site": site, "reason": f"evaluation: {reason}"})
                self.observer.left_out(server_round, site, reason)
        return rows

    def _report(
        self,
        fold: Fold,
        server_round: int,
        rounds: int,
        counts: dict[str, dict[int, tuple[int, int]]],
        failed: list[Row],
        reported: dict[str, float],
    ) -> None:
        """The rows of one evaluation, from each scope's counts by site.

        Raises:
            RunFailed: no site could evaluate.
        """
        if not counts:
            raise RunFailed(f"No site could evaluate round {server_round}. {failed[0]['reason'] if failed else ''}")
        rows = [metrics.scope_row(fold.name, server_round, scope.name, counts[scope.name]) for scope in fold.scopes]
        self.directory.append([*rows, *failed])
        self.observer.round_ends(server_round, rounds, {**{row["scope"]: row["accuracy"] for row in rows}, **reported})

    # --- pieces -----------------------------------------------------------------------------------

    def _strategy(self, fold: Fold) -> FederatedStrategy:
        """The fold's strategy; to it each site is a node, and `Exchange` knows where the site is."""
        module, _, name = self.method.strategy.partition(":")
        make: Callable[..., FederatedStrategy] = getattr(import_module(module), name)
        config = self.config
        site_nodes = {site: site for site in range(config.sites)}
        return make(
            site_nodes,
            config.seed,
            fold.name or "",
            config.participation,
            config.quorum,
            addition=self._addition(),
        )

    def _addition(self) -> Addition:
        """What the user's strategy adds; noise that is to protect somebody has a key that nobody can derive."""
        config, composition = self.config, self._composition
        secret = config.protocol == "own-data" and composition.privacy() is not None
        noise_key = self.directory.noise_key() if secret else public_key(config.seed)
        return Addition(composition, self._initial(), config.rounds, noise_key, self._probe.drift)

    def _initial(self) -> Arrays:
        """What the server holds in round 0."""
        return {name: value.numpy().copy() for name, value in self._adapter.server_state().items()}

    def _releases(self) -> int:
        """How many rounds, over all folds, the site takes part in that is asked most often."""
        rounds = range(1, self.config.rounds + 1)
        asked = Counter(
            site
            for fold in self.deal.folds
            for strategy in [self._strategy(fold)]
            for server_round in rounds
            for site in strategy.participants(server_round)
        )
        return max(asked.values())

    def stop(self) -> None:
        """Make `run` end with `RunFailed` soon; may be called from another thread or a signal handler."""
        self._stopping.set()

    def _summary(self, seconds: float) -> dict[str, Any]:
        config, rows = self.config, self.directory.rows()
        trained = [row for row in rows if row["scope"] == "train"]
        privacy = self._composition.privacy()
        return {
            "method": config.method,
            "strategy": config.strategy,
            "data": config.data,
            "protocol": config.protocol,
            "backbone": config.backbone,
            "fingerprint": self.backbone.fingerprint,
            "sites": config.sites,
            "rounds": config.rounds,
            "seed": config.seed,
            "metrics": metrics.last_round(config.protocol, rows),
            "metrics_last5": metrics.last_five(config.protocol, rows),
            "zero_shot": self.zero_shot,
            "uplink_bytes_per_site_round": _mean([row["uplink_bytes_per_site"] for row in trained]),
            "downlink_bytes_per_site_round": _mean([row["downlink_bytes_per_site"] for row in trained]),
            "trainable_parameters": sum(parameter.numel() for parameter in self._adapter.parameters()),
            "shared_parameters": sum(value.numel() for value in self._adapter.shared().values()),
            "privacy": privacy and privacy.spent(self._releases()),
            "left_out": sum(row["scope"] == "left_out" for row in rows),
            "wall_seconds": round(seconds, 2),
            "versions": _versions(),
        }


def initial_adapter(method: Method, config: RunConfig, deal: Deal, backbone: Backbone) -> Adapter:
    """The adapter whose shared parameters the federation starts from.

    Raises:
        UserError: an option is wrong, or the context does not fit into the text tower.
    """
    vocabulary = Vocabulary(backbone, deal.class_names, deal.templates)
    generator = torch.Generator().manual_seed(derived_seed(config.seed, "adapter", "server"))
    return method.adapter(vocabulary, method.parse_options(config.method_options), generator, Seat(config.seed))


def _mean_size(messages: list[Message]) -> int:
    """Mean bytes of the contents as Flower serializes them; messages that carry an error do not count."""
    contents = [message.content for message in messages if not message.has_error()]
    sizes = {identity: wire_size(content) for identity, content in {id(c): c for c in contents}.items()}
    return _mean([sizes[id(content)] for content in contents])


def _measured(replies: list[Message], record: str) -> dict[str, dict[int, tuple[int, int]]]:
    """Each scope's counts of right and of all test images by site; to the exchange a node is a site."""
    counts: dict[str, dict[int, tuple[int, int]]] = defaultdict(dict)
    for reply in replies:
        if reply.has_error() or record not in reply.content.metric_records:
            continue
        for scope, pair in reply.content.metric_records[record].items():
            right, total = pair  # type: ignore[misc]
            counts[scope][reply.metadata.src_node_id] = (int(right), int(total))
    return counts


def _training_seconds(reply: Message) -> float:
    """What a site spent in its worker, as it says itself; sites trained together share their time equally."""
    metrics = None if reply.has_error() else reply.content.metric_records.get(METRICS)
    return float(str(metrics.get("seconds", 0.0))) if metrics else 0.0


def _mean(values: list[int]) -> int:
    return round(sum(values) / len(values)) if values else 0


def _confusion_name(fold: Fold, scope: str) -> str:
    return scope if fold.name is None else f"{scope}: {fold.name}"


def _versions() -> dict[str, str]:
    packages = ("flwr", "torch", "transformers", "numpy")
    return {"fedgraft": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
