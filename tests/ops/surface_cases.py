"""What Open3D says of a cloud, real surfaces to ask it about, and where its answer hangs on
rounding."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import depth_frame, uniform_cloud

from mmad_fast.errors import MissingDependencyError
from mmad_fast.ops.fpfh.reference import BINS, bin_positions, features_of
from mmad_fast.ops.point_neighbors import PointNeighbors, find_neighbors
from mmad_fast.ops.surface_normals.reference import covariances
from mmad_fast.preprocess.reference import import_open3d

SHARED = Path(os.environ.get("MMAD_FAST_SHARED", Path(__file__).parents[2] / ".." / "shared"))
FRAMES = ("bottles", "laptop_0", "laptop_1", "laptop_2", "office")
CATEGORIES = ("cookie", "gear", "potato")
SYNTHETIC = ("frame", "noise")
SURFACES = (*SYNTHETIC, *FRAMES, *CATEGORIES)
MAX_POINTS = 6000
RELATIVE_TIE = 1e-6  # of float32 distances
ROUNDING = 1e-9  # of float64 angles and cosines

Points = NDArray[np.float32]
Doubles = NDArray[np.float64]


def open3d() -> ModuleType:
    try:
        return import_open3d()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@cache
def surface(name: str) -> Points:
    """(N, 3) float32 metres; skips where the scan is not there."""
    if name == "frame":
        return depth_frame(150, seed=4).points
    if name == "noise":
        return uniform_cloud(4000, seed=5)
    tifffile = pytest.importorskip("tifffile")
    data = SHARED / "data"
    folder = data / "real_frames" if name in FRAMES else data / "rendered3d" / name
    paths = sorted(folder.glob(f"{name}.tiff" if name in FRAMES else "*/*/xyz/*.tiff"))
    if not paths:
        pytest.skip(f"no scans at {folder} (set MMAD_FAST_SHARED)")
    xyz = tifffile.imread(paths[0])
    valid = xyz.reshape(-1, 3)
    valid = valid[np.isfinite(valid).all(axis=1) & (valid != 0).any(axis=1)]
    stride = int(np.ceil(np.sqrt(len(valid) / MAX_POINTS)))
    points = xyz[::stride, ::stride].reshape(-1, 3)
    is_valid = np.isfinite(points).all(axis=1) & (points != 0).any(axis=1)
    return np.ascontiguousarray(points[is_valid], np.float32)


def size_of(points: Points) -> float:
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def open3d_normals(points: Points, max_neighbors: int, radius: float) -> Doubles:
    library = open3d()
    cloud = library.geometry.PointCloud(library.utility.Vector3dVector(points.astype(float)))
    cloud.estimate_normals(
        library.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=max_neighbors)
    )
    return np.asarray(cloud.normals).copy()


def open3d_fpfh(points: Points, normals: Doubles, max_neighbors: int, radius: float) -> Doubles:
    library = open3d()
    cloud = library.geometry.PointCloud(library.utility.Vector3dVector(points.astype(float)))
    cloud.normals = library.utility.Vector3dVector(normals)
    search = library.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=max_neighbors)
    found = library.pipelines.registration.compute_fpfh_feature(cloud, search)
    return np.asarray(found.data).T.copy()


def has_tied_neighbors(points: Points, max_neighbors: int, radius: float) -> NDArray[np.bool_]:
    """(N,) whether the last neighbour and the first that is none are equally near, or one is at the
    radius."""
    found = find_neighbors(points, max_neighbors + 1)
    squared = found.squared_distances
    wide = squared < np.float32(radius * radius * (1 + RELATIVE_TIE))
    narrow = squared < np.float32(radius * radius * (1 - RELATIVE_TIE))
    at_radius = (wide != narrow)[:, :max_neighbors].any(axis=1)
    if squared.shape[1] <= max_neighbors:
        return at_radius
    last, following = squared[:, max_neighbors - 1], squared[:, max_neighbors]
    return at_radius | (wide[:, -1] & (following - last <= RELATIVE_TIE * following))


def has_a_plane(points: Points, found: PointNeighbors) -> NDArray[np.bool_]:
    """(N,) whether the neighbours fix a plane, as far as float64 holds the coordinates' squares:
    they are not on a line, nor alike on all sides."""
    exact = points.astype(np.float64)
    values = np.linalg.eigvalsh(covariances(exact, found.indices, found.counts))
    return (found.counts >= 3) & (values[:, 1] - values[:, 0] > 1e-9 * (exact * exact).max())


def has_tied_bins(
    points: Points, normals: Doubles, max_neighbors: int, radius: float
) -> NDArray[np.bool_]:
    """(N,) whether a pair's feature is within rounding of a bin's edge, or of the choice of the
    pair's source where that changes a bin."""
    found = find_neighbors(points, max_neighbors, radius=radius)
    exact = points.astype(np.float64)
    is_tied = np.zeros(len(points), bool)
    for first in range(0, len(points), 1024):
        part = slice(first, first + 1024)
        indices = np.maximum(found.indices[part, 1:], 0)
        line = exact[indices] - exact[part, None]
        n = np.broadcast_to(normals[part, None], line.shape)
        m = normals[indices]
        length = np.sqrt((line * line).sum(axis=-1))
        length[length == 0] = 1
        at_n, at_m = np.abs((n * line).sum(-1)) / length, np.abs((m * line).sum(-1)) / length
        forward = BINS * bin_positions(features_of(line, n, m))
        backward = BINS * bin_positions(features_of(-line, m, n))
        positions = np.where((at_n < at_m)[..., None], backward, forward)
        inner = np.abs(positions - np.round(positions)) < ROUNDING
        inner[..., 1:] &= (np.round(positions[..., 1:]) % BINS) != 0  # cosines have no way around
        bins = [np.clip(np.floor(one), 0, BINS - 1) for one in (forward, backward)]
        is_choice = (np.abs(at_n - at_m) < ROUNDING) & (bins[0] != bins[1]).any(axis=-1)
        is_there = np.arange(1, found.indices.shape[1]) < found.counts[part, None]
        is_tied[part] = ((inner.any(axis=-1) | is_choice) & is_there).any(axis=1)
    return is_tied


def and_around(flags: NDArray[np.bool_], points: Points, max_neighbors: int) -> NDArray[np.bool_]:
    """(N,) whether a point or one of its neighbours has the flag."""
    found = find_neighbors(points, max_neighbors + 1)
    return flags[found.indices].any(axis=1)
