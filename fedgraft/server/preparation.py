"""Everything before a run's first message: validate, split, compute features, write the configuration."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedgraft.backbones import Backbone
from fedgraft.backbones.feature_store import FeatureStore, require_rows
from fedgraft.backbones.required_features import fill_store
from fedgraft.config.run_config import RunConfig
from fedgraft.core.files import cache_root
from fedgraft.core.observer import Observer
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.split import Fold, Scope, Split, joined
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.coordinator import Coordinator

OpenExamples = Callable[[Plan], Examples]


def prepare(
    config: RunConfig,
    out: Path,
    resume: bool,
    observer: Observer,
    lock_seconds: float = 0.0,
    open_examples: OpenExamples = Plan.open_examples,
) -> Coordinator | None:
    """Prepare a run and return its coordinator, or None if the run to resume is finished.

    Args:
        lock_seconds: how long to wait for another process to release the directory.
        open_examples: opens the plan's examples, or returns them if they are already open.

    Raises:
        UserError: there is a mistake in the configuration, the data or the directory; nothing was written.
    """
    directory = RunDirectory(out)
    directory.check_free(config, resume)
    plan = Plan.of(config)
    if resume and directory.finished:
        return None
    zero_shot = {}
    if plan.protocol.deployed:
        split, backbone = plan.announced, plan.load_backbone()
    else:
        split, backbone, store = _with_features(plan, open_examples(plan), observer)
        zero_shot = zero_shot_accuracy(split, backbone, store, observer)
    coordinator = Coordinator(plan, directory, split, backbone, observer, zero_shot)
    if resume:
        directory.checkpoints.newest(0, backbone.fingerprint)
    directory.lock(lock_seconds)
    directory.create(config)
    if not plan.protocol.deployed:
        directory.write_split(split)
    return coordinator


def _with_features(plan: Plan, examples: Examples, observer: Observer) -> tuple[Split, Backbone, FeatureStore]:
    """Split the data and compute the image features missing from the store."""
    split = plan.split(examples)
    backbone = plan.load_backbone()
    store = plan.feature_store(cache_root(), backbone)
    fill_store(store, plan.config, examples, split, observer.on_images)
    return split, backbone, store


def zero_shot_accuracy(split: Split, backbone: Backbone, store: FeatureStore, observer: Observer) -> dict[str, float]:
    """Accuracy in percent of the hand-written templates by scope, over all sites' test images.

    A result near chance is reported: then the backbone does not know the classes, or names and labels do not match,
    and no federated result is meaningful until that is explained.
    """
    texts = Vocabulary.of(backbone, split).zero_shot.cpu().numpy()
    accuracies: dict[str, float] = {}
    for fold in split.folds:
        for scope in fold.scopes:
            tasks = _tasks(fold, scope)
            right, total = 0, 0
            for classes, positions in tasks.items():
                features = store.features(require_rows(store, split.keys[positions]))
                predicted = np.asarray(classes)[(features @ texts[list(classes)].T).argmax(1)]
                right, total = right + int((predicted == split.labels[positions]).sum()), total + len(positions)
            if not total:
                continue
            name = fold.series(scope.name)
            accuracies[name] = right / total * 100
            chance = 100 / min(map(len, tasks))
            if accuracies[name] < 1.5 * chance:
                observer.on_notice(
                    f"Zero-shot accuracy of {name!r} is {accuracies[name]:.1f} %, while chance is {chance:.1f} %: "
                    "the backbone does not know these classes, or class names and labels do not match."
                )
    return accuracies


def _tasks(fold: Fold, scope: Scope) -> dict[tuple[int, ...], IntArray]:
    """A scope's test images by the classes that they are classified among."""
    shares: dict[tuple[int, ...], list[IntArray]] = {}
    for share in fold.sites:
        shares.setdefault(fold.candidates(scope, share), []).append(share.tests[scope.name])
    tasks = {classes: joined(tests) for classes, tests in shares.items()}
    return {classes: positions for classes, positions in tasks.items() if len(positions)}
