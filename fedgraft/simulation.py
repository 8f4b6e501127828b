"""Simulate a federation on this machine: `simulate(RunConfig(...), out)` is all that the command does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedgraft.backbones import Backbone, best_device, load_backbone
from fedgraft.backbones.features import FeatureStore, require_rows
from fedgraft.backbones.filling import fill_store
from fedgraft.config import RunConfig
from fedgraft.data.dealt import DealtData, write_dealt
from fedgraft.data.examples import Examples
from fedgraft.data.protocols import deal as deal_data
from fedgraft.data.protocols import named_deal
from fedgraft.data.sources import open_source
from fedgraft.engine import Engine
from fedgraft.files import cache_root
from fedgraft.methods import load_method
from fedgraft.pool import Pool
from fedgraft.server.coordinator import Coordinator
from fedgraft.server.observer import Observer
from fedgraft.server.run_directory import RunDirectory
from fedgraft.strategies.base import asked_sites
from fedgraft.strategies.composition import check_strategy

OpenExamples = Callable[[str, int, bool], Examples]


def simulate(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    workers: int | None = None,
    cpus_per_worker: int = 1,
    gpus_per_worker: float | None = None,
    ray_address: str | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run a federation with simulated sites and return what summary.json holds.

    Args:
        config: everything that decides the result.
        out: the run directory; it must be new unless `resume`.
        resume: go on from the last checkpoint of a run that was stopped.
        workers: Ray actors; as many as there are GPUs, or else CPUs, unless given. Their number does not change
            the result.
        cpus_per_worker: CPUs and torch threads of each.
        gpus_per_worker: GPUs of each, or a part of one; where this machine has any, one unless given.
        ray_address: HOST:PORT of a Ray cluster to run on, or "auto" for the one that runs on this machine. It stays
            up afterwards. All its nodes see the run directory and the data under the same paths.
        observer: is told of progress.

    Raises:
        UserError: a mistake in the configuration, the data or the directory; nothing was written.
        RunFailed: the run could not go on.
    """
    engine = Engine(workers, cpus_per_worker, gpus_per_worker, ray_address)
    return simulate_on(engine, config, Path(out), resume, observer or Observer())


def simulate_on(
    engine: Engine | Pool,
    config: RunConfig,
    out: Path,
    resume: bool,
    observer: Observer,
    open_examples: OpenExamples = open_source,
) -> dict[str, Any]:
    """`simulate` where the sites' processes are chosen already, and the examples may be open."""
    coordinator = begin(config, out, resume, observer, open_examples=open_examples)
    if coordinator is not None:
        try:
            engine.run(coordinator)
        finally:
            coordinator.directory.unlock()
    return RunDirectory(out).summary()


def begin(
    config: RunConfig,
    out: Path,
    resume: bool,
    observer: Observer,
    lock_seconds: float = 0.0,
    open_examples: OpenExamples = open_source,
) -> Coordinator | None:
    """Everything before the first message: check, deal, compute features, write the configuration.

    Args:
        lock_seconds: how long another process may take to leave the directory.
        open_examples: from data source, seed and whether a folder holds domains.

    Returns:
        What runs on a Flower grid, or None where the run to resume is finished.

    Raises:
        UserError: a mistake in the configuration, the data or the directory; nothing was written.
    """
    directory = RunDirectory(out)
    directory.check_free(config, resume)
    check_method_and_strategy(config)
    if resume and (out / "summary.json").exists():
        return None
    if config.protocol == "own-data":
        data, zero_shot = None, {}
        deal, backbone = named_deal(config.class_names), load_backbone(config.backbone, config.precision, best_device())
    else:
        data, backbone = prepare(config, observer, open_examples)
        deal = data.deal
        zero_shot = zero_shot_accuracy(data, backbone, observer, image_layer(config, backbone))
    coordinator = Coordinator(config, directory, deal, backbone, observer, zero_shot)
    if resume:
        directory.newest_checkpoint(0, backbone.fingerprint)
    directory.lock(lock_seconds)
    directory.create(config)
    if data is not None:
        write_dealt(out, data)
    return coordinator


def check_method_and_strategy(config: RunConfig) -> None:
    """Refuse what can be known to be wrong before data and backbone are loaded.

    Raises:
        UserError: an option is wrong, or method, strategy and the number of sites do not go together.
    """
    method = load_method(config.method)
    method.parse_options(config.method_options)
    asked = asked_sites(config.sites, config.participation)
    check_strategy(config, method.takes_no_strategy, method.keeps_its_rule, asked)


def prepare(
    config: RunConfig, observer: Observer, open_examples: OpenExamples = open_source
) -> tuple[DealtData, Backbone]:
    """Deal the data and compute the image features that the store lacks."""
    examples = open_examples(config.data, config.seed, config.domains)
    data = DealtData(deal_data(examples, config), examples.keys)
    backbone = load_backbone(config.backbone, config.precision, best_device())
    store = FeatureStore(cache_root(), backbone, image_layer(config, backbone))
    fill_store(store, config, examples, data, observer.filling)
    return data, backbone


def image_layer(config: RunConfig, backbone: Backbone) -> int | None:
    """The layer of the image tower whose input the run's method has cached; None for final features."""
    method = load_method(config.method)
    return method.adapter.image_layer(backbone, method.parse_options(config.method_options))


def zero_shot_accuracy(
    data: DealtData, backbone: Backbone, observer: Observer, layer: int | None = None
) -> dict[str, float]:
    """Accuracy in percent of the hand-written templates by scope, over all sites' test images.

    A figure near chance is noticed: then the backbone does not know the classes, or names and labels do not match,
    and no federated figure means anything before that is explained.
    """
    store = FeatureStore(cache_root(), backbone, layer)
    texts = backbone.text.encode_classes(data.deal.class_names, data.deal.templates).cpu().numpy()
    accuracies: dict[str, float] = {}
    for fold in data.deal.folds:
        for scope in fold.scopes:
            positions = np.unique(np.concatenate([share.tests[scope.name] for share in fold.sites]))
            if not len(positions):
                continue
            features = store.features(require_rows(store, data.keys[positions]))
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
