"""Geodesic multi-modal mixup (Oh et al., NeurIPS 2023): mixtures of image and text as hard negatives at each site.

For an image i of a batch with unit features x_i and t_i, the feature of its class, the mixture lies on the arc between
both, at an angle theta_i from each other, with one share lambda ~ Beta(alpha, alpha) for a step:

    m_i = (sin(lambda theta_i) x_i + sin((1 - lambda) theta_i) t_i) / sin(theta_i)

Beside every cross-entropy of image and class features in a method's loss stands

    weight mean_i ( -log softmax_j(a_ij / tau)_i - log softmax_j(b_ij / tau)_i ),
    a_ii = b_ii = x_i . t_i,  a_ij = x_i . m_j,  b_ij = t_i . m_j  for j != i

as in the authors' code, which does not halve the sum as the paper does. Their pairs are captions; here several images
of a batch have one class, and the mixture of another image with it is no negative, so j goes over the images of other
classes. A site with one class has no mixtures, and trains as without. No pass of a tower is added.
"""

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedgraft.config.options import Options
from fedgraft.strategies.components import LossTerm, StrategyComponent, Training

_SAME = 1 - 1e-6
"""The cosine beyond which the angle between two features counts as this small: the arc has no direction at 0."""


class M2MixOptions(Options):
    """The weight of the mixtures, and how they are drawn."""

    weight: float = Field(0.01, gt=0, description="of the mixtures' contrast in the loss", examples=[0.1])
    alpha: float = Field(
        0.5,
        gt=0,
        description="of the Beta(alpha, alpha) that shares are drawn from; below 1, near an end",
        examples=[2],
    )
    temperature: float = Field(0.07, gt=0, description="tau, of the mixtures' contrast", examples=[0.01])


def mixed(images: Tensor, texts: Tensor, share: float) -> Tensor:
    """The points (B, dim) at `share` of the arc from texts (B, dim) to images (B, dim), all of unit norm."""
    cosines = (images * texts).sum(-1, keepdim=True).clamp(-_SAME, _SAME)
    angles = cosines.acos()
    return ((share * angles).sin() * images + ((1 - share) * angles).sin() * texts) / angles.sin()


def contrast(images: Tensor, texts: Tensor, labels: Tensor, share: float, temperature: float) -> Tensor:
    """The contrast against mixtures, a scalar.

    Args:
        images: unit features (B, dim).
        texts: of the class of each image, (B, dim).
        labels: (B,); mixtures of the same class are left out.
    """
    mixtures, own = mixed(images, texts, share), (images * texts).sum(-1)
    place = torch.arange(len(labels), device=labels.device)
    itself = place[:, None] == place
    left_out = (labels[:, None] == labels) & ~itself

    def one_way(features: Tensor) -> Tensor:
        cosines = torch.where(itself, own[:, None], features @ mixtures.mT) / temperature
        return F.cross_entropy(cosines.masked_fill(left_out, -torch.inf), place)

    return one_way(images) + one_way(texts)


class M2Mix(Training):
    """`contrast` beside each cross-entropy, with a share drawn for every step of a site."""

    options: M2MixOptions
    adds_term = True

    def term(self, rng: np.random.Generator) -> LossTerm:
        """The contrast under a share that is drawn once."""
        weight, temperature = self.options.weight, self.options.temperature
        share = float(rng.beta(self.options.alpha, self.options.alpha))

        def added(images: Tensor, class_features: Tensor, labels: Tensor) -> Tensor:
            return weight * contrast(images, class_features[labels], labels, share, temperature)

        return added


STRATEGY = StrategyComponent(
    "m2mix", "mixtures of image and text features as hard negatives at the sites", M2Mix, options=M2MixOptions
)
