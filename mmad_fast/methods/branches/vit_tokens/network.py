"""The branch's network in torch, for its graph and for references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmad_fast.backbones import build_rgb_backbone
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions

if TYPE_CHECKING:
    from mmad_fast.backbones.dino import VisionTransformer


def build_network(options: VitTokenOptions, *, weights: str | Path, seed: int) -> VisionTransformer:
    """The vision transformer that the options name.

    Raises:
        InvalidInputError: it has fewer blocks.
        WeightsError: the weights cannot be had or do not fit.
    """
    return build_rgb_backbone(
        options.rgb_backbone, num_layers=options.rgb_layers, weights=weights, seed=seed
    )
