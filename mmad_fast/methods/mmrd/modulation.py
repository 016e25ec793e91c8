"""How the teacher's maps of several modalities become one: MMRD eq. 2 and 3, and what its Table 2e
compares them with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

VARIANCE_OFFSET = 1e-4


class ChannelAttention(nn.Module):
    """A weight per channel from the means of all channels: squeeze and excitation."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, 1, 1), 0-1, of features (B, C, H, W)."""
        means = features.mean(dim=(2, 3), keepdim=True)
        return torch.sigmoid(self.expand(torch.relu(self.reduce(means))))


class Modulation(nn.Module):
    """One level's fusion. Only "se" has weights to learn."""

    def __init__(self, fusion: str, channels: int, *, reduction: int = 16) -> None:
        """Takes options.fusion, the channels of the maps and the reduction of "se"."""
        super().__init__()
        self.fusion = fusion
        self.excitation = ChannelAttention(channels, reduction) if fusion == "se" else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """F^T (B, C, H, W) of the modalities' maps, RGB's first; one modality is its own target.

        Of several auxiliary modalities each is added with its weight; where the weight comes from
        the sum, from the sum of all. Ours: the paper leaves this to its supplement.
        """
        rgb, auxiliary = maps[0], maps[1:]
        if self.fusion in ("csa", "ssa"):
            attention = channel_attention if self.fusion == "csa" else spatial_attention
            return sum((attention(rgb, one) for one in auxiliary), start=rgb)
        together = sum(auxiliary, start=rgb)
        return sum((self._weight(one, together) * one for one in auxiliary), start=rgb)

    def _weight(self, auxiliary: Tensor, together: Tensor) -> Tensor | float:
        if self.excitation is not None:
            weight: Tensor = self.excitation(together)
            return weight
        if self.fusion == "constant":
            return 1.0
        return fusion_weight(auxiliary if self.fusion == "auxiliary" else together)


def fusion_weight(features: Tensor) -> Tensor:
    """alpha (B, C, H, W), from 0.5 up to 1, of features (B, C, H, W).

    Source: MMRD eq. 2. The paper says 0 to 1; the sigmoid of a square is at least 0.5.
    """
    deviation = features - features.mean(dim=(2, 3), keepdim=True)
    square = deviation.square()
    variance = square.mean(dim=(2, 3), keepdim=True)
    return torch.sigmoid(square / (variance + VARIANCE_OFFSET))


def channel_attention(rgb: Tensor, auxiliary: Tensor) -> Tensor:
    """(B, C, H, W) auxiliary maps, of each channel those that RGB's channel is like: "CSA", without
    weights to learn."""
    queries, keys = rgb.flatten(2), auxiliary.flatten(2)  # (B, C, HW)
    # Scaled before the product, whose sum may be beyond float16.
    queries = queries / math.sqrt(keys.shape[-1])
    weights = torch.softmax(queries @ keys.mT, dim=-1)  # (B, C, C)
    return (weights @ keys).reshape(rgb.shape)


def spatial_attention(rgb: Tensor, auxiliary: Tensor) -> Tensor:
    """(B, C, H, W) auxiliary maps, at each place those that RGB's place is like: "SSA", without
    weights to learn."""
    queries, keys = rgb.flatten(2), auxiliary.flatten(2)  # (B, C, HW)
    queries = queries / math.sqrt(keys.shape[1])
    weights = torch.softmax(queries.mT @ keys, dim=-1)  # (B, HW, HW)
    return (keys @ weights.mT).reshape(rgb.shape)
