"""Evaluation on cached features: every scope of a site, with class features computed once per label space."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.data.examples import IntArray
from fedgraft.methods.adapter import Adapter


@dataclass(frozen=True)
class TestSet:
    """A scope's test images at one site: features (n, dim), labels (n,) as positions in `classes`."""

    features: torch.Tensor
    labels: torch.Tensor
    classes: tuple[int, ...]


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
    """Classify each site's scopes by the largest cosine among the scope's classes, for several sites of one fold.

    Sites that share one adapter share its class features.
    """
    at_once = adapters[0].sites_per_pass(tuple(range(len(adapters[0].vocabulary.class_names))))
    for begin in range(0, len(adapters), at_once):
        part, part_tests = adapters[begin : begin + at_once], tests[begin : begin + at_once]
        features = {classes: _class_features(part, classes) for classes in _label_spaces(part_tests)}
        for site, own in enumerate(part_tests):
            yield {name: _classified(test, features[test.classes][site]) for name, test in own.items()}


def _label_spaces(tests: Sequence[dict[str, TestSet]]) -> list[tuple[int, ...]]:
    return sorted({test.classes for own in tests for test in own.values()})


def _class_features(adapters: Sequence[Adapter], classes: tuple[int, ...]) -> list[torch.Tensor]:
    if all(adapter is adapters[0] for adapter in adapters):
        return [adapters[0].class_features(classes)] * len(adapters)
    return type(adapters[0]).all_class_features(adapters, classes)


def _classified(test: TestSet, class_features: torch.Tensor) -> ScopeResult:
    count = len(test.classes)
    predicted = (test.features @ class_features.mT).argmax(1)
    pairs = np.bincount((test.labels * count + predicted).cpu().numpy(), minlength=count * count)
    return ScopeResult(pairs.reshape(count, count).astype(np.int64))
