"""Disturbing images: projected gradient ascent on a loss (Madry et al. 2018), and noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fedgraft.backbones.backbone import Backbone

Loss = Callable[[Tensor], Tensor]
"""Pixels (B, 3, side, side) to a scalar."""


@dataclass(frozen=True)
class PixelRange:
    """The preprocessing's mean and standard deviation, (1, 3, 1, 1) each, of pixels from 0 to 1."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """That of a backbone's preprocessing."""
        config = backbone.preprocessor_config()
        return cls(*(torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("image_mean", "image_std")))

    def clamp(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels, limited to values that images can have."""
        return pixels.clamp((0 - self.mean) / self.std, (1 - self.mean) / self.std)


@dataclass(frozen=True)
class Attack:
    """Gradient ascent within a ball of the maximum norm.

    Attributes:
        epsilon: radius, for pixels from 0 to 1.
        steps: gradient steps of 2 epsilon / steps each.
    """

    epsilon: float
    steps: int

    def __call__(self, pixels: Tensor, loss: Loss, pixel_range: PixelRange, rng: np.random.Generator) -> Tensor:
        """Preprocessed pixels in the ball around the given ones that raise the loss, from a random start."""
        radius = self.epsilon / pixel_range.std
        start = torch.from_numpy(rng.uniform(-1, 1, pixels.shape).astype(np.float32))
        moved = pixel_range.clamp(pixels + start * radius)
        for _ in range(self.steps):
            moved.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(moved), moved)
            moved = moved.detach() + gradient.sign() * radius * (2 / self.steps)
            moved = pixel_range.clamp(pixels + torch.minimum(torch.maximum(moved - pixels, -radius), radius))
        return moved.detach()


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, as randomized smoothing trains on (Cohen et al. 2019).

    Attributes:
        epsilon: standard deviation, for pixels from 0 to 1.
    """

    epsilon: float

    def __call__(self, pixels: Tensor, loss: Loss, pixel_range: PixelRange, rng: np.random.Generator) -> Tensor:
        """Preprocessed pixels with noise, whatever the loss. As in smoothing, they may leave the valid range."""
        noise = torch.from_numpy(rng.standard_normal(pixels.shape).astype(np.float32))
        return pixels + noise * (self.epsilon / pixel_range.std)


@dataclass(frozen=True)
class Nothing:
    """No disturbance."""

    def __call__(self, pixels: Tensor, loss: Loss, pixel_range: PixelRange, rng: np.random.Generator) -> Tensor:
        """The same pixels."""
        return pixels


Disturbance = Callable[[Tensor, Loss, PixelRange, np.random.Generator], Tensor]
"""From pixels, a loss, the pixel range and a random generator to disturbed pixels."""
