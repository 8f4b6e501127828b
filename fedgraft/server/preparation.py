"""Everything before a run's first message: validate, split, compute features, write the configuration."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedgraft.backbones import Backbone
from fedgraft.backbones.feature_store import FeatureStore, require_rows
from fedgraft.backbones.kept_images import keep_images
from fedgraft.backbones.required_features import fill_store
from fedgraft.config.run_config import RunConfig
from fedgraft.core.files import cache_root
from fedgraft.core.observer import Observer
from fedgraft.data.check import notices
from fedgraft.data.examples import Examples, IntArray
from fedgraft.data.split import Fold, Scope, Split, joined
from fedgraft.methods.plan import Plan
from fedgraft.methods.vocabulary import Vocabulary
from fedgraft.runs.run_directory import RunDirectory
from fedgraft.server.coordinator import Coordinator

_TIMED = 8
"""How many images the cost of augmentation is estimated from."""
_NAMED = 5
"""How many classes a notice names."""
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
    plan.require_backbone()
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
    for sentence in notices(examples):
        observer.on_notice(sentence)
    split = plan.split(examples)
    backbone = plan.load_backbone()
    Vocabulary.of(backbone, split).require_room()
    for sentence in _untrained(split):
        observer.on_notice(sentence)
    if sentence := _cost_of_method(plan, split):
        observer.on_notice(sentence)
    store = plan.feature_store(cache_root(), backbone)
    fill_store(store, plan.config, examples, split, observer.on_images)
    if plan.config.augment != "none" and plan.method.trains:
        observer.on_notice(_cost_of_augmentation(plan, split, examples, backbone))
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


def _cost_of_augmentation(plan: Plan, split: Split, examples: Examples, backbone: Backbone) -> str:
    """What it takes to encode every training image anew in every step, from the time of a few."""
    config = plan.config
    timed = split.trained[:_TIMED]
    began = time.perf_counter()
    pixels = backbone.preprocess([examples.load(int(position)) for position in timed])
    keep_images(backbone, pixels, plan.representation(backbone))
    an_image = (time.perf_counter() - began) / len(timed)
    passes = _passes(plan, split)
    return (
        f"augment={config.augment!r} encodes every training image anew in every step: {passes:,} passes of the image "
        f"tower in place of {len(split.trained):,}, about {_duration(passes * an_image)} in one process of this "
        "machine."
    )


def _cost_of_method(plan: Plan, split: Split) -> str:
    """What the method says of its own cost."""
    classes = max(len(fold.classes_of(share)) for fold in split.folds for share in fold.sites)
    return plan.method.adapter.cost(plan.options, _passes(plan, split), plan.config.batch_size, classes)


def _passes(plan: Plan, split: Split) -> int:
    """How many images go through a step over all rounds."""
    config = plan.config
    trained = sum(len(share.train) for fold in split.folds for share in fold.sites)
    return round(trained * config.participation * config.local_epochs * config.rounds)


def _duration(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(1, round(seconds))} seconds"


def _untrained(split: Split) -> list[str]:
    """A sentence for each fold that has classes to train on of which no site got an image."""
    sentences = []
    for fold in split.folds:
        trained = {int(label) for share in fold.sites for label in np.unique(split.labels[share.train])}
        if missing := [split.class_names[label] for label in fold.train_classes if label not in trained]:
            where = "" if fold.name is None else f" without {fold.name!r}"
            more = f" and {len(missing) - _NAMED} others" if len(missing) > _NAMED else ""
            named = ", ".join(map(repr, missing[:_NAMED])) + more
            sentences.append(f"No image is left to train on{where} of the class {named}.")
    return sentences


def _tasks(fold: Fold, scope: Scope) -> dict[tuple[int, ...], IntArray]:
    """A scope's test images by the classes that they are classified among."""
    shares: dict[tuple[int, ...], list[IntArray]] = {}
    for share in fold.sites:
        shares.setdefault(fold.candidates(scope, share), []).append(share.tests[scope.name])
    tasks = {classes: joined(tests) for classes, tests in shares.items()}
    return {classes: positions for classes, positions in tasks.items() if len(positions)}
