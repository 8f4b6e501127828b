"""The image tower of `photo` with its projection, batch norms folded, as features, exports and tickets need it.

What tickets remove from it are the hidden channels of its blocks (Sandler et al. 2018): a channel is its row of the
expansion, its depthwise filter and its column of the projection, with the batch norms that were folded into them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.memory_format import convert_conv2d_weight_memory_format

from fedgraft.backbones.photo.image_tower import EfficientNetLite, LiteShape
from fedgraft.backbones.photo.model import PhotoModel
from fedgraft.backbones.prunable import LearningRates, Part, PrunableTower


@dataclass(frozen=True)
class EncoderShape:
    """All sizes.

    Attributes:
        image: of the tower that nothing was removed from.
        dim: of the joint space.
        hidden: channels of each block that are left.
    """

    image: LiteShape
    dim: int
    hidden: tuple[int, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """From the JSON of `dataclasses.asdict`; raises TypeError, KeyError or ValueError for wrong keys or sizes."""
        shape = cls(LiteShape.from_json(values["image"]), int(values["dim"]), tuple(map(int, values["hidden"])))
        whole = shape.image.hidden
        fits = len(shape.hidden) == len(whole)
        if not fits or any(not 1 <= left <= most for left, most in zip(shape.hidden, whole, strict=True)):
            raise ValueError("every block needs at least one hidden channel, and no more than it had")
        return shape


class PhotoImageEncoder(PrunableTower):
    """Pixels (B, 3, height, width) to unit-norm features (B, dim), without batch norms."""

    family = "photo"
    learning_rates = LearningRates(1e-4, 1e-4)  # longer steps leave dead units behind its ReLU6
    shape: EncoderShape

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.tower = EfficientNetLite(shape.image, shape.hidden).folded()
        self.projection = nn.Linear(shape.image.features, shape.dim, bias=False)
        convert_conv2d_weight_memory_format(self, torch.channels_last)  # the faster kernels on CPUs
        self.eval().requires_grad_(False)

    @classmethod
    def of(cls, model: PhotoModel) -> Self:
        """A copy of a model's image tower and projection."""
        config = model.config
        encoder = cls(EncoderShape(config.image, config.dim, config.image.hidden))
        encoder.tower.load_state_dict(model.image_model.folded().state_dict())
        encoder.projection.load_state_dict(model.visual_projection.state_dict())
        return encoder

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """An empty tower of the sizes in a ticket's folder; raises as `EncoderShape.from_json`."""
        return cls(EncoderShape.from_json(values))

    def forward(self, pixels: Tensor) -> Tensor:
        """The pooled features on the principal directions of the classifier."""
        features = self.tower(pixels.to(self.projection.weight.dtype))
        return F.normalize(self.projection(features).float(), dim=-1)

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """The convolutions of one position in every block; depthwise filters stay whole."""
        for number, block in enumerate(self.tower.residuals):
            for name in ("expand_conv", "project_conv") if block.expands else ("project_conv",):
                path = f"tower.blocks.{number}.{name}.weight"
                yield path, self.get_parameter(path).flatten(1)

    def parts(self) -> Iterator[Part]:
        """The hidden channels of every block that expands; the others' belong to the block or stem before as well."""
        for number, block in enumerate(self.tower.residuals):
            if block.expands:
                path = f"tower.blocks.{number}"
                yield Part(
                    number,
                    "units",
                    "hidden channels",
                    f"block {number}",
                    self.shape.hidden[number],
                    1,
                    rows=(f"{path}.expand_conv.weight", f"{path}.depthwise_conv.weight"),
                    columns=(f"{path}.project_conv.weight",),
                    vectors=(f"{path}.expand_conv.bias", f"{path}.depthwise_conv.bias"),
                )

    def resized(self, counts: Mapping[str, int]) -> Self:
        """With other numbers of hidden channels."""
        hidden = tuple(counts.get(f"{number}.units", count) for number, count in enumerate(self.shape.hidden))
        return type(self)(replace(self.shape, hidden=hidden))
