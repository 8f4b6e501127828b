"""Optimal transport between the patches of an image and the prompts of a class: what its methods share.

The similarity of an image and a class is sum_mn T_mn s_mn, with s_mn the cosine of patch m and prompt n and T the plan
that moves a mass of 1/M from each patch to the prompts at the least cost 1 - s_mn, with an entropy of weight eps
(Cuturi, NeurIPS 2013). No gradient passes through the plan. Published code stops when the scalings of a whole batch
have settled; here each image and class stops on its own, so that no score depends on what is scored beside it.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedgraft.backbones import Backbone
from fedgraft.backbones.abilities import Needs
from fedgraft.backbones.representation import Representation
from fedgraft.methods.prompts import ContextOptions, PromptAdapter

CACHES = "the features of all patches of an image"
_AT_ONCE = 2**22
"""How many pairs of a patch and a prompt are transported at once in an evaluation."""


class TransportOptions(ContextOptions):
    """Sinkhorn's iteration, and how images are kept."""

    eps: float = Field(0.1, gt=0, description="weight of the plan's entropy", examples=[0.5])
    thresh: float = Field(1e-3, ge=0, description="mean change of the scalings at which a plan is done", examples=[10])
    max_iter: int = Field(100, ge=1, description="iterations at most", examples=[1])
    cache: Literal["float32", "float16"] = Field(
        "float32", description="precision of the cached patch features; float16 halves the disk", examples=["float16"]
    )


@torch.no_grad()
def transport_plan(similarity: Tensor, options: TransportOptions, mass: float = 1.0, at_most: bool = False) -> Tensor:
    """The plan T (..., M, N) from M patches to N prompts.

    Args:
        similarity: cosines (..., M, N).
        mass: how much the prompts take together, 1/N of it each.
        at_most: whether a patch may give less than 1/M, which it must where the mass is less than one.
    """
    patches, prompts = similarity.shape[-2:]
    kernel = ((similarity - 1) / options.eps).exp()
    rows = similarity.new_ones(similarity.shape[:-1])
    columns = similarity.new_ones(*similarity.shape[:-2], prompts)
    moving = torch.ones(similarity.shape[:-2], dtype=torch.bool, device=similarity.device)
    for _ in range(options.max_iter):
        new_rows = 1 / (patches * torch.einsum("...mn,...n->...m", kernel, columns))
        if at_most:
            new_rows = new_rows.clamp(max=1)
        new_columns = mass / (prompts * torch.einsum("...mn,...m->...n", kernel, new_rows))
        change = (new_columns - columns if at_most else new_rows - rows).abs().mean(-1)
        rows = torch.where(moving[..., None], new_rows, rows)
        columns = torch.where(moving[..., None], new_columns, columns)
        moving &= change >= options.thresh
        if not moving.any():
            break
    return rows[..., None] * kernel * columns[..., None, :]


class TransportAdapter(PromptAdapter):
    """A method that classifies by the transport of patches to several prompts.

    `class_features` are the normalized means over prompts, which stand for the classes where no image is at hand.
    """

    options: TransportOptions
    loss_of_features = False
    mass: float = 1.0
    at_most: bool = False

    @classmethod
    def needs(cls, options: ContextOptions) -> Needs:
        """A context at its place, and the features of patches."""
        return Needs(patches=True) | super().needs(options)

    @classmethod
    def representation(cls, backbone: Backbone, options: TransportOptions) -> Representation:
        """All patches."""
        return Representation(patches=True, dtype=options.cache)

    def similarities(self, images: Tensor, encoded: Tensor) -> Tensor:
        """Of each image and class, (B, C), from patches (B, 1 + M, dim) and encoded prompts (N, C, dim)."""
        similarity = torch.einsum("bmd,ncd->bcmn", images[:, 1:], encoded)
        plan = transport_plan(similarity.detach(), self.options, self.mass, self.at_most)
        return (plan * similarity).sum((-2, -1))

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy of the similarities."""
        return self.cosine_loss(self.similarities(images, encoded), labels)

    def scores(self, images: Tensor, class_features: Tensor, classes: tuple[int, ...]) -> Tensor:
        """`similarities` in parts that limit memory; the class features are not read."""
        encoded = self.encode(self.prompts(), classes)
        at_once = max(1, _AT_ONCE // (images.shape[1] * len(encoded) * len(classes)))
        return torch.cat([self.similarities(part, encoded) for part in torch.split(images, at_once)])
