"""Clean-up: of what the background plane left, the largest component stays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.validation import MAX_INT32, check_float_matrix, check_integer

MAX_EXTENT_RADII = 2.0**19


def keep_largest_cluster(
    xyz: NDArray[np.float32], states: NDArray[np.uint8], recipe: Recipe
) -> NDArray[np.uint8]:
    """(H, W) uint8 pixel states in which the foreground is its largest cluster, the rest removed.

    The published semantics, exactly: DBSCAN on the foreground points, the pixels with the most
    frequent label stay. Noise counts as a label, so a scan that is too sparse for any cluster stays
    as it is.

    Args:
        xyz: (H, W, 3) float32 metres, finite, C-contiguous.
        states: (H, W) uint8 as of `mark_background`; left as it is.
        recipe: cluster_radius_m and cluster_min_points are read.

    Source: method facts 1.2 step 6.
    """
    import mmad_fast._kernels as kernels

    kept = states.copy()
    kernels.keep_largest_cluster(xyz, recipe.cluster_radius_m, recipe.cluster_min_points, kept)
    return kept


def density_clusters(
    points: NDArray[np.float32], *, radius: float, min_points: int
) -> NDArray[np.int32]:
    """(N,) int32 DBSCAN labels: -1 is noise, clusters are numbered by their lowest core point.

    Args:
        points: (N, 3) float32 or float64 (rounded), finite, any unit.
        radius: Two points at most this far apart are neighbours; in the points' unit.
        min_points: Neighbours, itself included, that make a point a core point.

    Returns:
        The labels. A border point that several clusters reach has the lowest of their labels.

    Raises:
        InvalidInputError: wrong type or shape, coordinates that are not finite, radius or
            min_points not positive, or coordinates beyond 2^19 radii.
    """
    import mmad_fast._kernels as kernels

    points = check_float_matrix(points, "points", num_columns=3)
    min_points = check_integer(min_points, "min_points", minimum=1, maximum=MAX_INT32)
    if isinstance(radius, bool) or not isinstance(radius, (int, float, np.number)):
        raise InvalidInputError(f"radius is {radius!r}; it must be a number > 0")
    extent = float(np.abs(points).max(initial=0))
    if not 0 < radius < np.inf or not extent <= MAX_EXTENT_RADII * radius:
        raise InvalidInputError(
            f"radius is {radius} and the points reach {extent:g}; the radius must be > 0, and "
            "coordinates at most 2^19 radii: give points and radius in the same unit"
        )
    labels = np.empty(len(points), np.int32)
    kernels.density_clusters(points, float(radius), min_points, labels)
    return labels
