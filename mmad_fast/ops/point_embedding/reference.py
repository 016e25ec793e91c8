"""The mini-PointNet by definition: every layer for all points at once, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mmad_fast.ops.point_embedding.weights import EmbedderWeights

NORM_EPSILON = 1e-5


def point_embedding(groups: NDArray[np.float32], embedder: EmbedderWeights) -> NDArray[np.float32]:
    """tokens (G, 384) of groups (G, K, 3)."""
    per_group = (*groups.shape[:2], -1)
    points = float64(groups.reshape(-1, 3))  # (G * K, 3)
    hidden = points @ float64(embedder.first_weight).T + embedder.first_bias  # (G * K, 128)
    hidden = batch_norm(hidden, embedder.first_norm_weight, embedder.first_norm_bias)
    hidden = np.maximum(hidden, 0)
    local = hidden @ float64(embedder.wide_weight).T  # (G * K, 256)
    summary = local.reshape(per_group).max(axis=1)  # (G, 256)
    group_half = summary @ float64(embedder.group_weight).T + embedder.group_bias  # (G, 512)
    wide = hidden @ float64(embedder.local_weight).T  # (G * K, 512)
    wide += np.repeat(group_half, groups.shape[1], axis=0)
    wide = batch_norm(wide, embedder.second_norm_weight, embedder.second_norm_bias)
    wide = np.maximum(wide, 0) @ float64(embedder.final_weight).T  # (G * K, 384)
    tokens = wide.reshape(per_group).max(axis=1) + embedder.final_bias
    with np.errstate(over="ignore"):
        return tokens.astype(np.float32)


def batch_norm(
    activations: NDArray[np.float64],
    weight: NDArray[np.float32] | None,
    bias: NDArray[np.float32] | None,
) -> NDArray[np.float64]:
    """Normalised by mean and biased variance over all points; itself without weight and bias."""
    if weight is None or bias is None:
        return activations
    mean, variance = activations.mean(axis=0), activations.var(axis=0)
    return (activations - mean) / np.sqrt(variance + NORM_EPSILON) * weight + bias


def float64(array: NDArray[np.float32]) -> NDArray[np.float64]:
    return array.astype(np.float64)
