"""EfficientNet-B5 with the layout and key names of efficientnet_pytorch.

Convolutions are padded as for an input of 456 pixels, the size that B5 was trained at, whatever
the input is: efficientnet_pytorch computes the padding once, when a network is made. At 768 pixels
this is another padding than TensorFlow's "same", and other features.

Source: method facts 9.2; efficientnet_pytorch 0.7.1. Older versions take 456 as the input of every
layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.backbones.convolutional import ConvolutionalNetwork
from mmad_fast.backbones.table import EFFICIENTNET_B5_STAGES, CnnSpec

NOMINAL_SIZE = 456
STEM_CHANNELS = 48
NORM_EPS = 1e-3
SQUEEZE = 4
"""Channels of a block's input per channel of its squeezed vector."""

RESIDUAL_GAIN = 0.7
"""Initial factor of what a residual block adds: with 1 the maps of random networks reach 1e4 in
block 35, where rounding is no longer small."""


class SameConv2d(nn.Conv2d):
    """A convolution without bias, padded so that an input of `size` pixels a side gives
    ceil(size / stride); an odd pixel goes to the right and bottom."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        *,
        size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        output_size = -(-size // stride)
        pad = max((output_size - 1) * stride + kernel_size - size, 0)
        super().__init__(
            in_channels,
            channels,
            kernel_size,
            stride,
            padding=pad // 2,
            groups=groups,
            bias=False,
        )
        self.has_odd_pixel = pad % 2 == 1

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H', W') of features (B, C', H, W)."""
        if not self.has_odd_pixel:
            return super().forward(features)
        near = int(self.padding[0])
        padded = F.pad(features, (near, near + 1, near, near + 1))
        return F.conv2d(padded, self.weight, None, self.stride, 0, self.dilation, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPS)


class MBConvBlock(nn.Module):
    """An inverted residual block with squeeze and excitation."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        kernel_size: int,
        stride: int,
        expansion: int,
        size: int,
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.is_residual = stride == 1 and in_channels == channels
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, width, 1, size=size)
            self._bn0 = _norm(width)
        self._depthwise_conv = SameConv2d(
            width, width, kernel_size, size=size, stride=stride, groups=width
        )
        self._bn1 = _norm(width)
        num_squeezed = max(1, in_channels // SQUEEZE)
        self._se_reduce = nn.Conv2d(width, num_squeezed, 1)
        self._se_expand = nn.Conv2d(num_squeezed, width, 1)
        self._project_conv = SameConv2d(width, channels, 1, size=size)
        self._bn2 = _norm(channels)
        if self.is_residual:
            nn.init.constant_(self._bn2.weight, RESIDUAL_GAIN)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H / stride, W / stride) of features (B, C', H, W)."""
        hidden = features
        if self.expands:
            hidden = F.silu(self._bn0(self._expand_conv(hidden)))
        hidden = F.silu(self._bn1(self._depthwise_conv(hidden)))
        squeezed = F.silu(self._se_reduce(hidden.mean(dim=(2, 3), keepdim=True)))  # (B, S, 1, 1)
        hidden = self._se_expand(squeezed).sigmoid() * hidden
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + features if self.is_residual else hidden


class EfficientNet(ConvolutionalNetwork):
    """EfficientNet-B5, cut after a block; see ConvolutionalNetwork."""

    CUT_PATTERN = r"_blocks\.(\d+)\."
    IGNORED_PREFIXES = ("_conv_head.", "_bn1.", "_fc.")

    def __init__(self, spec: CnnSpec, *, outputs: Sequence[int], image_size: int) -> None:
        super().__init__(spec, outputs=outputs, image_size=image_size)
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, size=NOMINAL_SIZE, stride=2)
        self._bn0 = _norm(STEM_CHANNELS)
        self._blocks = nn.ModuleList()
        in_channels, size = STEM_CHANNELS, -(-NOMINAL_SIZE // 2)
        for stage in EFFICIENTNET_B5_STAGES:
            for index in range(stage.num_blocks):
                if len(self._blocks) > max(outputs):
                    return
                stride = stage.stride if index == 0 else 1
                block = MBConvBlock(
                    in_channels,
                    stage.channels,
                    kernel_size=stage.kernel_size,
                    stride=stride,
                    expansion=stage.expansion,
                    size=size,
                )
                self._blocks.append(block)
                in_channels, size = stage.channels, -(-size // stride)

    def parts(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See ConvolutionalNetwork."""
        features = F.silu(self._bn0(self._conv_stem(image)))
        for index, block in enumerate(self._blocks):
            features = block(features)
            yield index, features
