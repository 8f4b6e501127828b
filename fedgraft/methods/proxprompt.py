"""FedProx (Li et al., MLSys 2020) on a shared context: each round's training is kept near what the server sent.

CE(x, t) + mu / 2 |p - p_received|^2
"""

import torch
from pydantic import Field
from torch import Tensor

from fedgraft.methods.method import Method
from fedgraft.methods.promptfl import PromptFL
from fedgraft.methods.prompts import ClassContextOptions


class ProxPromptOptions(ClassContextOptions):
    """How strongly the context is held."""

    mu: float = Field(0.1, ge=0, description="weight of the squared distance to the received context", examples=[1.0])


class ProxPrompt(PromptFL):
    """PromptFL's context with the proximal term in the loss."""

    options: ProxPromptOptions

    def build(self, generator: torch.Generator) -> None:
        """The shared context, which counts as the received one until a round begins."""
        super().build(generator)
        self.on_training_begin()

    def on_training_begin(self) -> None:
        """Keep the received context."""
        self._received = self.context.detach().clone()

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy plus the proximal term."""
        distance = (self.context - self._received.to(self.context)).square().sum()
        return super().loss_of(encoded, images, labels, classes) + self.options.mu / 2 * distance


METHOD = Method(
    "proxprompt",
    "one shared context, kept near the received one in each round",
    ProxPrompt,
    options=ProxPromptOptions,
    paper="Li et al., MLSys 2020",
    shared="the context",
)
