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


def published_object(xyz: NDArray[np.float32], plane_m: float) -> NDArray[np.bool_]:
    """(H, W) bool: what TRD takes for the object, of a scan with three measured corners.

    Args:
        xyz: (H, W, 3) metres; (0, 0, 0) means no measurement.
        plane_m: Metres from the plane through the corners that the object is further than.

    Source: method facts 8.3 (TRD's plane mask).
    """
    points = xyz.astype(np.float64)
    corners = []
    for corner in (points[:3, :3], points[:3, -3:], points[-3:, :3]):
        corners.append(corner.sum(axis=(0, 1)) / max((corner[..., 2] != 0).sum(), 1e-12))
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    distance = np.abs((points - corners[0]) @ (normal / np.linalg.norm(normal)))
    return closed((distance > plane_m) & (points[..., 2] != 0))


def closed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(H, W): the mask dilated, then eroded, by 7 x 7 pixels; none beyond the border decides."""
    for fill, of in ((False, np.any), (True, np.all)):
        padded = np.pad(mask, 3, constant_values=fill)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))
        mask = of(windows, axis=(2, 3))
    return mask


def filled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W): holes, which are 0, in two rounds the mean of what is not 0 among their
    neighbours."""
    for _ in range(2):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, 1), (3, 3))
        means = windows.sum(axis=(2, 3)) / ((windows > 0).sum(axis=(2, 3)) + 1e-12)
        values = np.where(values == 0, means, values)
    return values


def published_depth(xyz: NDArray[np.float32], plane_m: float, *, size: int) -> NDArray[np.float64]:
    """(R, R) in 0-1: the depth as TRD gives it to its teacher, before ImageNet's normalisation; of
    a scan whose object has several depths.

    Source: method facts 8.3.
    """
    rows, columns = (nearest_indices(size, length) for length in xyz.shape[:2])
    xyz = xyz[np.ix_(rows, columns)]
    depth = xyz[..., 2].astype(np.float64) * published_object(xyz, plane_m)
    near, far = depth[depth != 0].min(), depth.max()
    return filled(np.where(depth != 0, (depth - near) / (far - near) * 0.8 + 0.1, 0))


def published_sobel_normals(
    xyz: NDArray[np.float32], plane_m: float, *, sobel_size: int, size: int
) -> NDArray[np.float64]:
    """(R, R, 3) in 0-1: the normals as TRD gives them to its teacher, before ImageNet's
    normalisation; of a scan whose object has several depths.

    Source: method facts 8.3.
    """
    is_object = published_object(xyz, plane_m)
    depth = xyz[..., 2].astype(np.float64) * is_object
    near, far = depth[depth != 0].min(), depth.max()
    depth = filled(np.where(depth != 0, (depth - near) / (far - near), 0))
    along, across = sobel_taps(sobel_size)
    padded = np.pad(depth, sobel_size // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (sobel_size, sobel_size))
    right = np.einsum("hwij,i,j->hw", windows, across, along)
    down = np.einsum("hwij,i,j->hw", windows, along, across)
    normals = np.stack([-right, -down, np.ones_like(right)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-8
    picture = (normals + 1) / 2 * is_object[..., None]
    return np.stack([_stretch(picture[..., channel], size) for channel in range(3)], axis=-1)


def sobel_taps(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(derivative, smoothing), (size,) each: the unnormalised Sobel filter is their outer
    product."""
    smoothing, derivative = np.ones(1), np.array([-1.0, 1.0])
    for _ in range(size - 1):
        smoothing = np.convolve(smoothing, [1, 1])
    for _ in range(size - 2):
        derivative = np.convolve(derivative, [1, 1])
    return derivative, smoothing


def nearest_indices(output_size: int, input_size: int) -> NDArray[np.int64]:
    """(output_size,) input index of each output as OpenCV's nearest neighbour takes it."""
    scale = 1.0 / (output_size / input_size)
    indices = np.floor(np.arange(output_size) * scale).astype(np.int64)
    return np.minimum(indices, input_size - 1)


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
