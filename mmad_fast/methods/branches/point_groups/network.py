"""The branch's network in torch, for its graph and for references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmad_fast.backbones import build_point_backbone
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions

if TYPE_CHECKING:
    from mmad_fast.backbones.point_mae import PointMae


def build_network(options: PointGroupOptions, *, weights: str | Path, seed: int) -> PointMae:
    """Point-MAE as the options say; with batch_norm="calibrated" not yet calibrated.

    Raises:
        InvalidInputError: it has no such blocks.
        WeightsError: the weights cannot be had or do not fit.
    """
    return build_point_backbone(
        layers=options.point_layers, weights=weights, batch_norm=options.batch_norm, seed=seed
    )
