"""Evaluation: every scope of a site, with class features once per label space, and each image classified once in it.

Scopes overlap, and sites have test images in common: what a model has said of some images among some classes is not
computed again, see `Model`. Images go through it together that a site has among the same classes, so that nothing
depends on which sites are evaluated side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.data.examples import IntArray
from fedgraft.methods.adapter import Adapter

_IMAGES_AT_ONCE = 4096


@dataclass(frozen=True)
class TestSet:
    """A scope's test images at one site.

    Attributes:
        positions: of the images among the examples, (n,).
        labels: their classes (n,) as positions in `classes`.
        classes: that the images are classified among; none if the scope does not concern the site.
        counted: the classes of the confusion counts, if not the same.
    """

    positions: IntArray
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


class Model:
    """An adapter, and what it has said of images.

    Args:
        adapter: with the parameters that are evaluated.
        features_of: gives its image features (n, dim) of examples by their positions.
    """

    def __init__(self, adapter: Adapter, features_of: Callable[[IntArray], torch.Tensor]) -> None:
        self.adapter, self.features_of = adapter, features_of
        self._said: dict[tuple[tuple[int, ...], bytes], IntArray] = {}

    def knows(self, classes: tuple[int, ...], positions: IntArray) -> bool:
        """Whether these images have been classified among these classes."""
        return (classes, positions.tobytes()) in self._said

    def classify(
        self, classes: tuple[int, ...], positions: IntArray, images: torch.Tensor, class_features: torch.Tensor
    ) -> None:
        """Classify images (n, dim) by the largest score, and keep the predictions."""
        parts = [
            self.adapter.scores(part, class_features, classes).argmax(1).cpu().numpy()
            for part in torch.split(images, _IMAGES_AT_ONCE)
            if len(part)
        ]
        self._said[classes, positions.tobytes()] = np.concatenate([np.empty(0, np.int64), *parts])

    def result(self, test: TestSet, positions: IntArray) -> ScopeResult:
        """The counts of a test, whose images are some of those at these positions (sorted), all of them classified."""
        counted = test.counted or test.classes
        counts = np.zeros((len(counted), len(counted)), np.int64)
        if test.classes:
            places = np.searchsorted(counted, test.classes)
            predicted = self._said[test.classes, positions.tobytes()][np.searchsorted(positions, test.positions)]
            np.add.at(counts, (places[test.labels.cpu().numpy()], places[predicted]), 1)
        return ScopeResult(counts)


@torch.no_grad()
def evaluate_together(models: Sequence[Model], tests: Sequence[dict[str, TestSet]]) -> Iterator[dict[str, ScopeResult]]:
    """Classify each site's scopes by the largest score among the scope's classes, for several sites of one fold.

    Sites that share one model share what it says, and its class features.
    """
    first = models[0]
    at_once = first.adapter.sites_per_pass(tuple(range(len(first.adapter.vocabulary.class_names))))
    if all(model is first for model in models):
        at_once = len(models)
    for begin in range(0, len(models), at_once):
        part, part_tests = models[begin : begin + at_once], tests[begin : begin + at_once]
        asked = [_images_by_classes(own) for own in part_tests]
        _classify(part, asked)
        for model, own, positions in zip(part, part_tests, asked, strict=True):
            yield {name: model.result(test, positions.get(test.classes, test.positions)) for name, test in own.items()}


def _images_by_classes(tests: dict[str, TestSet]) -> dict[tuple[int, ...], IntArray]:
    """The positions of the images that are classified among the same classes, sorted, each once."""
    spaces = sorted({test.classes for test in tests.values() if test.classes})
    return {
        classes: np.unique(np.concatenate([test.positions for test in tests.values() if test.classes == classes]))
        for classes in spaces
    }


def _classify(models: Sequence[Model], asked: Sequence[dict[tuple[int, ...], IntArray]]) -> None:
    """Let each model classify what it is asked and has not said yet."""
    sites: dict[tuple[int, ...], list[int]] = {}
    for site, (model, spaces) in enumerate(zip(models, asked, strict=True)):
        for classes, positions in spaces.items():
            if not model.knows(classes, positions):
                sites.setdefault(classes, []).append(site)
    adapters = [model.adapter for model in models]
    images: dict[tuple[int, bytes], torch.Tensor] = {}
    for classes, lacking in sorted(sites.items()):
        class_features = _class_features(adapters, classes, lacking)
        for site in lacking:
            model, positions = models[site], asked[site][classes]
            if model.knows(classes, positions):  # from another site, just now
                continue
            place = (id(model), positions.tobytes())
            if place not in images:
                images[place] = model.features_of(positions)
            model.classify(classes, positions, images[place], class_features[site])


def _class_features(
    adapters: Sequence[Adapter], classes: tuple[int, ...], sites: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The class features of some of the adapters, by their number."""
    chosen = [adapters[site] for site in sites]
    if all(adapter is chosen[0] for adapter in chosen):
        return dict.fromkeys(sites, chosen[0].class_features(classes))
    return dict(zip(sites, type(chosen[0]).all_class_features(chosen, classes), strict=True))
