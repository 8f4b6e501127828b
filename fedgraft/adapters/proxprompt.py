"""FedProx (Li et al., MLSys 2020) on a shared context: the round's training is held near what the server sent.

CE(x, t) + mu / 2 |p - p_received|^2
"""

from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from fedgraft.adapters.base import Method
from fedgraft.adapters.context import ContextOptions
from fedgraft.adapters.promptfl import PromptFL


class ProxPromptOptions(ContextOptions):
    """How strongly it is held."""

    mu: float = Field(0.1, ge=0, description="weight of the squared distance to the received context")


class ProxPrompt(PromptFL):
    """PromptFL's context with the proximal term in the loss."""

    def build(self, generator: torch.Generator) -> None:
        """The shared context, which is what was received until a round begins."""
        super().build(generator)
        self.training_begins()

    def training_begins(self) -> None:
        """Keep what was received."""
        self._received = self.context.detach().clone()

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy plus the proximal term."""
        distance = (self.context - self._received.to(self.context)).square().sum()
        mu = cast(ProxPromptOptions, self.options).mu
        return super().loss_of(encoded, images, labels, classes) + mu / 2 * distance


METHOD = Method(
    "proxprompt", "one shared context, each round held near the received one", ProxPrompt, ProxPromptOptions
)
