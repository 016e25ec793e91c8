"""From feature maps and points' histograms to the patches of a scan. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.methods.btf.options import PATCH_GRID, BtfOptions
from mmad_fast.scan import PreparedScan

SMOOTHING = 3
"""Side of the average before the pooling, without padding."""


@dataclass(frozen=True)
class Patches:
    """The features of a scan's patches, equal ones once. On a CUDA device the rows are a tensor.

    Attributes:
        rows: (Q, C) of the options' patch_dtype: RGB features, then histograms; raw.
        owner: (L,) int64: patch l of the row-major grid has the features of row owner[l].
    """

    rows: NDArray
    owner: NDArray[np.int64]


@cache
def pooling_shares(size: int) -> NDArray[np.float64]:
    """(PATCH_GRID, size): along one axis of `size` pixels the share of each in each patch.

    The published code averages 3 x 3 without padding, and averages adaptively to the grid of
    patches: both act on each axis alone.

    Source: method facts 4 and 9.1.
    """
    smoothed = size - SMOOTHING + 1
    shares = np.zeros((PATCH_GRID, size))
    for patch in range(PATCH_GRID):
        first, end = patch * smoothed // PATCH_GRID, -(-(patch + 1) * smoothed // PATCH_GRID)
        for start in range(first, end):
            shares[patch, start : start + SMOOTHING] += 1 / (SMOOTHING * (end - first))
    shares.flags.writeable = False
    return shares


def pool_maps(maps: Sequence[NDArray[np.float32]], *, dtype: str) -> NDArray:
    """(PATCH_GRID ** 2, C) the maps (C_i, H_i, W_i) pooled, their channels side by side."""
    pooled = []
    for feature_map in maps:
        rows, columns = (pooling_shares(size).astype(dtype) for size in feature_map.shape[1:])
        pooled.append(rows @ (feature_map.astype(dtype, copy=False) @ columns.T))  # (C_i, 28, 28)
    return np.ascontiguousarray(np.concatenate(pooled).reshape(-1, PATCH_GRID**2).T)


def reached_patches(pixel_indices: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """(PATCH_GRID, PATCH_GRID): the patches that average a point of a grid of `size` pixels a side;
    the histogram of the others is 0."""
    is_point = np.zeros((size, size), bool)
    is_point.ravel()[pixel_indices] = True
    is_used = pooling_shares(size) > 0
    first, last = is_used.argmax(axis=1), size - 1 - is_used[:, ::-1].argmax(axis=1)
    for _ in range(2):  # rows, then columns
        before = np.zeros((size + 1, is_point.shape[1]), np.int32)
        np.cumsum(is_point, axis=0, out=before[1:])
        is_point = (before[last + 1] > before[first]).T
    return is_point


def pool_points(
    descriptors: NDArray[np.float32], pixel_indices: NDArray[np.int64], size: int, *, dtype: str
) -> NDArray:
    """(PATCH_GRID ** 2, C) the descriptors (N, C) of points, written into a grid of zeros and
    pooled.

    Args:
        descriptors: Of the points, at least one.
        pixel_indices: (N,) row-major pixel of each point.
        size: Side of the grid in pixels.
        dtype: Of the result.
    """
    rows, columns = np.divmod(pixel_indices, size)
    top, left = rows.min(), columns.min()
    height, width = rows.max() + 1 - top, columns.max() + 1 - left
    grid = np.zeros((height, width, descriptors.shape[1]), dtype)
    grid[rows - top, columns - left] = descriptors
    shares = pooling_shares(size).astype(dtype)
    # Many small products: one large one would wake NumPy's own threads, which cost more.
    by_column = shares[:, left : left + width] @ grid  # (H, 28, C)
    pooled: NDArray = shares[:, top : top + height] @ by_column.swapaxes(0, 1)  # (28, 28, C)
    return pooled.swapaxes(0, 1).reshape(PATCH_GRID**2, -1)


class DistinctPatches(NamedTuple):
    """Which patches have a row of their own.

    Attributes:
        patches: (P,) int64, row-major.
        has_background: The others share one row of zeros, the last.
        owner: (L,) int64, as in Patches.
    """

    patches: NDArray[np.int64]
    has_background: bool
    owner: NDArray[np.int64]


def distinct_patches(prepared: PreparedScan, options: BtfOptions) -> DistinctPatches:
    """All patches, or without RGB features those that points are averaged in."""
    everywhere = np.arange(PATCH_GRID**2)
    if options.reads_rgb:
        return DistinctPatches(everywhere, False, everywhere)
    patches = np.flatnonzero(reached_patches(prepared.pixel_indices, prepared.grid_size))
    owner = np.full(len(everywhere), len(patches))
    owner[patches] = np.arange(len(patches))
    return DistinctPatches(patches, len(patches) < len(everywhere), owner)
