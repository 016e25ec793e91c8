"""The discrepancy by definition: dense features, whole networks, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.sparse_rows import SparseRows

erf = np.vectorize(math.erf, otypes=[np.float64])


def pixel_mapping(
    source_features: NDArray[np.float32],
    source_rows: SparseRows,
    target_features: NDArray[np.float32],
    target_rows: SparseRows,
    weights: Sequence[NDArray[np.float32]],
    biases: Sequence[NDArray[np.float32]],
) -> NDArray[np.float32]:
    """psi (P,): distance between the normalised prediction and the normalised target."""
    activations = expand(source_rows, source_features)  # (P, Cs)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if layer > 0:
            activations = gelu(activations)
        activations = activations @ weight.astype(np.float64).T + bias
    target = expand(target_rows, target_features)  # (P, Ct)
    difference = normalize(activations) - normalize(target)
    return np.sqrt((difference**2).sum(axis=1)).astype(np.float32)


def expand(rows: SparseRows, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(P, C) float64: the dense features of all rows."""
    dense = np.zeros((rows.num_rows, features.shape[1]))
    for p in range(rows.num_rows):
        entries = slice(rows.offsets[p], rows.offsets[p + 1])
        dense[p] = rows.values[entries].astype(np.float64) @ features[rows.columns[entries]]
    return dense


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def normalize(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of unit length, as torch.nn.functional.normalize: x / max(|x|, 1e-12)."""
    return x / np.maximum(np.sqrt((x**2).sum(axis=1, keepdims=True)), 1e-12)
