"""What the students of RD4AD, MMRD and TRD are made of: one-class bottleneck and decoder.

Everything follows from the shapes of the teacher's maps: with those of WideResNet50-2 the networks
are the published ones, under their published keys; between maps of one size, as a vision
transformer's, nothing is reduced or enlarged.

Source: method facts 8.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmad_fast.backbones.wide_resnet import Bottleneck

Shapes = Sequence[tuple[int, int, int]]
"""(C, H, W) of the teacher's maps, shallow to deep."""

STAGE_BLOCKS = (3, 4, 6)
"""Residual blocks of the decoder's stages, deep to shallow."""

TRANSFORMER_STAGE_BLOCKS = (1, 1, 1)
"""Of the decoder that restores a vision transformer's maps; ours. All three are 28 x 28, where the
published numbers cost half as much again per pass of the training."""

BOTTLENECK_BLOCKS = 3


class DecoderBlock(nn.Module):
    """A residual block of the decoder: it enlarges by 2, or keeps the size."""

    def __init__(
        self, in_channels: int, width: int, channels: int, scale: int, *, is_signed: bool = False
    ) -> None:
        """Takes the channels, the factor of the size, and whether the result may be negative."""
        super().__init__()
        self.is_signed = is_signed
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False)
            if scale == 1
            else nn.ConvTranspose2d(width, width, scale, scale, bias=False)
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.upsample: nn.Module = nn.Identity()
        if scale != 1 or in_channels != channels:
            self.upsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False)
                if scale == 1
                else nn.ConvTranspose2d(in_channels, channels, scale, scale, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, scale H, scale W) of features (B, C', H, W)."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        restored = self.bn3(self.conv3(hidden)) + self.upsample(features)
        return restored if self.is_signed else F.relu(restored)


class OneClassBottleneck(nn.Module):
    """The three maps of the teacher as one small map, which keeps what nominal scans have."""

    def __init__(self, shapes: Shapes, *, student_width: float = 1.0) -> None:
        """Takes the teacher's shapes and the share of the published inner widths."""
        super().__init__()
        (first, *_), (second, *_), (third, *_) = shapes
        inner_second, inner = scaled(second, student_width), scaled(third, student_width)
        to_second, to_third = ratios(shapes)
        self.conv1 = nn.Conv2d(first, inner_second, 3, to_second, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_second)
        self.conv2 = nn.Conv2d(inner_second, inner, 3, to_third, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(second, inner, 3, to_third, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner)
        self.bn_layer = embedding_layers(2 * inner + third, inner)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """(B, 2 C3, H3 / 2, W3 / 2) of the teacher's maps."""
        first = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(levels[0]))))))
        second = F.relu(self.bn3(self.conv3(levels[1])))
        embedding: Tensor = self.bn_layer(torch.cat([first, second, levels[2]], dim=1))
        return embedding


class Decoder(nn.Module):
    """Three stages, of which each restores a map of the teacher, deep to shallow."""

    def __init__(
        self,
        shapes: Shapes,
        *,
        extra_channels: Sequence[int] = (0, 0),
        student_width: float = 1.0,
        is_signed: bool = False,
    ) -> None:
        """Takes the teacher's shapes, how many channels the second and the third stage read beside
        the map before, the share of the published inner widths, and whether the teacher's maps may
        be negative, as a vision transformer's: then the stages' results may be, too."""
        super().__init__()
        (first, *_), (second, *_), (third, *_) = shapes
        to_second, to_third = ratios(shapes)
        stage_blocks = TRANSFORMER_STAGE_BLOCKS if is_signed else STAGE_BLOCKS
        embedding = 2 * scaled(third, student_width)
        stages = (
            (embedding, third, 2),
            (third + extra_channels[0], second, to_third),
            (second + extra_channels[1], first, to_second),
        )
        for number, ((reads, channels, scale), blocks) in enumerate(
            zip(stages, stage_blocks, strict=True), start=1
        ):
            width = scaled(channels // 2, student_width)
            layers = [DecoderBlock(reads, width, channels, scale)]
            layers += [DecoderBlock(channels, width, channels, 1) for _ in range(blocks - 1)]
            layers[-1].is_signed = is_signed
            self.add_module(f"layer{number}", nn.Sequential(*layers))

    def stage(self, number: int, features: Tensor) -> Tensor:
        """What a stage, 1 to 3, makes of features."""
        restored: Tensor = self.get_submodule(f"layer{number}")(features)
        return restored

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """The restored maps, shallow to deep, of an embedding (B, 2 C3, H3 / 2, W3 / 2)."""
        third = self.stage(1, embedding)
        second = self.stage(2, third)
        return self.stage(3, second), second, third


def embedding_layers(in_channels: int, inner: int) -> nn.Sequential:
    """The residual blocks of the bottleneck: (B, in_channels, H, W) to (B, 2 inner, H/2, W/2)."""
    blocks = [Bottleneck(in_channels, 2 * inner, stride=2)]
    blocks += [Bottleneck(2 * inner, 2 * inner, stride=1) for _ in range(BOTTLENECK_BLOCKS - 1)]
    return nn.Sequential(*blocks)


def ratios(shapes: Shapes) -> tuple[int, int]:
    """How much larger the first map is than the second, and the second than the third."""
    first, second, third = (height for _, height, _ in shapes)
    return first // second, second // third


def scaled(channels: int, share: float) -> int:
    """A share of channels, at least 1."""
    return max(1, round(channels * share))


def initialise(network: nn.Module) -> None:
    """The published initial values: He's for convolutions, by their outputs; those of torch for
    transposed convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def flattened_distance(targets: Sequence[Tensor], restored: Sequence[Tensor]) -> Tensor:
    """() sum over the levels of 1 - the cosine of whole maps, mean over the batch; float32.

    Source: MMRD eq. 1; method facts 8.1.
    """
    distances = [
        1 - F.cosine_similarity(target.float().flatten(1), found.float().flatten(1))
        for target, found in zip(targets, restored, strict=True)
    ]
    return torch.stack([distance.mean() for distance in distances]).sum()
