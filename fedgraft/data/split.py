"""A split: which site trains and tests on which image, and what all protocols share in making one.

Everything follows from the configuration and the content of the images; nothing depends on the order of sets or of
files on disk.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedgraft.config.run_config import RunConfig
from fedgraft.core.errors import UserError
from fedgraft.core.randomness import generator
from fedgraft.data.examples import SPLIT_NAMES, Examples, IntArray

BoolArray = NDArray[np.bool_]
PART = ": "
"""Between the name of a scope and the domain or data set that it measures."""


@dataclass(frozen=True)
class Scope:
    """One thing that is measured: the classes that images are classified among, as positions in the class names.

    Attributes:
        name: NAME, or "NAME: PART" for one of several domains or data sets.
        own: whether each site's images are classified among the site's own training classes alone.
    """

    name: str
    classes: tuple[int, ...]
    own: bool = False

    @property
    def kind(self) -> str:
        """The name without the part."""
        return self.name.partition(PART)[0]


@dataclass(frozen=True)
class SiteShare:
    """What one site holds: the positions of its training images, and of its test images for each scope.

    Attributes:
        classes: of the site's training softmax, ascending; empty for those of the fold.
    """

    train: IntArray
    tests: dict[str, IntArray]
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fold:
    """One federation: the domain that it leaves out, if any, the classes of its training softmax, scopes and sites."""

    name: str | None
    train_classes: tuple[int, ...]
    scopes: tuple[Scope, ...]
    sites: tuple[SiteShare, ...]

    def classes_of(self, share: SiteShare) -> tuple[int, ...]:
        """The classes of a site's training softmax."""
        return share.classes or self.train_classes

    def candidates(self, scope: Scope, share: SiteShare) -> tuple[int, ...]:
        """The classes that a site's images of a scope are classified among; none if it holds none of an own scope."""
        if not scope.own:
            return scope.classes
        known = set(scope.classes)
        return tuple(label for label in self.classes_of(share) if label in known)

    def series(self, scope: str) -> str:
        """The name of one of this fold's scopes among the scopes of all folds."""
        return series_name(self.name, scope, len(self.scopes) > 1)


@dataclass(frozen=True)
class Split:
    """The examples of a run without their images, and its folds.

    Attributes:
        labels: (n,) class of each example.
        keys: (n, 32) SHA-256 of each image's content.
        class_templates: of each class, where data sets with their own templates were joined; empty if `templates` are
            those of all classes.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    labels: IntArray
    keys: NDArray[np.uint8]
    folds: tuple[Fold, ...]
    class_templates: tuple[tuple[str, ...], ...] = ()

    @cached_property
    def used(self) -> IntArray:
        """Positions of the examples that some site trains or tests on, sorted."""
        tests = {id(test): test for fold in self.folds for share in fold.sites for test in share.tests.values()}
        return joined([self.trained, *tests.values()])

    @cached_property
    def trained(self) -> IntArray:
        """Positions of the examples that some site trains on, sorted."""
        return joined(share.train for fold in self.folds for share in fold.sites)


def series_name(fold: str | None, scope: str, several: bool) -> str:
    """The name of a scope's results among those of all folds: just the fold's name if it has only one scope."""
    if fold is None:
        return scope
    return f"{fold}: {scope}" if several else fold


def joined(parts: Iterable[IntArray]) -> IntArray:
    """The positions in any of several arrays, each once, sorted."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def content_groups(examples: Examples) -> IntArray:
    """A number (n,) for each image, the same for images of identical content."""
    _, groups = np.unique(examples.keys, axis=0, return_inverse=True)
    return groups.reshape(-1).astype(np.int64)


def class_protocol_mask(examples: Examples) -> BoolArray:
    """Which examples class-based protocols draw from, (n,)."""
    if not examples.class_protocol_domains:
        return np.ones(len(examples), bool)
    wanted = [examples.domain_names.index(name) for name in examples.class_protocol_domains]
    return np.isin(examples.domains, wanted)


def test_mask(examples: Examples, config: RunConfig) -> BoolArray:
    """Which examples are measured, (n,).

    The source's own split `evaluate_on` where it has splits; else a fixed fraction of each class, drawn from the seed,
    with all copies of an image together. Joined data sets have the test images that each has alone.

    Raises:
        UserError: the source has no images in that split.
    """
    if examples.data_sets:
        return np.concatenate([test_mask(each.examples, config) for each in examples.data_sets])
    if examples.splits is None:
        if config.evaluate_on != "test":
            raise UserError(f"evaluate_on is {config.evaluate_on!r}, but {config.data!r} has no splits of its own.")
        return _drawn_test_mask(examples, config)
    measured = _in_split(examples, config.evaluate_on)
    if not measured.any():
        present = [name for name in SPLIT_NAMES if _in_split(examples, name).any()]
        raise UserError(
            f"evaluate_on is {config.evaluate_on!r}, but {config.data!r} has no such images; its splits are "
            f"{' and '.join(present)}."
        )
    return measured


def train_mask(examples: Examples, config: RunConfig) -> BoolArray:
    """Which examples may train, (n,).

    The source's own training images where it has splits, without those whose content is also for validation or testing;
    else all that are not measured. Of joined data sets, none trains that another measures.
    """
    if examples.data_sets:
        groups = content_groups(examples)
        own = np.concatenate([train_mask(each.examples, config) for each in examples.data_sets])
        trains: BoolArray = own & ~np.isin(groups, groups[test_mask(examples, config)])
        return trains
    if examples.splits is None:
        return ~_drawn_test_mask(examples, config)
    return _in_split(examples, "train") & ~overlap_mask(examples)


def overlap_mask(examples: Examples) -> BoolArray:
    """Which of the source's training images are also for validation or testing, by content, (n,)."""
    training = _in_split(examples, "train")
    groups = content_groups(examples)
    return training & np.isin(groups, groups[~training])


def _in_split(examples: Examples, name: str) -> BoolArray:
    if examples.splits is None:
        return np.zeros(len(examples), bool)
    chosen: BoolArray = examples.splits == SPLIT_NAMES.index(name)
    return chosen


def _drawn_test_mask(examples: Examples, config: RunConfig) -> BoolArray:
    groups = content_groups(examples)
    rng = generator(config.seed, "test-split")
    taken = np.zeros(groups.max() + 1, bool)
    for label in range(len(examples.class_names)):
        members = np.unique(groups[examples.labels == label])
        count = min(max(1, round(len(members) * config.test_fraction)), len(members))
        taken[rng.permutation(members)[:count]] = True
    return taken[groups]


def shots_of(examples: Examples, allowed: BoolArray, label: int, config: RunConfig, site: int = 0) -> IntArray:
    """At most `shots` training images of a class, or all if it is 0, in a random order drawn from the seed."""
    members = np.flatnonzero(allowed & (examples.labels == label))
    shuffled = generator(config.seed, "shots", label, site).permutation(members)
    return shuffled[: config.shots] if config.shots else shuffled


def training_images(examples: Examples, allowed: BoolArray, config: RunConfig, site: int = 0) -> IntArray:
    """`shots_of` all classes together, sorted."""
    labels = range(len(examples.class_names))
    return np.sort(np.concatenate([shots_of(examples, allowed, label, config, site) for label in labels]))
