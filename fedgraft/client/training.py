"""Local training on cached features: the same code behind simulation and deployment."""

from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.adapters.base import Adapter
from fedgraft.config import RunConfig


@dataclass(frozen=True)
class TrainingData:
    """A site's training images: features (n, views, dim) of unit norm and labels (n,) as positions in `classes`."""

    features: torch.Tensor
    labels: torch.Tensor
    classes: tuple[int, ...]


def train(adapter: Adapter, data: TrainingData, config: RunConfig, rng: np.random.Generator) -> float:
    """Train in place for the configured epochs with an optimizer of the site's own, and return the mean loss.

    The optimizer is made anew each round: no momentum crosses sites or rounds. Each epoch shuffles the images and
    draws one view of each.
    """
    optimizer = _optimizer(adapter, config)
    losses, count = 0.0, len(data.labels)
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        views = torch.from_numpy(rng.integers(data.features.shape[1], size=count))
        for batch in torch.split(order, config.batch_size):
            loss = adapter.loss(data.features[batch, views[batch]], data.labels[batch], data.classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses += float(loss.detach()) * len(batch)
    return losses / (count * config.local_epochs)


def _optimizer(adapter: Adapter, config: RunConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(adapter.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        adapter.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
