"""The hot paths: one package per op, each with a reference, its backends and its contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmad_fast.ops.registry import Op


def all_ops() -> tuple[Op, ...]:
    """Every op with its table of backends, in the order in which a scan meets them; last, what
    only the fit does."""
    from mmad_fast.ops import (
        farthest_point_sampling,
        inverse_distance_interpolation,
        k_center_greedy,
        knn_grouping,
        nearest_neighbor_scoring,
        pixel_mapping,
        point_embedding,
    )

    return (
        farthest_point_sampling.OP,
        knn_grouping.OP,
        point_embedding.OP,
        inverse_distance_interpolation.OP,
        nearest_neighbor_scoring.OP,
        pixel_mapping.OP,
        k_center_greedy.OP,
    )
