"""The published preprocessing: Open3D and plain loops, seconds per scan. What the fast one is
compared with."""

from __future__ import annotations

import ctypes
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import MissingDependencyError

RIM_WIDTH_PX = 10
PLANE_INLIER_M = 0.004
PLANE_SAMPLE_SIZE = 50
PLANE_ITERATIONS = 1000
PLANE_REMOVAL_M = 0.005
CLUSTER_RADIUS_M = 0.006
CLUSTER_MIN_POINTS = 30


def published_foreground(xyz: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels that the published preprocessing keeps.

    Args:
        xyz: (H, W, 3) float32 metres, finite; a zero coordinate means no measurement.
        seed: Of Open3D's random numbers; the published scripts set none.

    Raises:
        MissingDependencyError: Open3D is not installed or does not load.

    Source: method facts 1.2, steps 2-6 (3D-ADS, reused by M3DM, CFM and EasyNet).
    """
    return published_clean_up(xyz, published_plane_removal(xyz, seed=seed))


def published_plane_removal(xyz: NDArray[np.float32], *, seed: int = 0) -> NDArray[np.bool_]:
    """(H, W) bool: the measured pixels off the background plane. Steps 2-4 of the recipe."""
    open3d = import_open3d()
    open3d.utility.random.seed(seed)
    rim = np.concatenate(
        [
            xyz[:RIM_WIDTH_PX].reshape(-1, 3),
            xyz[-RIM_WIDTH_PX:].reshape(-1, 3),
            xyz[:, :RIM_WIDTH_PX].reshape(-1, 3),
            xyz[:, -RIM_WIDTH_PX:].reshape(-1, 3),
        ]
    )
    rim = rim[(rim != 0).all(axis=1)]
    plane, _ = _cloud(open3d, rim).segment_plane(
        distance_threshold=PLANE_INLIER_M,
        ransac_n=PLANE_SAMPLE_SIZE,
        num_iterations=PLANE_ITERATIONS,
    )
    distances = np.abs(xyz.astype(np.float64) @ plane[:3] + plane[3])
    return (xyz != 0).all(axis=-1) & ~(distances < PLANE_REMOVAL_M)


def published_clean_up(
    xyz: NDArray[np.float32], foreground: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(H, W) bool: the foreground pixels with the most frequent DBSCAN label. Step 6 of the recipe.

    Args:
        xyz: (H, W, 3) float32 metres, finite.
        foreground: (H, W) bool, the pixels that are clustered.
    """
    open3d = import_open3d()
    if not foreground.any():
        return foreground.copy()
    labels = np.asarray(
        _cloud(open3d, xyz[foreground]).cluster_dbscan(
            eps=CLUSTER_RADIUS_M, min_points=CLUSTER_MIN_POINTS
        )
    )
    values, counts = np.unique(labels, return_counts=True)
    kept = foreground.copy()
    kept[foreground] = labels == values[counts.argmax()]
    return kept


def published_depth_picture(
    xyz: NDArray[np.float32], plane_m: float, *, size: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(picture (S, S) in centimetres, its foreground (S, S), the object (H, W)): of a scan whose
    corners are all measured and which has an object.

    Args:
        xyz: (H, W, 3) float32 metres; depth 0 means no measurement.
        plane_m: Metres from the background that the object is further than.
        size: S.

    Source: method facts 9.2 (AST's preprocessing and data set).
    """
    depth = xyz[..., 2].astype(np.float64)
    for _ in range(3):
        depth = filled_once(depth)
    height, width = depth.shape
    rows, columns = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    corners = (depth[:2, :2], depth[:2, -2:], depth[-2:, :2], depth[-2:, -2:])
    means = [corner[corner != 0].mean() for corner in corners]
    top = means[0] * (1 - columns) + means[1] * columns
    bottom = means[2] * (1 - columns) + means[3] * columns
    background = top * (1 - rows) + bottom * rows
    is_object = (np.abs(background - depth) > plane_m) & (depth != 0)
    centred = np.where(is_object, 100 * (depth - depth[is_object].mean()), 0)
    picture = _stretch(centred, size)
    return picture, _stretch(is_object.astype(np.float64), size) > 0, is_object


def filled_once(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W): each hole the mean of the non-zero among its neighbours, but those of the first row
    and column, whose neighbourhood is an empty slice in the published code."""
    filled = depth.copy()
    for row, column in np.argwhere(depth == 0):
        if row == 0 or column == 0:
            continue
        around = depth[row - 1 : row + 2, column - 1 : column + 2]
        if (around != 0).any():
            filled[row, column] = np.float32(around[around != 0].mean())
    return filled


def _stretch(image: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(S, S): pixel centres aligned, bilinear, the border repeated."""
    for axis, length in enumerate(image.shape):
        centers = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.minimum(centers.astype(int), max(length - 2, 0))
        high = np.minimum(low + 1, length - 1)
        share = (centers - low).reshape((-1, 1) if axis == 0 else (1, -1))
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def import_open3d() -> ModuleType:
    """The Open3D module.

    Its wheel needs the system's libusb, which bare machines lack; the one that the libusb-package
    wheel holds is loaded where it is installed.

    Raises:
        MissingDependencyError: Open3D is not installed or does not load.
    """
    if find_spec("open3d") is None:
        raise MissingDependencyError(
            "the published preprocessing needs open3d, which is not installed: "
            "pip install open3d-cpu libusb-package"
        )
    libusb = find_spec("libusb_package")
    if libusb is not None and libusb.submodule_search_locations:
        for folder in libusb.submodule_search_locations:
            for library in sorted(Path(folder).glob("libusb-1.0.so*")):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    try:
        return import_module("open3d")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"open3d is installed but does not load ({error}); if a library is named, install it "
            "with the system's package manager, libusb also with: pip install libusb-package"
        ) from error


def _cloud(open3d: ModuleType, points: NDArray[np.float32]) -> Any:
    cloud = open3d.geometry.PointCloud()
    cloud.points = open3d.utility.Vector3dVector(points.astype(np.float64))
    return cloud
