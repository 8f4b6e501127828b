"""Training a tower's weights towards the dense backbone: to make it robust, or to distil a ticket."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from fedgraft.backbones.prunable import PrunableTower
from fedgraft.edge_export.tickets.attack import Attack, Disturbance, Noise, Nothing
from fedgraft.edge_export.tickets.image_pool import ImagePool
from fedgraft.edge_export.tickets.objective import Matching
from fedgraft.edge_export.tickets.training import Stage, StageStore, optimize

INDUCTIONS: dict[str, Callable[[float, int], Disturbance]] = {
    "none": lambda epsilon, steps: Nothing(),
    "pgd": Attack,
    "smoothing": lambda epsilon, steps: Noise(epsilon),
}
"""What is done to the images, given a radius (or standard deviation) and a number of attack steps."""


def tune(
    tower: PrunableTower, matching: Matching, stage: Stage, store: StageStore, masks: dict[str, Tensor] | None = None
) -> PrunableTower:
    """A copy of a tower after a stage's steps towards the plain backbone.

    Args:
        tower: the start.
        matching: the loss.
        stage: the steps.
        store: keeps checkpoints.
        masks: parameters that stay zero where their mask is.
    """
    copy = deepcopy(tower).requires_grad_(True)
    parameters: dict[str, Tensor] = dict(copy.named_parameters())

    @torch.no_grad()
    def keep_zeros() -> None:
        for name, mask in (masks or {}).items():
            parameters[name].mul_(mask)

    keep_zeros()
    optimize(parameters, lambda rng: matching(copy, rng), stage, store, keep_zeros)
    return copy.requires_grad_(False)


def described(tower: PrunableTower, pool: ImagePool, **more: object) -> dict[str, object]:
    """What decides a stage besides its numbers: the tower it starts from, the images, and more."""
    return {"tower": tower.digest(), "images": pool.digest(), **more}
