"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6) as a plain module.

Modules carry the names of the published weights without their leading underscores. Padding is TensorFlow's "same": on
the right and below where a stride leaves one pixel over. Convolutions and batch norms stand side by side, so that a
runtime can fold one into the other.
"""

import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_SIZE = 224
FEATURES = 1280
CLASSES = 1000
_STEM = 32
_NORM_EPSILON = 1e-3
_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
"""Blocks, kernel, stride of the first block, expansion and channels."""


class EfficientNetLite0(nn.Module):
    """Pixels (B, 3, height, width) to the pooled features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, _STEM, 3, stride=2)
        self.bn0 = _norm(_STEM)
        blocks, width = [], _STEM
        for count, kernel, stride, expansion, channels in _STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(width, channels, kernel, 1 if number else stride, expansion))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = SameConv(width, FEATURES, 1)
        self.bn1 = _norm(FEATURES)

    def forward(self, pixels: Tensor) -> Tensor:
        """The mean over positions behind the last convolution."""
        states = F.relu6(self.bn0(self.conv_stem(pixels)))
        for block in self.blocks:
            states = block(states)
        return F.relu6(self.bn1(self.conv_head(states))).mean((2, 3))


class InvertedResidual(nn.Module):
    """Widened, convolved channel by channel and narrowed again (Sandler et al. 2018)."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and width == channels
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
