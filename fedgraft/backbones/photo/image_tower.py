"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6) as a plain module.

Modules carry the names of the published weights without their leading underscores. Padding is TensorFlow's "same": on
the right and below where a stride leaves one pixel over. Convolutions and batch norms stand side by side, so that a
runtime can fold one into the other.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_NORM_EPSILON = 1e-3
_PAIRS = (
    ("conv_stem", "bn0"), ("conv_head", "bn1"), ("expand_conv", "bn0"), ("depthwise_conv", "bn1"),
    ("project_conv", "bn2"),
)  # fmt: skip


@dataclass(frozen=True)
class LiteShape:
    """The sizes of a tower; those of Lite0 by default.

    Attributes:
        stem: channels of the first convolution.
        stages: (blocks, kernel, stride of the first block, expansion, channels) of each stage.
        features: channels of the last convolution, and so pooled features.
    """

    stem: int = 32
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )  # fmt: skip
    features: int = 1280

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """From the JSON of `dataclasses.asdict`; raises KeyError, TypeError or ValueError for wrong keys or sizes."""
        stages = tuple((int(n), int(k), int(s), int(e), int(c)) for n, k, s, e, c in values["stages"])
        return cls(int(values["stem"]), stages, int(values["features"]))

    @property
    def hidden(self) -> tuple[int, ...]:
        """Hidden channels of each block that nothing was removed from."""
        found, width = [], self.stem
        for count, _, _, expansion, channels in self.stages:
            for _ in range(count):
                found.append(width * expansion)
                width = channels
        return tuple(found)


class EfficientNetLite(nn.Module):
    """Pixels (B, 3, height, width) to pooled features (B, features).

    Args:
        hidden: channels of each block between its expansion and its projection; those of the shape by default.
    """

    def __init__(self, shape: LiteShape | None = None, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        shape = shape or LiteShape()
        inner = iter(hidden or shape.hidden)
        self.conv_stem = SameConv(3, shape.stem, 3, stride=2)
        self.bn0 = _norm(shape.stem)
        blocks, width = [], shape.stem
        for count, kernel, stride, expansion, channels in shape.stages:
            for number in range(count):
                stride_here = 1 if number else stride
                blocks.append(InvertedResidual(width, next(inner), channels, kernel, stride_here, expansion > 1))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv(width, shape.features, 1)
        self.bn1 = _norm(shape.features)

    @property
    def residuals(self) -> list["InvertedResidual"]:
        """The blocks, under their type."""
        return cast(list[InvertedResidual], list(self.blocks))

    def forward(self, pixels: Tensor) -> Tensor:
        """The mean over positions behind the last convolution."""
        states = F.relu6(self.bn0(self.conv_stem(pixels)))
        for block in self.blocks:
            states = block(states)
        return F.relu6(self.bn1(self.conv_head(states))).mean((2, 3))

    def folded(self) -> Self:
        """A copy in evaluation mode whose batch norms are part of the convolutions before them."""
        copy = deepcopy(self).eval()
        for module in (copy, *copy.blocks):
            for convolution, norm in _PAIRS:
                if isinstance(found := getattr(module, convolution, None), nn.Conv2d):
                    setattr(module, convolution, fuse_conv_bn_eval(found, getattr(module, norm)))
                    setattr(module, norm, nn.Identity())
        return copy


class InvertedResidual(nn.Module):
    """Widened, convolved channel by channel and narrowed again (Sandler et al. 2018)."""

    def __init__(self, width: int, inner: int, channels: int, kernel: int, stride: int, expands: bool) -> None:
        super().__init__()
        self.expands, self.adds = expands, stride == 1 and width == channels
        if self.expands:
            self.expand_conv = SameConv(width, inner, 1)
            self.bn0 = _norm(inner)
        self.depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self.bn1 = _norm(inner)
        self.project_conv = SameConv(inner, channels, 1)
        self.bn2 = _norm(channels)

    def forward(self, states: Tensor) -> Tensor:
        """(B, width, H, W) to (B, channels, H / stride, W / stride), rounded up."""
        wide = F.relu6(self.bn0(self.expand_conv(states))) if self.expands else states
        out: Tensor = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(wide)))))
        return states + out if self.adds else out


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has 1 / stride of the positions, rounded up."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(width, channels, kernel, stride, groups=groups, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """(B, width, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in states.shape[2:])
        if down == right and down % 2 == 0:
            return F.conv2d(states, self.weight, self.bias, stride, down // 2, groups=self.groups)
        padded = F.pad(states, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(padded, self.weight, self.bias, stride, groups=self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPSILON)
