"""Local training, as a rule on cached features: the same code in simulations and deployments.

A worker that serves several sites trains them side by side: step k of every site goes through the frozen towers in
one forward pass if the method supports it. The sum of their losses gives each site's own gradients, since no parameter
of one site occurs in another's loss.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from fedgraft.client.schedule import learning_rate
from fedgraft.config.run_config import RunConfig
from fedgraft.methods.adapter import Adapter, Batch
from fedgraft.strategies.components import Training


@dataclass(frozen=True)
class TrainingData:
    """A site's training images: what is cached of them, (n, views, ...), and labels (n,) as positions in `classes`.

    Attributes:
        drawn: encodes some of the images anew, in place of what is cached, if images are augmented in every step.
    """

    features: torch.Tensor
    labels: torch.Tensor
    classes: tuple[int, ...]
    drawn: Callable[[torch.Tensor], torch.Tensor] | None = None


def train(
    adapter: Adapter, data: TrainingData, config: RunConfig, rng: np.random.Generator, server_round: int = 1
) -> float:
    """`train_together` for one site."""
    return train_together([adapter], [data], config, [rng], server_round)[0]


def train_together(
    adapters: Sequence[Adapter],
    data: Sequence[TrainingData],
    config: RunConfig,
    rngs: Sequence[np.random.Generator],
    server_round: int = 1,
    training: Training | None = None,
) -> list[float]:
    """Train several sites of one fold in place for the configured epochs, and return each one's mean loss.

    Each epoch shuffles a site's images and draws one view of each, from the site's own generator. The optimizer is new
    in each round, and its state is per parameter: no momentum crosses sites or rounds.

    Args:
        adapters: of one method and one vocabulary.
        data: of each site; only sites with the same classes share a pass.
        rngs: of each site; what a strategy draws for a step comes after all that the site's images are drawn by.
        server_round: the round, which with the epoch decides the learning rate.
        training: of the strategy, if it changes the steps.
    """
    for adapter, own in zip(adapters, data, strict=True):
        adapter.on_training_images(own.features, own.labels, own.classes)
        adapter.on_training_begin()
    first_epoch = (server_round - 1) * config.local_epochs
    steps = [list(_steps(site, config, rng, first_epoch)) for site, rng in zip(data, rngs, strict=True)]
    at_once = {site.classes: adapters[0].sites_per_pass(site.classes) for site in data}
    optimizer = _optimizer(adapters, config)
    losses, seen = [0.0] * len(adapters), [0] * len(adapters)
    for step in range(max(map(len, steps))):
        optimizer.zero_grad(set_to_none=True)
        active = [site for site in range(len(adapters)) if step < len(steps[site])]
        for site in active:
            optimizer.param_groups[site]["lr"] = steps[site][step].lr
        for sites in _passes(active, data, at_once):
            group = [adapters[site] for site in sites]
            batches = [_batch(data[site], steps[site][step]) for site in sites]
            for site in sites:
                adapters[site].beside = training.term(rngs[site]) if training else None
            values = _gradients(group, batches, data[sites[0]].classes, training)
            for site, batch, value in zip(sites, batches, values, strict=True):
                losses[site] += float(value.detach()) * len(batch.labels)
                seen[site] += len(batch.labels)
        optimizer.step()
        for site in active:
            if ends := steps[site][step].ends:
                adapters[site].on_epoch_end(ends, config.local_epochs)
    for adapter in adapters:
        adapter.beside = None
        adapter.on_training_end()
    return [total / count for total, count in zip(losses, seen, strict=True)]


def _gradients(
    adapters: Sequence[Adapter], batches: Sequence[Batch], classes: tuple[int, ...], training: Training | None
) -> list[torch.Tensor]:
    """The loss of each site, with its gradients left in its parameters."""

    def backward() -> list[torch.Tensor]:
        values = type(adapters[0]).losses(adapters, batches, classes)
        total = torch.stack(values).sum()
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        return values

    if training is None:
        return backward()
    return training.gradients(backward, [[p for p in own.parameters() if p.requires_grad] for own in adapters])


class _Step(NamedTuple):
    """The images of a batch, the view of each, and the learning rate."""

    images: torch.Tensor
    views: torch.Tensor
    lr: float
    ends: int
    """Which of the round's epochs it ends, from 1; 0 for none."""


def _steps(data: TrainingData, config: RunConfig, rng: np.random.Generator, first_epoch: int) -> Iterator[_Step]:
    """All steps of all epochs of a round; a batch that is the only one of its epoch counts as full."""
    count = len(data.labels)
    for epoch in range(first_epoch, first_epoch + config.local_epochs):
        order = torch.from_numpy(rng.permutation(count))
        views = torch.from_numpy(rng.integers(data.features.shape[1], size=count))
        batches = torch.split(order, config.batch_size)
        if config.drop_last and len(batches) > 1 and len(batches[-1]) < config.batch_size:
            batches = batches[:-1]
        for number, batch in enumerate(batches, 1):
            ends = 1 + epoch - first_epoch if number == len(batches) else 0
            yield _Step(batch, views[batch], learning_rate(config, epoch), ends)


def _passes(
    active: Sequence[int], data: Sequence[TrainingData], at_once: dict[tuple[int, ...], int]
) -> Iterator[list[int]]:
    """The active sites in groups that share a pass of the text tower: of the same classes, and not too many."""
    for classes, group in groupby(active, lambda site: data[site].classes):
        sites = list(group)
        for begin in range(0, len(sites), at_once[classes]):
            yield sites[begin : begin + at_once[classes]]


def _batch(data: TrainingData, step: _Step) -> Batch:
    images = data.features[step.images, step.views] if data.drawn is None else data.drawn(step.images)
    return Batch(images.float(), data.labels[step.images])


def _optimizer(adapters: Sequence[Adapter], config: RunConfig) -> torch.optim.Optimizer:
    """One optimizer with a group of parameters for each site, which has a learning rate of its own."""
    parameters = [{"params": list(adapter.parameters())} for adapter in adapters]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
