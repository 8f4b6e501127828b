"""Evaluation on cached features: every scope of a site with class features computed once for each label space."""

from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.adapters.base import Adapter
from fedgraft.data.examples import IntArray


@dataclass(frozen=True)
class TestSet:
    """A scope's test images at one site: features (n, dim), labels (n,) as positions in `classes`."""

    features: torch.Tensor
    labels: torch.Tensor
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ScopeResult:
    """Counts, (C, C), row the true class, column the prediction."""

    confusion: IntArray

    @property
    def correct(self) -> int:
        """Images classified right."""
        return int(np.trace(self.confusion))

    @property
    def total(self) -> int:
        """Images classified."""
        return int(self.confusion.sum())


@torch.no_grad()
def evaluate(adapter: Adapter, tests: dict[str, TestSet]) -> dict[str, ScopeResult]:
    """Classify each scope's images by the largest cosine among the scope's classes."""
    spaces = {test.classes for test in tests.values()}
    features = {classes: adapter.class_features(classes) for classes in sorted(spaces)}
    results = {}
    for name, test in tests.items():
        count = len(test.classes)
        predicted = (test.features @ features[test.classes].mT).argmax(1)
        pairs = np.bincount((test.labels * count + predicted).numpy(), minlength=count * count)
        results[name] = ScopeResult(pairs.reshape(count, count).astype(np.int64))
    return results
