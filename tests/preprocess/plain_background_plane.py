"""The search for the background plane in NumPy, which the compiled one is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.preprocess.background_plane import PlaneSearch
from mmad_fast.preprocess.recipes import Recipe

NUM_HYPOTHESES, NUM_JUDGES, MAX_RIM_POINTS, MAX_REFINEMENTS = 512, 256, 8192, 10
MIN_SPREAD = 0.25


def find_background_plane(xyz: NDArray[np.float32], recipe: Recipe) -> PlaneSearch:
    """What csrc/run/background_plane.cpp finds, by NumPy's random numbers and eigenvectors."""
    rim = _rim_pixels(xyz, recipe.rim_width_px)
    is_measured = (rim[:, 0] != 0) & (rim[:, 1] != 0) & (rim[:, 2] != 0)
    measured = np.flatnonzero(is_measured)
    num_points = len(measured)
    if num_points < recipe.min_rim_points:
        reason = f"{num_points} measured rim pixels, {recipe.min_rim_points} are needed"
        return PlaneSearch(None, num_points, 0, reason)
    points = rim[_evenly_spread(measured, MAX_RIM_POINTS)].T.astype(np.float64)  # (3, N)
    center = points.mean(axis=1, keepdims=True)
    candidate = _best_hypothesis(points - center, recipe)
    if candidate is not None:
        candidate = _refine(points - center, candidate, recipe.plane_inlier_m)
    if candidate is None:
        return PlaneSearch(None, num_points, 0, "the rim points lie on a line or in one spot")
    normal, offset = candidate[:3], float(candidate[3] - candidate[:3] @ center[:, 0])
    inlier_share = np.mean(_distances(points, np.append(normal, offset)) < recipe.plane_inlier_m)
    num_inliers = round(float(inlier_share) * num_points)
    needed = max(
        recipe.min_rim_points,
        recipe.min_inlier_fraction * num_points,
        recipe.min_rim_coverage * len(rim),
    )
    if num_inliers < needed:
        reason = (
            f"the best plane holds {num_inliers} of {num_points} measured and {len(rim)} rim "
            f"pixels, {int(np.ceil(needed))} are needed"
        )
        return PlaneSearch(None, num_points, 0, reason)
    sign = -1.0 if offset < 0 else 1.0
    a, b, c = (float(sign * value) for value in normal)
    return PlaneSearch((a, b, c, sign * offset), num_points, num_inliers)


def _rim_pixels(xyz: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """(R, 3): each pixel of the outermost `width` rows and columns once."""
    height, columns = xyz.shape[:2]
    first_low_row, first_right_column = max(width, height - width), max(width, columns - width)
    middle = xyz[width:first_low_row]
    parts = (xyz[:width], xyz[first_low_row:], middle[:, :width], middle[:, first_right_column:])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


def _evenly_spread(items: NDArray, count: int) -> NDArray:
    """At most `count` of the items (N, ...), evenly spread over their order."""
    if len(items) <= count:
        return items
    return items[np.linspace(0, len(items) - 1, count).astype(np.int64)]


def _distances(points: NDArray[np.float64], plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance of points (3, N) from the plane (4,)."""
    # Written out: a BLAS call on arrays this small would wake its threads for nothing.
    return np.abs(plane[0] * points[0] + plane[1] * points[1] + plane[2] * points[2] + plane[3])


def _best_hypothesis(points: NDArray[np.float64], recipe: Recipe) -> NDArray[np.float64] | None:
    """(4,) plane through three of the centred points (3, N) with the least truncated squared
    distance to the points, None if no three points span a plane."""
    rng = np.random.default_rng(recipe.seed)
    corners = points.T[rng.integers(0, points.shape[1], (3, NUM_HYPOTHESES))]  # (3, planes, 3)
    normals = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    lengths = np.sqrt(np.square(normals).sum(axis=1))
    # The area of a triangle whose sides are as short as the noise says nothing of the plane.
    is_spanned = lengths > (MIN_SPREAD * recipe.plane_inlier_m) ** 2
    if not is_spanned.any():
        return None
    normals = normals[is_spanned] / lengths[is_spanned, None]
    offsets = -(normals * corners[0, is_spanned]).sum(axis=1)
    judges = _evenly_spread(points.T, NUM_JUDGES).T.astype(np.float32)  # (3, judges)
    planes = np.column_stack([normals, offsets]).astype(np.float32)[..., None]  # (planes, 4, 1)
    distances = planes[:, 0] * judges[0]  # (planes, judges)
    distances += planes[:, 1] * judges[1]
    distances += planes[:, 2] * judges[2]
    distances += planes[:, 3]
    np.square(distances, out=distances)
    np.minimum(distances, np.float32(recipe.plane_inlier_m**2), out=distances)
    best = int(distances.sum(axis=1).argmin())
    return np.append(normals[best], offsets[best])


def _refine(
    points: NDArray[np.float64], plane: NDArray[np.float64], inlier_m: float
) -> NDArray[np.float64] | None:
    """(4,) total least squares plane of the inliers among points (3, N), repeated until they stay
    the same; None if they do not span a plane."""
    inliers = None
    for _ in range(MAX_REFINEMENTS):
        is_inlier = _distances(points, plane) < inlier_m
        if inliers is not None and np.array_equal(is_inlier, inliers):
            break
        inliers = is_inlier
        chosen = points[:, is_inlier]
        mean = chosen.mean(axis=1)
        chosen -= mean[:, None]
        scatter = [[float((u * v).mean()) for v in chosen] for u in chosen]
        variances, directions = np.linalg.eigh(scatter)  # ascending
        if variances[1] < (MIN_SPREAD * inlier_m) ** 2:
            return None
        plane = np.append(directions[:, 0], -(directions[:, 0] * mean).sum())
    return plane
