"""KgCoOp (Yao et al., CVPR 2023) in a federation: a shared context kept near the hand-written class features.

CE(x, t) + w (1 - mean_c cos(t_c, t_c^hand))
"""

from pydantic import Field
from torch import Tensor

from fedgraft.methods.method import Method
from fedgraft.methods.promptfl import PromptFL
from fedgraft.methods.prompts import ClassContextOptions


class KgCoOpOptions(ClassContextOptions):
    """How strongly the context is held."""

    weight: float = Field(
        8.0, ge=0, description="w, weight of the distance to the hand-written features", examples=[1.0]
    )


class KgCoOp(PromptFL):
    """PromptFL's context with the regularizer in the loss."""

    options: KgCoOpOptions

    def loss_of(self, encoded: Tensor, images: Tensor, labels: Tensor, classes: tuple[int, ...]) -> Tensor:
        """Cross-entropy plus w times the mean cosine distance."""
        features = self.features_of(encoded)
        near = (features * self.vocabulary.zero_shot[list(classes)]).sum(-1).mean()
        return self.cross_entropy(images, features, labels) + self.options.weight * (1 - near)


METHOD = Method(
    "kgcoop",
    "one shared context, kept near the hand-written features",
    KgCoOp,
    options=KgCoOpOptions,
    paper="Yao et al., CVPR 2023",
    shared="the context",
)
