"""What is computed once for each image and cached, in which form."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch


@dataclass(frozen=True)
class Representation:
    """The final features (dim,) of an image unless something else is asked for.

    Attributes:
        layer: of the image tower, whose input (tokens, width) is cached; what follows is computed in every step.
        patches: the projected features of all patches behind the final ones, unit rows (1 + patches, dim).
        exits: numbers of layers after which the image tower would end early; what its projection would read there is
            cached, and behind it what it reads at the end, (exits + 1, width).
        final: the final feature is kept beside the layer's input, see `fedgraft.backbones.kept_images`.
        dtype: in which they are kept; float16 takes half the disk and memory and rounds to 11 bits.
    """

    layer: int | None = None
    patches: bool = False
    exits: tuple[int, ...] = ()
    final: bool = False
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        """Raise ValueError for the patches or exits of an inner layer, or a final feature beside no layer's input."""
        if self.patches and self.layer is not None:
            raise ValueError("patch features are those of the last layer; leave out the layer or the patches")
        if self.exits and (self.patches or self.layer is not None):
            raise ValueError("exits are a form of their own; leave out the layer and the patches")
        if self.final and self.layer is None:
            raise ValueError("without a layer the final feature is all that is kept; leave out final or name a layer")

    @property
    def represented(self) -> Self:
        """The same without the final feature, which is the form that a backbone gives."""
        return replace(self, final=False)

    @property
    def label(self) -> str:
        """What tells it from others in the name of a file; empty for final features in float32."""
        what = (
            "-patches" if self.patches else "" if self.layer is None else f"-layer{self.layer}{'-final' * self.final}"
        )
        if self.exits:
            what = f"-exits{'.'.join(map(str, self.exits))}"
        return what + ("" if self.dtype == "float32" else f"-{self.dtype}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of its tensors as they are kept."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


FEATURES = Representation()
"""The final features, unit rows (dim,) in float32."""
