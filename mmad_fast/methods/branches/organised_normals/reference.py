"""Normals of the pixel grid and their picture by definition: NumPy in float64, torch's resizing.
Imports nothing from the fast code."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

REACH = 3
"""Of the Gaussian, in sigmas."""
CONTRAST = 2.0


def reference_surface(
    xyz: NDArray[np.float32], sigma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(smoothed points, normals), both (S, S, 3), of points (S, S, 3); 0 where there is none."""
    is_point = xyz[..., 2] != 0
    points = smoothed_points(xyz.astype(np.float64), is_point, sigma)
    normals = np.cross(_differences(points, is_point, 1), _differences(points, is_point, 0))
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
    normals[(normals == 0).all(axis=-1)] = (0, 0, -1)
    normals[(normals * points).sum(axis=-1) > 0] *= -1  # towards the camera, in the origin
    normals[~is_point] = 0
    return points, normals


def smoothed_points(
    xyz: NDArray[np.float64], is_point: NDArray[np.bool_], sigma: float
) -> NDArray[np.float64]:
    """(S, S, 3) means of the points around each, weighted by a Gaussian of their pixels'
    distance."""
    if sigma == 0:
        return xyz * is_point[..., None]
    offsets = np.arange(len(xyz))[:, None] - np.arange(len(xyz))
    taps = np.exp(-0.5 * (offsets / sigma) ** 2) * (np.abs(offsets) <= int(REACH * sigma + 0.5))
    weights = taps @ is_point @ taps
    sums = np.einsum("ij,jkc,kl->ilc", taps, xyz * is_point[..., None], taps, optimize=True)
    weights[~is_point] = 1
    return sums / weights[..., None] * is_point[..., None]


def _differences(
    points: NDArray[np.float64], is_point: NDArray[np.bool_], axis: int
) -> NDArray[np.float64]:
    """(S, S, 3) the next point along the axis less the one before; the point itself where one of
    them is missing."""
    ends = []
    for step in (1, -1):
        moved, is_there = np.roll(points, -step, axis), np.roll(is_point, -step, axis)
        edge = [slice(None)] * 2
        edge[axis] = slice(-1, None) if step == 1 else slice(0, 1)
        is_there[tuple(edge)] = False
        ends.append(np.where(is_there[..., None], moved, points))
    return ends[0] - ends[1]


def reference_picture(normals: NDArray[np.float64], size: int) -> torch.Tensor:
    """(1, 3, R, R) float32 picture of normals (S, S, 3)."""
    toward_camera = normals * np.array([1, 1, -1])
    image = torch.from_numpy(CONTRAST * toward_camera).float().permute(2, 0, 1)[None]
    return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
