"""Local training on cached features: the same code in simulations and deployments.

A worker that serves several sites trains them side by side: step k of every site goes through the frozen towers in
one forward pass if the method supports it. The sum of their losses gives each site's own gradients, since no parameter
of one site occurs in another's loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedgraft.config.run_config import RunConfig
from fedgraft.methods.adapter import Adapter, Batch


@dataclass(frozen=True)
class TrainingData:
    """A site's training images: what is cached of them, (n, views, ...), and labels (n,) as positions in `classes`."""

    features: torch.Tensor
    labels: torch.Tensor
    classes: tuple[int, ...]


def train(adapter: Adapter, data: TrainingData, config: RunConfig, rng: np.random.Generator) -> float:
    """`train_together` for one site."""
    return train_together([adapter], [data], config, [rng])[0]


def train_together(
    adapters: Sequence[Adapter], data: Sequence[TrainingData], config: RunConfig, rngs: Sequence[np.random.Generator]
) -> list[float]:
    """Train several sites of one fold in place for the configured epochs, and return each one's mean loss.

    Each epoch shuffles a site's images and draws one view of each, from the site's own generator. The optimizer is new
    in each round, and its state is per parameter: no momentum crosses sites or rounds.

    Args:
        adapters: of one method and one vocabulary.
        data: of each site, all with the same classes.
        rngs: of each site.
    """
    for adapter in adapters:
        adapter.on_training_begin()
    classes = data[0].classes
    steps = [list(_draws(site, config, rng)) for site, rng in zip(data, rngs, strict=True)]
    at_once = adapters[0].sites_per_pass(classes)
    optimizer = _optimizer([parameter for adapter in adapters for parameter in adapter.parameters()], config)
    losses = [0.0] * len(adapters)
    for step in range(max(map(len, steps))):
        optimizer.zero_grad(set_to_none=True)
        active = [site for site in range(len(adapters)) if step < len(steps[site])]
        for begin in range(0, len(active), at_once):
            sites = active[begin : begin + at_once]
            batches = [_batch(data[site], *steps[site][step]) for site in sites]
            values = type(adapters[0]).losses([adapters[site] for site in sites], batches, classes)
            torch.stack(values).sum().backward()  # type: ignore[no-untyped-call]
            for site, batch, value in zip(sites, batches, values, strict=True):
                losses[site] += float(value.detach()) * len(batch.labels)
        optimizer.step()
    return [total / (len(site.labels) * config.local_epochs) for total, site in zip(losses, data, strict=True)]


def _draws(
    data: TrainingData, config: RunConfig, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images and the view of each, for all batches of all epochs."""
    count = len(data.labels)
    for _ in range(config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        views = torch.from_numpy(rng.integers(data.features.shape[1], size=count))
        for batch in torch.split(order, config.batch_size):
            yield batch, views[batch]


def _batch(data: TrainingData, images: torch.Tensor, views: torch.Tensor) -> Batch:
    return Batch(data.features[images, views], data.labels[images])


def _optimizer(parameters: list[torch.nn.Parameter], config: RunConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
