"""A shared context plus a personal offset: the whole prompt is sigma + delta, and only sigma is averaged.

    loss = cross-entropy + decay / 2 |delta|^2

Not from a paper; the shortest method that shares one parameter, keeps another and has a loss of its own.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgraft.methods.method import Method
from fedgraft.methods.prompts import ContextOptions, PromptAdapter, initial_context


class OffsetOptions(ContextOptions):
    """How strongly the offset is held at zero."""

    decay: float = Field(0.01, ge=0, description="weight of the squared length of the offset", examples=[1.0])


class Offset(PromptAdapter):
    """sigma (1, n_ctx, width) shared, delta of the same shape personal."""

    options: OffsetOptions
    personal_names = frozenset({"delta"})

    def build(self, generator: torch.Generator) -> None:
        """Sigma as other prompts begin, delta small."""
        self.sigma = nn.Parameter(initial_context(self.vocabulary, self.options, generator))
        self.delta = nn.Parameter(0.001 * torch.randn(self.sigma.shape, generator=generator))

    def prompts(self) -> Tensor:
        """The whole prompt."""
        return self.sigma + self.delta

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy plus the decay."""
        return super().loss_of(encoded, images, labels, classes) + self.options.decay / 2 * self.delta.square().sum()


METHOD = Method(
    name="example-offset",
    summary="a shared context plus a personal offset",
    adapter=Offset,
    options=OffsetOptions,
    paper="an example",
    shared="the context",
)
