"""Options of the branch; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmad_fast.methods.branches.branch import GraphOptions
from mmad_fast.methods.options import option

POINT_STATISTICS_PREFIX = "point_statistics."
"""Of the tensors that hold the point backbone's calibrated BatchNorm statistics."""

EMBEDDER_PREFIX = "embedder."
"""Of the tensors that hold the weights of the point embedder."""

MAX_GROUPS = 4096
"""Point groups per scan: the memory of Point-MAE's attention grows with their square."""

MAX_GROUP_SIZE = 1024
"""Points per group: with MAX_GROUPS the groups take 50 MiB."""


@dataclass(frozen=True)
class PointGroupOptions(GraphOptions):
    """Which groups of points, and what of Point-MAE.

    Attributes:
        point_layers: 0-based Point-MAE blocks whose outputs are concatenated; blocks after the last
            are cut.
        num_groups: G, point groups per scan.
        group_size: K, points per group.
        batch_norm: Statistics of the point embedder's BatchNorm.
        skip_near_origin: Farthest point sampling skips points within 0.0316 m of the origin, as the
            published kernel does.
    """

    point_layers: tuple[int, ...] = option(
        (3, 7, 11),
        "0-based Point-MAE blocks whose outputs are used, e.g. 1,2,3.",
        minimum=0,
        in_rows=True,
    )
    num_groups: int = option(
        1024, "Point groups per scan.", minimum=1, maximum=MAX_GROUPS, in_rows=True
    )
    group_size: int = option(
        128, "Points per group: 128 as in the public code, 32 as in a paper.", minimum=1,
        maximum=MAX_GROUP_SIZE, in_rows=True,
    )  # fmt: skip
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = option(
        "cloud",
        "Statistics of Point-MAE's BatchNorm: the current cloud's, as published; the training "
        "clouds', which is faster; or the checkpoint's.",
        in_rows=True,
    )
    skip_near_origin: bool = option(
        False, "Sampling skips points within 0.0316 m of the origin, as the published kernel does."
    )
