"""From MiniLM's space of sentences to the image encoder's space of classes.

h(t) = sum_j exp(width (cos(t, x_j) - 1)) a_j over the anchors x_j, sentences about ImageNet's classes. The coefficients
a come from kernel ridge regression onto the rows of the image encoder's classifier, which is where that encoder keeps
its classes (Moayeri et al., Text-to-Concept, 2023, join two encoders by a linear map).
"""

from importlib.resources import files

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

SHARPNESS = 5.0
"""Of the packaged map's kernel."""
_FILE = "map.safetensors"


class TextMap(nn.Module):
    """Pooled states (..., width) to vectors (..., dim) in float32, not normalized.

    Args:
        anchors: how many sentences there are.
        width: of a sentence's vector.
        dim: of the joint space.
        sharpness: of the kernel.
    """

    def __init__(self, anchors: int, width: int, dim: int, sharpness: float) -> None:
        super().__init__()
        self.anchors = nn.Parameter(torch.zeros(anchors, width), requires_grad=False)
        self.coefficients = nn.Parameter(torch.zeros(anchors, dim), requires_grad=False)
        self.sharpness = sharpness

    def forward(self, pooled: Tensor) -> Tensor:
        """The sum over the anchors."""
        return (
            kernel(F.normalize(pooled.float(), dim=-1), self.anchors.float(), self.sharpness)
            @ self.coefficients.float()
        )


def kernel(sentences: Tensor, anchors: Tensor, sharpness: float) -> Tensor:
    """exp(sharpness (cos - 1)) of unit vectors (..., width) and (J, width): (..., J)."""
    return (sharpness * (sentences @ anchors.mT - 1)).exp()


def packaged_map() -> bytes:
    """The content of the map's file in the package, which `fedgraft.backbones.photo.align` makes."""
    return (files("fedgraft.backbones.photo") / _FILE).read_bytes()


def read_map() -> dict[str, Tensor]:
    """`anchors` (1000, 384), `coefficients` (1000, dim) and `directions` (dim, 1280) of the package, in float32."""
    return {name: tensor.float() for name, tensor in load(packaged_map()).items()}
