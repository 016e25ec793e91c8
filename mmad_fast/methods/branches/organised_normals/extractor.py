"""The run half of the branch: NumPy and a compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONTRAST = 2.0
"""Of the picture of normals: a network's normalised colours are of about this size."""


@dataclass(frozen=True)
class OrganisedSurface:
    """The surface on a scan's grid of pixels; (0, 0, 0) where there is no point.

    Attributes:
        points: (S, S, 3) float32 metres, smoothed.
        normals: (S, S, 3) float32 of unit length, towards the camera.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]


def organised_surface(xyz: NDArray[np.float32], *, sigma: float) -> OrganisedSurface:
    """Smoothed points and their normals.

    The points are averaged by a Gaussian over those that there are. A normal stands upright on the
    differences to the neighbours along rows and columns: of two where there are, else of one; it is
    (0, 0, -1) where there are none, or where they lie on a line. README.md of the method has why.

    Args:
        xyz: (S, S, 3) float32 metres, finite; (0, 0, 0) where there is no point.
        sigma: In pixels; 0 averages nothing.
    """
    from mmad_fast import _kernels

    points, normals = np.empty_like(xyz), np.empty_like(xyz)
    _kernels.organised_normals(xyz, sigma, points, normals)
    return OrganisedSurface(points, normals)


def normals_picture(normals: NDArray[np.float32], *, size: int) -> NDArray[np.float32]:
    """(3, R, R) float32: normals (S, S, 3) as a network's input, resized bilinearly. The third
    channel is largest where the surface faces the camera; all are 0 where there is no point."""
    from mmad_fast import _kernels

    picture = np.empty((3, size, size), np.float32)
    scale = (CONTRAST, CONTRAST, -CONTRAST)
    _kernels.stretch_picture(normals, scale, (0.0, 0.0, 0.0), picture)
    return picture
