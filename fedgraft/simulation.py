"""Simulate a federation on this machine: `simulate(RunConfig(...), out)` is all that the command does."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedgraft.backbones import Backbone, load_backbone
from fedgraft.backbones.features import FeatureStore, require_rows, view_image, view_keys
from fedgraft.client.app import app as client_app
from fedgraft.config import RunConfig
from fedgraft.data.dealt import DealtData, write_dealt
from fedgraft.data.examples import Examples
from fedgraft.data.protocols import deal
from fedgraft.data.sources import open_source
from fedgraft.errors import UserError
from fedgraft.files import cache_root
from fedgraft.methods import load_method
from fedgraft.server.coordinator import Coordinator
from fedgraft.server.observer import Observer
from fedgraft.server.run_directory import RunDirectory

_NODES, _SITES_A_NODE = 32, 16
"""Up to so many sites each is a node; of more, a node holds several, but no more than so many. Only the number of
sites decides, so that the result does not depend on the number of workers."""
_OBJECT_STORE_BYTES = 256 * 1024 * 1024


def simulate(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    workers: int | None = None,
    cpus_per_worker: int = 1,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run a federation with simulated sites and return what summary.json holds.

    Args:
        config: everything that decides the result.
        out: the run directory; it must be new unless `resume`.
        resume: go on from the last checkpoint of a run that was stopped.
        workers: Ray actors; as many as there are CPUs unless given. Their number does not change the result.
        cpus_per_worker: CPUs and torch threads of each.
        observer: is told of progress.

    Raises:
        UserError: a mistake in the configuration, the data or the directory; nothing was written.
        RunFailed: the run could not go on.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1 or cpus_per_worker < 1:
        raise UserError(f"Workers and CPUs a worker are at least 1, not {workers} and {cpus_per_worker}.")
    coordinator = begin(config, Path(out), resume, observer or Observer())
    if coordinator is not None:
        try:
            _run(coordinator, config.sites, workers, cpus_per_worker)
        finally:
            coordinator.directory.unlock()
    return RunDirectory(Path(out)).summary()


def begin(config: RunConfig, out: Path, resume: bool, observer: Observer) -> Coordinator | None:
    """Everything before the first message: check, deal, compute features, write the configuration.

    Returns:
        What runs on a Flower grid, or None where the run to resume is finished.

    Raises:
        UserError: a mistake in the configuration, the data or the directory; nothing was written.
    """
    directory = RunDirectory(out)
    directory.check_free(config, resume)
    load_method(config.method).parse_options(config.method_options)
    if resume and (out / "summary.json").exists():
        return None
    data, backbone = prepare(config, observer)
    zero_shot = zero_shot_accuracy(data, backbone, observer)
    coordinator = Coordinator(config, directory, data.deal, backbone, observer, zero_shot)
    if resume:
        directory.newest_checkpoint(0, backbone.fingerprint)
    directory.lock()
    directory.create(config)
    write_dealt(out, data)
    return coordinator


def prepare(config: RunConfig, observer: Observer) -> tuple[DealtData, Backbone]:
    """Deal the data and compute the image features that the store lacks."""
    examples = open_source(config.data, config.seed, config.domains)
    data = DealtData(deal(examples, config), examples.keys)
    backbone = load_backbone(config.backbone)
    _fill(config, examples, data, FeatureStore(cache_root(), backbone), observer)
    return data, backbone


def zero_shot_accuracy(data: DealtData, backbone: Backbone, observer: Observer) -> dict[str, float]:
    """Accuracy in percent of the hand-written templates by scope, over all sites' test images.

    A figure near chance is noticed: then the backbone does not know the classes, or names and labels do not match,
    and no federated figure means anything before that is explained.
    """
    store = FeatureStore(cache_root(), backbone)
    vectors = store.vectors()
    texts = backbone.text.encode_classes(data.deal.class_names, data.deal.templates).numpy()
    accuracies: dict[str, float] = {}
    for fold in data.deal.folds:
        for scope in fold.scopes:
            positions = np.unique(np.concatenate([share.tests[scope.name] for share in fold.sites]))
            if not len(positions):
                continue
            features = vectors[require_rows(store, data.keys[positions])]
            predicted = np.asarray(scope.classes)[(features @ texts[list(scope.classes)].T).argmax(1)]
            name = scope.name if fold.name is None else fold.name
            accuracies[name] = float((predicted == data.deal.labels[positions]).mean() * 100)
            chance = 100 / len(scope.classes)
            if accuracies[name] < 1.5 * chance:
                observer.notice(
                    f"Zero-shot accuracy of {name!r} is {accuracies[name]:.1f} %, and chance is {chance:.1f} %: the "
                    "backbone does not know these classes, or class names and labels do not match."
                )
    return accuracies


def _fill(config: RunConfig, examples: Examples, data: DealtData, store: FeatureStore, observer: Observer) -> None:
    used = data.used
    store.fill(data.keys[used], lambda position: examples.load(int(used[position])), observer.filling)
    trained = data.training_positions()
    for view in range(1, config.views):
        keys = data.keys[trained]

        def load(position: int, view: int = view) -> Any:
            image = examples.load(int(trained[position]))
            return view_image(image, data.keys[trained[position]], view, config.seed)

        store.fill(view_keys(keys, view, config.seed), load, observer.filling)


def _run(coordinator: Coordinator, sites: int, workers: int, cpus_per_worker: int) -> None:
    """Flower's simulation engine on Ray with one actor a worker."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        coordinator.run(grid)

    if not os.environ.get("FEDGRAFT_DEBUG"):
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
    with _interrupt_calls(coordinator.stop):
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=max(min(sites, _NODES), -(-sites // _SITES_A_NODE)),
            backend_config={
                "client_resources": {"num_cpus": cpus_per_worker, "num_gpus": 0.0},
                "init_args": {
                    "num_cpus": workers * cpus_per_worker,
                    "object_store_memory": _OBJECT_STORE_BYTES,
                    "include_dashboard": False,
                    "logging_level": logging.ERROR,
                    "log_to_driver": False,
                },
            },
        )


@contextmanager
def _interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C stops the server, and with it the engine; raised inside Flower's engine, it would wait for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda signum, frame: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
