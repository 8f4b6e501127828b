"""CoCoOp (Zhou et al., CVPR 2022), averaged: a context that a small network shifts for every image.

    context(x) = context + W_2 ReLU(W_1 x + b_1) + b_2,    CE(cos(x, text(context(x), class)))

The shift is the same for all vectors of the context; the network's inner width is a sixteenth of the features'. Every
image has prompts of its own, so the text tower runs for every image where other methods run it once a step; what a
causal tower shares is the pass through [start; context(x)], which all classes of an image have in common. The memory of
a step grows with batch_size x classes; the authors train with batches of one. They begin with the words "a photo of a"
(`ctx_init`), the default here is a drawn context of the same length.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.adapter import Batch
from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ContextOptions, PromptAdapter, initial_context

REDUCTION = 16


class CoCoOpOptions(ContextOptions):
    """The paper's context of four vectors."""

    n_ctx: int = Field(4, ge=1, description="context vectors before the class name", examples=[2])


class CoCoOp(PromptAdapter):
    """A context (1, n_ctx, width) and the network that shifts it, all shared."""

    options: CoCoOpOptions
    loss_of_features = False

    def build(self, generator: torch.Generator) -> None:
        """The context, and the network as torch draws its layers."""
        backbone = self.vocabulary.backbone
        self.context = nn.Parameter(initial_context(self.vocabulary, self.options, generator))
        inner = max(1, backbone.dim // REDUCTION)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.down, self.up = nn.Linear(backbone.dim, inner), nn.Linear(inner, backbone.text.width)

    def prompts(self) -> Tensor:
        """The context that no image has shifted, of which `class_features` are."""
        return self.context

    def shifted(self, images: Tensor) -> Tensor:
        """The context of each image, (B, n_ctx, width)."""
        shift: Tensor = self.up(F.relu(self.down(images)))
        return self.context + shift[:, None]

    def cosines(self, images: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Of each image and the class features under its own context, (B, C)."""
        return torch.einsum("bd,bcd->bc", images, self.encode(self.shifted(images), classes))

    def loss(self, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """One pass of the text tower with as many contexts as images."""
        return self.cosine_loss(self.cosines(images, classes), labels)

    @classmethod
    def losses(cls, adapters: Sequence[Self], batches: Sequence[Batch], classes: tuple[int, ...]) -> list[Tensor]:
        """Each site on its own: an image's prompts already fill a pass."""
        return [own.loss(batch.images, batch.labels, classes) for own, batch in zip(adapters, batches, strict=True)]

    def scores(self, images: Tensor, class_features: Tensor, classes: tuple[int, ...]) -> Tensor:
        """`cosines`, in parts that keep a pass in the processor's cache; the class features are not read."""
        at_once = self.vocabulary.sites_per_pass(self.vocabulary.tokens(classes).ids.numel())
        return torch.cat([self.cosines(part, classes) for part in torch.split(images, at_once)])

    @classmethod
    def cost(cls, options: CoCoOpOptions, images: int, batch_size: int, classes: int) -> str:
        """How often the text tower runs."""
        return (
            f"The context depends on the image, so the text tower runs for each of {images:,} images that are trained "
            f"on, with {classes} classes each, where a context for all images takes about "
            f"{-(-images // batch_size):,} such passes; and again for every image that is tested. A step's memory "
            f"grows with batch_size = {batch_size}."
        )


METHOD = Method(
    "cocoop",
    "a context that a small network shifts for every image",
    CoCoOp,
    options=CoCoOpOptions,
    paper="Zhou et al., CVPR 2022",
    shared="the context and the network",
    takes_no_export="its classes' prompts depend on the image",
)
