"""Evaluation on cached features: every scope of a site, with class features computed once per label space."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.data.examples import IntArray
from fedgraft.methods.adapter import Adapter


@dataclass(frozen=True)
class TestSet:
    """A scope's test images at one site: features (n, dim), labels (n,) as positions in `classes`.

    Attributes:
        classes: that the images are classified among; none if the scope does not concern the site.
        counted: the classes of the confusion counts, if not the same.
    """

    features: torch.Tensor
    labels: torch.Tensor
    classes: tuple[int, ...]
    counted: tuple[int, ...] = ()


@dataclass(frozen=True)
class ScopeResult:
    """Confusion counts (C, C): rows are true classes, columns predictions."""

    confusion: IntArray

    @property
    def correct(self) -> int:
        """Number of images classified correctly."""
        return int(np.trace(self.confusion))

    @property
    def total(self) -> int:
        """Number of images classified."""
        return int(self.confusion.sum())


@torch.no_grad()
def evaluate_together(
    adapters: Sequence[Adapter], tests: Sequence[dict[str, TestSet]]
) -> Iterator[dict[str, ScopeResult]]:
    """Classify each site's scopes by the largest score among the scope's classes, for several sites of one fold.

    Sites that share one adapter share its class features.
    """
    at_once = adapters[0].sites_per_pass(tuple(range(len(adapters[0].vocabulary.class_names))))
    for begin in range(0, len(adapters), at_once):
        part, part_tests = adapters[begin : begin + at_once], tests[begin : begin + at_once]
        features = {
            classes: _class_features(part, classes, sites) for classes, sites in _label_spaces(part_tests).items()
        }
        for site, own in enumerate(part_tests):
            yield {name: _classified(part[site], test, features[test.classes][site]) for name, test in own.items()}


def _label_spaces(tests: Sequence[dict[str, TestSet]]) -> dict[tuple[int, ...], list[int]]:
    """The sets of classes that images are classified among, and the sites that need each."""
    spaces: dict[tuple[int, ...], list[int]] = {}
    for site, own in enumerate(tests):
        for classes in {test.classes for test in own.values()}:
            spaces.setdefault(classes, []).append(site)
    return dict(sorted(spaces.items()))


def _class_features(
    adapters: Sequence[Adapter], classes: tuple[int, ...], sites: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The class features of some of the adapters, by their number."""
    chosen = [adapters[site] for site in sites]
    if not classes:
        return {site: torch.empty(0) for site in sites}
    if all(adapter is chosen[0] for adapter in chosen):
        return dict.fromkeys(sites, chosen[0].class_features(classes))
    return dict(zip(sites, type(chosen[0]).all_class_features(chosen, classes), strict=True))


def _classified(adapter: Adapter, test: TestSet, class_features: torch.Tensor) -> ScopeResult:
    if not test.classes:
        return ScopeResult(np.zeros((len(test.counted), len(test.counted)), np.int64))
    own = _among(adapter, test, class_features)
    if test.counted in ((), test.classes):
        return ScopeResult(own)
    counts = np.zeros((len(test.counted), len(test.counted)), np.int64)
    places = np.searchsorted(test.counted, test.classes)
    counts[np.ix_(places, places)] = own
    return ScopeResult(counts)


def _among(adapter: Adapter, test: TestSet, class_features: torch.Tensor) -> IntArray:
    """The confusion counts among the classes of a test."""
    count = len(test.classes)
    if not len(test.labels):
        return np.zeros((count, count), np.int64)
    predicted = adapter.scores(test.features, class_features, test.classes).argmax(1)
    pairs = np.bincount((test.labels * count + predicted).cpu().numpy(), minlength=count * count)
    return pairs.reshape(count, count).astype(np.int64)
