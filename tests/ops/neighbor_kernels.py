"""The CUDA kernels on every point's neighbours, called one by one, with a guard zone before and
behind each array that they write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray

GUARD = 64  # elements
MOST_NEIGHBORS = 1024
SENTINELS = {torch.int32: -77, torch.uint8: 0xA5}


@dataclass(frozen=True)
class Guarded:
    """An array on the device of the tests, with a guard zone around it.

    Attributes:
        whole: With the zones; all of it is the sentinel at first, NaN for floats.
        shape: Of the array.
    """

    whole: torch.Tensor
    shape: tuple[int, ...]

    @classmethod
    def make(cls, shape: tuple[int, ...], dtype: torch.dtype) -> Guarded:
        size = math.prod(shape) + 2 * GUARD
        value = SENTINELS.get(dtype, math.nan)
        return cls(torch.full((size,), value, dtype=dtype, device=TEST_DEVICE), shape)

    @classmethod
    def of(cls, array: NDArray[Any]) -> Guarded:
        made = cls.make(array.shape, torch.from_numpy(array).dtype)
        made.whole[GUARD:-GUARD] = to_device(array.ravel())
        return made

    @property
    def pointer(self) -> int:
        return self.whole[GUARD:].data_ptr()

    def read(self) -> NDArray[Any]:
        """The array on the host; nothing was written beside it."""
        host = self.whole.cpu().numpy()
        for zone in (host[:GUARD], host[-GUARD:]):
            value = SENTINELS.get(self.whole.dtype, math.nan)
            np.testing.assert_array_equal(zone, np.full_like(zone, value))
        return host[GUARD:-GUARD].reshape(self.shape)


@dataclass(frozen=True)
class Neighbors:
    """What the search wrote: indices and squared_distances (N, K), counts (N,)."""

    indices: Guarded
    squared_distances: Guarded
    counts: Guarded

    def rows(self, kernels: ModuleType, k: int | None, radius: float) -> Any:
        """What a kernel reads of them, for as long as they are there."""
        return kernels.NeighborRows(
            indices=self.indices.pointer,
            squared_distances=self.squared_distances.pointer,
            counts=self.counts.pointer,
            row_length=self.indices.shape[1],
            max_neighbors=MOST_NEIGHBORS if k is None else k,
            squared_radius=radius * radius,
        )

    def within(
        self, k: int | None = None, radius: float = math.inf
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """indices (N, K) and counts (N,) of a smaller search, for the reference."""
        indices, squared = self.indices.read()[:, :k], self.squared_distances.read()[:, :k]
        is_within = squared < np.float32(radius * radius)
        return np.where(is_within, indices, -1), is_within.sum(axis=1, dtype=np.int32)


def to_device(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(TEST_DEVICE)


def find_neighbors(
    kernels: ModuleType, points: NDArray[np.float32], k: int, radius: float = math.inf
) -> Neighbors:
    """The K nearest of every point that are nearer than the radius."""
    count = len(points)
    found = Neighbors(
        Guarded.make((count, k), torch.int32),
        Guarded.make((count, k), torch.float32),
        Guarded.make((count,), torch.int32),
    )
    size = kernels.knn_grouping_workspace(count, count, k)
    workspace = Guarded.make((size // 4,), torch.float32)
    cloud = to_device(points)
    kernels.point_neighbors(
        0,
        cloud.data_ptr(),
        count,
        k,
        radius * radius,
        found.indices.pointer,
        found.squared_distances.pointer,
        found.counts.pointer,
        workspace.pointer,
        0,
    )
    workspace.read()
    return found


def fit_normals(
    kernels: ModuleType,
    points: NDArray[np.float32],
    neighbors: Neighbors,
    orientation: str,
    *,
    k: int | None = None,
    radius: float = math.inf,
    dtype: torch.dtype = torch.float64,
) -> NDArray[Any]:
    """normals (N, 3) of the kernel, of the first K and nearer ones of the neighbours."""
    normals = Guarded.make((len(points), 3), dtype)
    cloud = to_device(points)
    kernels.surface_normals(
        0,
        cloud.data_ptr(),
        len(points),
        neighbors.rows(kernels, k, radius),
        orientation == "camera",
        dtype == torch.float64,
        normals.pointer,
        0,
    )
    return normals.read()


def fpfh_features(
    kernels: ModuleType,
    points: NDArray[np.float32],
    normals: NDArray[Any],
    neighbors: Neighbors,
    *,
    k: int | None = None,
    radius: float = math.inf,
) -> NDArray[np.float32]:
    """features (N, 33) of the kernels, of the first K and nearer ones of the neighbours."""
    count = len(points)
    features = Guarded.make((count, 33), torch.float32)
    workspace = Guarded.make((kernels.fpfh_workspace(count),), torch.uint8)
    cloud, directions = to_device(points), to_device(normals)
    kernels.fpfh(
        0,
        cloud.data_ptr(),
        directions.data_ptr(),
        normals.dtype == np.float64,
        count,
        neighbors.rows(kernels, k, radius),
        features.pointer,
        workspace.pointer,
        0,
    )
    workspace.read()
    return features.read()
