"""Weights and groups that the tests and the benchmark of point_embedding share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ops.cases import depth_frame

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import EmbedderWeights
from mmad_fast.ops.point_embedding.weights import NORM_NAMES, SHAPES


def embedder_weights(*, uses_cloud_statistics: bool, seed: int = 0) -> EmbedderWeights:
    """Random layers, in which every array matters, for groups of some millimetres."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in SHAPES.items():
        if name in NORM_NAMES and not uses_cloud_statistics:
            continue
        array = rng.standard_normal(shape) / np.sqrt(shape[-1] if len(shape) > 1 else 25)
        arrays[name] = (array + (name.endswith("norm_weight"))).astype(np.float32)
    if not uses_cloud_statistics:
        arrays["first_weight"] *= 100
    return EmbedderWeights(**arrays)


def surface_groups(num_groups: int, group_size: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(G, K, 3) metres: neighbourhoods on the depth frame, as a detector gets them."""
    points = depth_frame(seed=seed).points
    return knn_grouping(points, farthest_point_sampling(points, num_groups), group_size).groups


def random_groups(num_groups: int, group_size: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(G, K, 3) metres: groups of different sizes and offsets."""
    rng = np.random.default_rng(seed)
    stretch = rng.uniform(0.001, 0.006, (num_groups, 1, 3))
    groups = (rng.standard_normal((num_groups, group_size, 3)) + 0.5) * stretch
    return groups.astype(np.float32)
