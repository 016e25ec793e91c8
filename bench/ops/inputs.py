"""Inputs of the ops that their tests and benchmarks share. Procedural and seeded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.pixel_mapping import MappingNetwork
from mmad_fast.ops.sparse_rows import SparseRows

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """The foreground of an organised depth frame, as preprocessing delivers it.

    Attributes:
        points: (N, 3) float32 metres, row-major by pixel.
        pixel_indices: (N,) int64 on the grid.
        grid_size: S.
    """

    points: NDArray[np.float32]
    pixel_indices: NDArray[np.int64]
    grid_size: int


def depth_frame(grid_size: int = 224, *, coverage: float = 0.28, seed: int = 0) -> Frame:
    """A bumpy, lobed object seen by a pinhole camera at 0.5 m, with noise, holes and a ragged rim.

    `coverage` is roughly the object's share of the frame; 0.28 of 224 x 224 is about 14k points.
    """
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:grid_size, :grid_size].astype(np.float64) + 0.5
    x, y = u / grid_size - 0.5, v / grid_size - 0.5
    angle = np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)
    rim = np.sqrt(coverage / np.pi) * (1 + 0.15 * np.sin(3 * angle) + 0.05 * np.sin(11 * angle))
    radius = np.hypot(x, y) / rim
    height = 0.03 * np.sqrt(np.clip(1 - radius**2, 0, None)) + 0.002 * np.sin(90 * x) * np.cos(
        70 * y
    )
    z = 0.5 - height + rng.normal(0, 5e-5, x.shape)
    is_object = radius + rng.normal(0, 0.02, x.shape) < 1
    is_object &= rng.uniform(size=x.shape) > 0.01  # missing pixels
    for hole in rng.uniform(-0.2, 0.2, (4, 2)):
        is_object &= np.hypot(x - hole[0], y - hole[1]) > 0.02
    xyz = np.stack([x * z * 0.4, y * z * 0.4, z], axis=-1).astype(np.float32).reshape(-1, 3)
    pixel_indices = np.flatnonzero(is_object).astype(np.int64)
    return Frame(np.ascontiguousarray(xyz[pixel_indices]), pixel_indices, grid_size)


def uniform_cloud(num_points: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(N, 3) uniform in a cube of 0.2 m around (0, 0, 0.5)."""
    rng = np.random.default_rng(seed)
    return rng.uniform((-0.1, -0.1, 0.4), (0.1, 0.1, 0.6), (num_points, 3)).astype(np.float32)


def surface_groups(num_groups: int, group_size: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(G, K, 3) metres: neighbourhoods on the depth frame, as a detector gets them."""
    points = depth_frame(seed=seed).points
    return knn_grouping(points, farthest_point_sampling(points, num_groups), group_size).groups


def queries_and_bank(
    num_queries: int, num_bank_rows: int, num_channels: int, *, seed: int = 0, offset: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries (Q, C) and bank (M, C) float32 in clusters, as features of similar parts are."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((max(1, num_bank_rows // 100), num_channels)) + offset

    def draw(count: int) -> NDArray[np.float32]:
        noise = 0.5 * rng.standard_normal((count, num_channels))
        return (centers[rng.integers(0, len(centers), count)] + noise).astype(np.float32)

    return draw(num_queries), draw(num_bank_rows)


def low_rank_queries_and_bank(
    num_queries: int, num_bank_rows: int, num_channels: int, *, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Queries (Q, C) and bank (M, C) float32 whose variance falls with the direction and which have
    a common offset, as those of a network's features do."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.standard_normal((num_channels, num_channels)))
    deviations = 10 / np.arange(1, num_channels + 1) ** 1.5
    rows = rng.standard_normal((num_queries + num_bank_rows, num_channels)) * deviations
    rows = (rows @ directions.T + 3).astype(np.float32)
    return rows[:num_queries], rows[num_queries:]


def mapping_network(sizes: tuple[int, ...], *, seed: int = 0) -> MappingNetwork:
    """Random layers whose activations keep their scale."""
    rng = np.random.default_rng(seed)
    pairs = list(pairwise(sizes))
    return MappingNetwork(
        tuple((rng.standard_normal((o, i)) / np.sqrt(i)).astype(np.float32) for i, o in pairs),
        tuple((0.3 * rng.standard_normal(o)).astype(np.float32) for _, o in pairs),
    )


@dataclass(frozen=True)
class MappingCase:
    """The arguments of one pixel_mapping call."""

    source_features: NDArray[np.float32]
    source_rows: SparseRows
    target_features: NDArray[np.float32]
    target_rows: SparseRows
    network: MappingNetwork

    @property
    def arguments(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))
