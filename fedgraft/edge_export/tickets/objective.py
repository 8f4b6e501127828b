"""The distance of a tower to the plain backbone; it needs no labels.

It compares features and a class bank's logits, so that a tower stays aligned with the text tower, an alignment that
plain adversarial cross-entropy loses: TeCoA (Mao et al. 2023) keeps it by text-anchored logits, FARE (Schlarmann et
al. 2024) by the distance to the clean features.
"""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fedgraft.edge_export.tickets.attack import Disturbance
from fedgraft.edge_export.tickets.image_pool import ImagePool
from fedgraft.edge_export.tickets.training import Module


def distance(features: Tensor, targets: Tensor, class_logits: Tensor) -> Tensor:
    """1 - cosine, plus KL(plain || tower) of the class bank's softmax, averaged over the batch.

    Args:
        features: (B, dim) of unit norm, the tower's.
        targets: (B, dim) of unit norm, the plain backbone's for the clean images.
        class_logits: (dim, C), the class bank times the logit scale.
    """
    wanted = (targets @ class_logits).log_softmax(-1)
    got = (features @ class_logits).log_softmax(-1)
    divergence = F.kl_div(got, wanted, reduction="batchmean", log_target=True)
    return (1 - (features * targets).sum(-1)).mean() + divergence


@dataclass(frozen=True)
class Matching:
    """The loss of one step: the distance to the plain backbone's clean features on disturbed images.

    Attributes:
        pool: images and the plain backbone's features.
        disturbance: applied to the images; one that maximizes the distance makes a tower robust.
        batch_size: images per step.
    """

    pool: ImagePool
    disturbance: Disturbance
    batch_size: int = 64

    def __call__(self, tower: Module, rng: np.random.Generator) -> Tensor:
        """The loss, differentiable in the tower's parameters."""
        pixels, targets = self.pool.batch(self.batch_size, rng)
        class_logits = self.pool.class_bank.T * self.pool.logit_scale

        def loss(images: Tensor) -> Tensor:
            return distance(tower(images), targets, class_logits)

        return loss(self.disturbance(pixels, loss, self.pool.pixel_range, rng))
