"""Weights and groups that the tests of point_embedding share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ops.inputs import surface_groups as surface_groups

from mmad_fast.ops.point_embedding import EmbedderWeights, reference
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


def random_groups(num_groups: int, group_size: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(G, K, 3) metres: groups of different sizes and offsets."""
    rng = np.random.default_rng(seed)
    stretch = rng.uniform(0.001, 0.006, (num_groups, 1, 3))
    groups = (rng.standard_normal((num_groups, group_size, 3)) + 0.5) * stretch
    return groups.astype(np.float32)


def plain_float32(groups: NDArray[np.float32], embedder: EmbedderWeights) -> NDArray[np.float32]:
    """What one would write in NumPy with float32 arrays."""

    def normed(x: NDArray, weight: NDArray | None, bias: NDArray | None) -> NDArray:
        if weight is None:
            return x
        mean, variance = x.mean(0), x.var(0)
        return (x - mean) / np.sqrt(variance + np.float32(1e-5)) * weight + bias

    shape = (*groups.shape[:2], -1)
    hidden = groups.reshape(-1, 3) @ embedder.first_weight.T + embedder.first_bias
    hidden = np.maximum(normed(hidden, embedder.first_norm_weight, embedder.first_norm_bias), 0)
    summary = (hidden @ embedder.wide_weight.T).reshape(shape).max(1)
    half = summary @ embedder.group_weight.T + embedder.group_bias
    wide = hidden @ embedder.local_weight.T + np.repeat(half, groups.shape[1], axis=0)
    wide = np.maximum(normed(wide, embedder.second_norm_weight, embedder.second_norm_bias), 0)
    return (wide @ embedder.final_weight.T).reshape(shape).max(1) + embedder.final_bias


def assert_no_worse_than_plain(
    found: NDArray[np.float32], groups: NDArray[np.float32], embedder: EmbedderWeights
) -> None:
    expected = reference.point_embedding(groups, embedder)
    plain = np.abs(plain_float32(groups, embedder) - expected).max()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2 * plain + 1e-6 * np.abs(expected).max()
