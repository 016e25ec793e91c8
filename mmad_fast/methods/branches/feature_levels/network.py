"""The branch's network in torch, for its graphs and for references."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmad_fast.backbones import build_cnn_backbone, build_rgb_backbone
from mmad_fast.errors import ArtifactError
from mmad_fast.methods.branches.feature_levels.options import FeatureLevelOptions

if TYPE_CHECKING:
    from mmad_fast.backbones.dino import VisionTransformer

STATISTICS = ("running_mean", "running_var")
"""Last word of the keys of BatchNorm statistics in a network's state."""


class ChannelStatistics(nn.BatchNorm2d):
    """A BatchNorm without weights, whose evaluation exports as a difference and a product: where no
    convolution is before it, no exporter merges it into one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) of maps (B, C, H, W)."""
        if self.training:
            return super().forward(maps)
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = torch.rsqrt(self.running_var + self.eps)
        return (maps - self.running_mean[:, None, None]) * scale[:, None, None]


class TransformerLevels(nn.Module):
    """A vision transformer's tokens after some blocks, as maps of one size.

    A modality can have statistics of its own here, too; as built they are 0 and 1, which leave the
    maps as they are.

    Attributes:
        name: The backbone's name.
        weights_source: Where its weights came from.
    """

    def __init__(self, transformer: VisionTransformer, blocks: Sequence[int]) -> None:
        """Takes the transformer, and the blocks' numbers, 1-based and ascending."""
        super().__init__()
        self.transformer = transformer
        self.blocks = tuple(blocks)
        self.statistics = nn.ModuleList(ChannelStatistics(transformer.dim) for _ in self.blocks)
        self.name = transformer.name
        self.weights_source = transformer.weights_source

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Per block the map (B, C, H, W) of an image (B, 3, R, R)."""
        side = self.transformer.token_grid
        levels = self.transformer.tokens_after(image, self.blocks)
        return tuple(
            norm(tokens.transpose(1, 2).unflatten(2, (side, side)))
            for norm, tokens in zip(self.statistics, levels, strict=True)
        )


def build_network(options: FeatureLevelOptions, *, weights: str | Path, seed: int) -> nn.Module:
    """The frozen network that the options name: image (B, 3, R, R) float32, normalised -> three
    maps (B, C, H, W) float32, shallow to deep. It has the attributes `name` and `weights_source`.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """
    if options.is_transformer:
        transformer = build_rgb_backbone(
            options.rgb_backbone,
            num_layers=options.levels[-1],
            weights=weights,
            image_size=options.rgb_size,
            seed=seed,
        )
        return TransformerLevels(transformer, options.levels).eval()
    return build_cnn_backbone(
        options.rgb_backbone,
        outputs=options.levels,
        weights=weights,
        image_size=options.rgb_size,
        seed=seed,
    )


def with_statistics(network: nn.Module, statistics: Mapping[str, NDArray]) -> nn.Module:
    """The network with other BatchNorm statistics; all its other weights are shared, not copied.

    Args:
        network: As built; it stays as it is.
        statistics: float32 by key of the network's state, all of them; empty for the network
            itself.

    Raises:
        ArtifactError: they are not those of the network.
    """
    if not statistics:
        return network
    wanted = {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if key.rpartition(".")[2] in STATISTICS
    }
    if {key: tuple(value.shape) for key, value in statistics.items()} != wanted:
        raise ArtifactError(
            f"the BatchNorm statistics are not those of {network.name}; fit the detector again"
        )
    shared = {id(parameter): parameter for parameter in network.parameters()}
    other = copy.deepcopy(network, shared)
    values = {key: torch.from_numpy(np.array(value)) for key, value in statistics.items()}
    other.load_state_dict(values, strict=False)
    return other
