"""Surface normals in NumPy float64: the truth that every backend is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]

UNDEFINED_NORMAL = (0.0, 0.0, 1.0)
MIN_NEIGHBORS = 3


def surface_normals(
    points: NDArray[np.float32],
    indices: NDArray[np.int32],
    counts: NDArray[np.int32],
    orientation: str,
) -> Vectors:
    """(N, 3) float64 of unit length.

    Args:
        points: (N, 3).
        indices: (N, K) the neighbours of each point, in the order in which they are summed; what is
            behind the count is not read.
        counts: (N,).
        orientation: "camera" or "open3d".
    """
    exact = points.astype(np.float64)
    normals = smallest_directions(covariances(exact, indices, counts))
    is_undefined = (counts < MIN_NEIGHBORS) | are_in_one_place(points, indices, counts)
    normals[is_undefined] = UNDEFINED_NORMAL
    if orientation == "camera":
        normals[(normals * exact).sum(axis=1) > 0] *= -1
    return normals


def are_in_one_place(
    points: NDArray[np.float32], indices: NDArray[np.int32], counts: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """(N,) whether all neighbours of a point are where it is."""
    is_elsewhere = (points[indices] != points[:, None]).any(axis=2)
    return ~(is_elsewhere & (np.arange(indices.shape[1]) < counts[:, None])).any(axis=1)


def covariances(
    points: Vectors, indices: NDArray[np.int32], counts: NDArray[np.int32]
) -> NDArray[np.float64]:
    """(N, 3, 3) of the neighbours: mean of products minus product of means, added up one neighbour
    after the other."""
    sums = np.zeros((len(points), 3))
    products = np.zeros((len(points), 3, 3))
    for k in range(indices.shape[1]):
        is_there = k < counts
        neighbors = points[indices[is_there, k]]
        sums[is_there] += neighbors
        products[is_there] += neighbors[:, :, None] * neighbors[:, None, :]
    means = sums / counts[:, None]
    return products / counts[:, None, None] - means[:, :, None] * means[:, None, :]


def smallest_directions(matrices: NDArray[np.float64]) -> Vectors:
    """(N, 3) unit eigenvectors of the smallest eigenvalue, with the sign that Open3D gives them; 0
    where the matrix is 0. See README.md."""
    largest = matrices.max(axis=(1, 2), initial=-np.inf)
    is_zero = largest == 0
    scaled = matrices / np.where(is_zero, 1, largest)[:, None, None]
    off_diagonal = scaled[:, 0, 1] ** 2 + scaled[:, 0, 2] ** 2 + scaled[:, 1, 2] ** 2
    is_diagonal = off_diagonal == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        directions = _of_full_matrices(scaled, off_diagonal)
    directions[is_diagonal] = _of_diagonals(np.diagonal(matrices[is_diagonal], axis1=1, axis2=2))
    directions[is_zero] = 0
    return directions


def _of_diagonals(diagonals: Vectors) -> Vectors:
    """The axis of the smallest entry; of equals z, then y. Open3D takes z where x and y are equal,
    along a line of points."""
    x, y, z = diagonals.T
    axis = np.where((z <= x) & (z <= y), 2, np.where(y <= x, 1, 0))
    return np.eye(3)[axis]


def _of_full_matrices(a: NDArray[np.float64], off_diagonal: NDArray[np.float64]) -> Vectors:
    """Eigenvalues by the trigonometric solution of the cubic. The one that stands alone gives the
    first eigenvector, from it follows the one of the middle."""
    mean = (a[:, 0, 0] + a[:, 1, 1] + a[:, 2, 2]) / 3
    b0, b1, b2 = (a[:, i, i] - mean for i in range(3))
    spread = np.sqrt((b0 * b0 + b1 * b1 + b2 * b2 + off_diagonal * 2) / 6)
    minor0 = b1 * b2 - a[:, 1, 2] * a[:, 1, 2]
    minor1 = a[:, 0, 1] * b2 - a[:, 1, 2] * a[:, 0, 2]
    minor2 = a[:, 0, 1] * a[:, 1, 2] - b1 * a[:, 0, 2]
    determinant = (b0 * minor0 - a[:, 0, 1] * minor1 + a[:, 0, 2] * minor2) / (
        spread * spread * spread
    )
    half = np.clip(determinant * 0.5, -1, 1)
    angle = np.arccos(half) / 3
    high = 2 * np.cos(angle)
    low = 2 * np.cos(angle + 2 * np.pi / 3)
    middle = -(low + high)
    smallest, between, largest = (mean + spread * root for root in (low, middle, high))
    largest_is_alone = half >= 0
    first = _alone(a, np.where(largest_is_alone, largest, smallest))
    second = _in_the_plane(a, first, between)
    direct = np.where(largest_is_alone[:, None], np.cross(second, first), first)
    # Only where rounding has equal eigenvalues the order is another one.
    middle_is_least = (between < smallest) & (between < largest)
    largest_is_least = (largest < smallest) & (largest < between)
    smallest_is_least = (smallest < between) & (smallest < largest)
    answer = np.where(largest_is_alone[:, None], direct, first)
    use_second = np.where(largest_is_alone, middle_is_least, ~smallest_is_least & middle_is_least)
    answer[use_second] = second[use_second]
    use_first = largest_is_alone & largest_is_least
    answer[use_first] = first[use_first]
    use_third = ~largest_is_alone & ~smallest_is_least & ~middle_is_least
    answer[use_third] = np.cross(first, second)[use_third]
    return answer


def _alone(a: NDArray[np.float64], eigenvalue: NDArray[np.float64]) -> Vectors:
    """The longest cross product of two rows of A - lambda I, of unit length."""
    rows = a - eigenvalue[:, None, None] * np.eye(3)
    products = np.stack(
        [np.cross(rows[:, i], rows[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))], axis=1
    )
    squared = (products * products).sum(axis=2)  # (N, 3)
    chosen = np.where(squared[:, 1] > squared[:, 0], 1, 0)
    best = np.take_along_axis(squared, chosen[:, None], axis=1)[:, 0]
    chosen = np.where(squared[:, 2] > best, 2, chosen)
    everyone = np.arange(len(a))
    return products[everyone, chosen] / np.sqrt(squared[everyone, chosen])[:, None]


def _in_the_plane(
    a: NDArray[np.float64], first: Vectors, eigenvalue: NDArray[np.float64]
) -> Vectors:
    """The eigenvector of an eigenvalue in the plane across the first one: in that plane's basis (u,
    v) it is across the larger row of the 2 x 2 matrix A - lambda I."""
    x, y, z = first.T
    zero = np.zeros_like(x)
    u = np.where(
        (np.abs(x) > np.abs(y))[:, None],
        np.stack([-z, zero, x], axis=1) / np.sqrt(x * x + z * z)[:, None],
        np.stack([zero, z, -y], axis=1) / np.sqrt(y * y + z * z)[:, None],
    )
    v = np.cross(first, u)
    au, av = np.einsum("nij,nj->ni", a, u), np.einsum("nij,nj->ni", a, v)
    m00 = (u * au).sum(axis=1) - eigenvalue
    m01 = (u * av).sum(axis=1)
    m11 = (v * av).sum(axis=1) - eigenvalue
    first_row_is_larger = np.abs(m00) >= np.abs(m11)
    diagonal = np.where(first_row_is_larger, m00, m11)
    # The row (diagonal, m01), divided by its larger entry; the sign goes with that.
    by_diagonal = np.abs(diagonal) >= np.abs(m01)
    ratio = np.where(by_diagonal, m01 / diagonal, diagonal / m01)
    shorter = 1 / np.sqrt(1 + ratio * ratio)
    of_diagonal = np.where(by_diagonal, shorter, ratio * shorter)
    of_other = np.where(by_diagonal, ratio * shorter, shorter)
    along_u = np.where(first_row_is_larger, of_other, of_diagonal)
    along_v = np.where(first_row_is_larger, of_diagonal, of_other)
    second = along_u[:, None] * u - along_v[:, None] * v
    is_free = np.maximum(np.abs(diagonal), np.abs(m01)) == 0
    second[is_free] = u[is_free]
    return second
