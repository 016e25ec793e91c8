"""The branch's network in torch, for its graph and for references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmad_fast.backbones import build_cnn_backbone
from mmad_fast.methods.branches.cnn_pyramid.options import CnnPyramidOptions

if TYPE_CHECKING:
    from mmad_fast.backbones.convolutional import ConvolutionalNetwork


def build_network(
    options: CnnPyramidOptions, *, weights: str | Path, seed: int
) -> ConvolutionalNetwork:
    """The convolutional network that the options name.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """
    return build_cnn_backbone(
        options.rgb_backbone,
        outputs=options.rgb_outputs,
        weights=weights,
        image_size=options.rgb_size,
        seed=seed,
    )
