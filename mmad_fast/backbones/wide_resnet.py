"""WideResNet50-2 with the official key names, which are the same in torchvision and timm.

The stride of a block lies in its 3 x 3 convolution, as in both.

Source: method facts 9.1; Zagoruyko and Komodakis, Wide Residual Networks; torchvision's
wide_resnet50_2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.backbones.convolutional import ConvolutionalNetwork
from mmad_fast.backbones.table import CnnSpec

NUM_BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}
"""Blocks of each layer."""

STEM_CHANNELS = 64

RESIDUAL_GAIN = 0.2
"""Initial factor of what a block adds: with 1 the spread of random networks' maps would grow with
every block, to hundreds in layer 3."""


class Bottleneck(nn.Module):
    """A residual block, whose inner convolutions have half as many channels as its output, or a
    share of these."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, inner_width: float = 1.0
    ) -> None:
        super().__init__()
        width = max(1, round(channels // 2 * inner_width))
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H / stride, W / stride) of features (B, C', H, W)."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.downsample(features))


class WideResNet(ConvolutionalNetwork):
    """WideResNet50-2, cut after a layer; see ConvolutionalNetwork. A student that is to be like it
    may have a share of its inner widths."""

    CUT_PATTERN = r"layer(\d)\."
    IGNORED_PREFIXES = ("fc.",)

    def __init__(
        self,
        spec: CnnSpec,
        *,
        outputs: Sequence[int],
        image_size: int,
        inner_width: float = 1.0,
    ) -> None:
        super().__init__(spec, outputs=outputs, image_size=image_size)
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        in_channels = STEM_CHANNELS
        for layer in range(1, max(outputs) + 1):
            channels, stride = spec.maps[layer].channels, 1 if layer == 1 else 2
            blocks = [Bottleneck(in_channels, channels, stride, inner_width)]
            blocks += [
                Bottleneck(channels, channels, 1, inner_width) for _ in range(NUM_BLOCKS[layer] - 1)
            ]
            for block in blocks:
                nn.init.constant_(block.bn3.weight, RESIDUAL_GAIN)
            self.add_module(f"layer{layer}", nn.Sequential(*blocks))
            in_channels = channels

    def parts(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See ConvolutionalNetwork."""
        features = F.relu(self.bn1(self.conv1(image)))
        features = F.max_pool2d(features, kernel_size=3, stride=2, padding=1)
        for layer in range(1, max(self.outputs) + 1):
            features = self.get_submodule(f"layer{layer}")(features)
            yield layer, features
