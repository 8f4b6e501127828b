"""What an image tower of patches says about itself, so that they can be merged on their way through its layers."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

if TYPE_CHECKING:
    from fedgraft.backbones.vision_tower import TowerLayer


class PatchTower(nn.Module, ABC):
    """Pixels (B, 3, side, side) to embeddings (B, dim) of unit norm, in steps.

    Attributes:
        class_tokens: tokens before the patches, which are never merged.
    """

    class_tokens: ClassVar[int]

    @property
    def prompted(self) -> bool:
        """Whether visual prompts stand beside the patches."""
        return False

    @property
    @abstractmethod
    def blocks(self) -> list["TowerLayer"]:
        """The layers."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """The input of the first layer, (B, class tokens + patches, width)."""

    @abstractmethod
    def pool(self, states: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Embeddings (B, dim) of unit norm in float32 from the output of the last layer.

        Args:
            sizes: (B, T, 1), how many patches each token stands for; one each by default.
        """

    def forward(self, pixels: Tensor) -> Tensor:
        """All steps, one after another."""
        states = self.embed(pixels)
        for layer in self.blocks:
            states = layer(states)
        return self.pool(states)
