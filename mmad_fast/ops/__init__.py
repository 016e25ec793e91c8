"""The hot paths: one package per op, each with a reference, its backends and its contract."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmad_fast.ops.registry import Op

STEMS = (
    "farthest_point_sampling",
    "knn_grouping",
    "surface_normals",
    "fpfh",
    "point_embedding",
    "inverse_distance_interpolation",
    "nearest_neighbor_scoring",
    "pixel_mapping",
    "cosine_maps",
    "k_center_greedy",
)
"""The ops in the order in which a scan meets them; last, what only the fit does."""


def all_ops() -> tuple[Op, ...]:
    """Every op with its table of backends, in the order of STEMS."""
    return tuple(import_module(f"mmad_fast.ops.{stem}.backends").OP for stem in STEMS)


def all_tables() -> tuple[Op, ...]:
    """Every table of backends, in the order of STEMS: an op has one per function with backends of
    its own."""
    from mmad_fast.ops.registry import Op

    return tuple(
        table
        for stem in STEMS
        for table in vars(import_module(f"mmad_fast.ops.{stem}.backends")).values()
        if isinstance(table, Op)
    )
