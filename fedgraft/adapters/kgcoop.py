"""KgCoOp (Yao et al., CVPR 2023) in a federation: a shared context held near the hand-written class features.

CE(x, t) + w (1 - mean_c cos(t_c, t_c^hand))
"""

from typing import cast

from pydantic import Field
from torch import Tensor

from fedgraft.adapters.base import Method
from fedgraft.adapters.context import ContextOptions
from fedgraft.adapters.promptfl import PromptFL


class KgCoOpOptions(ContextOptions):
    """How strongly it is held."""

    weight: float = Field(8.0, ge=0, description="w, of the distance to the hand-written features")


class KgCoOp(PromptFL):
    """PromptFL's context with the guard in the loss."""

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy plus w times the mean cosine distance."""
        features = self.features_of(encoded)
        near = (features * self.vocabulary.zero_shot[list(classes)]).sum(-1).mean()
        weight = cast(KgCoOpOptions, self.options).weight
        return self.cross_entropy(images, features, labels) + weight * (1 - near)


METHOD = Method("kgcoop", "one shared context, held near the hand-written features", KgCoOp, KgCoOpOptions)
