"""The directions in which a bank's rows differ most, where they help to exclude rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_ROWS, MIN_CHANNELS = 2048, 96
"""Smaller banks are searched so fast that looking for directions does not pay."""
NUM_SAMPLES = 2048
NUM_TRIALS = 64
WIDTHS = (32, 64, 128)
"""Numbers of projected channels that are tried. The last channel of each holds the norm of what the
other channels leave of a row."""
NUM_ITERATIONS = 4
SCATTERED_COST = 32
"""Cost of one multiply-add where a row is measured on its own, in multiply-adds of the matrix
product (measured)."""
MAX_RELATIVE_COST = 0.7
MAX_NON_ORTHONORMALITY = 1e-12
"""Largest deviation of basis.T @ basis from the identity. The kernel scales the basis by 1 - 1e-9,
so that a deviation up to this one cannot make a projected distance longer than the true one."""


class Projection(NamedTuple):
    """Where the coordinates of a row m are (m - mean) @ basis.

    Attributes:
        mean: (C,) float64.
        basis: (C, R) float64, orthonormal columns; R is 0 where projecting does not help.
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]


def no_projection(num_channels: int) -> Projection:
    """The projection with R = 0 of rows with C = `num_channels`."""
    return Projection(np.zeros(num_channels), np.zeros((num_channels, 0)))


def choose_projection(rows: NDArray[np.float32] | NDArray[np.float16]) -> Projection:
    """The projection with which queries like the rows themselves are answered fastest.

    What it would cost is counted on a sample: some rows of it are searched in the others. The
    choice decides about time only, never about results.

    Args:
        rows: (M, C) float32 or float16, finite.

    Returns:
        mean and basis; R is one less than one of WIDTHS, or 0.
    """
    num_rows, num_channels = rows.shape
    if num_rows < MIN_ROWS or num_channels < MIN_CHANNELS:
        return no_projection(num_channels)
    chosen = np.linspace(0, num_rows - 1, min(num_rows, NUM_SAMPLES)).astype(np.int64)
    sample = rows[chosen].astype(np.float64)
    mean = sample.mean(axis=0)
    sample -= mean
    ranks = [width - 1 for width in WIDTHS if width <= num_channels // 2]
    basis = principal_directions(sample, max(ranks))
    costs = _relative_costs(sample, basis, ranks)
    cost, rank = min(zip(costs, ranks, strict=True))
    if not cost <= MAX_RELATIVE_COST:
        return no_projection(num_channels)
    return Projection(mean, np.ascontiguousarray(basis[:, :rank]))


def principal_directions(sample: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """(C, rank) orthonormal columns: about the directions of the largest variance, in descending
    order.

    By subspace iteration, which reaches the large ones in a fraction of the time of a full
    eigen-decomposition. Any orthonormal directions give a correct search.

    Args:
        sample: (S, C), of mean 0.
        rank: At most S and C.
    """
    start = np.random.default_rng(0).standard_normal((sample.shape[1], rank))
    basis = orthonormal(start)
    for _ in range(NUM_ITERATIONS):
        basis = orthonormal(sample.T @ (sample @ basis))
    projected = sample @ basis  # (S, rank)
    _, rotation = np.linalg.eigh(projected.T @ projected)
    return orthonormal(basis @ rotation[:, ::-1])


def orthonormal(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, R) orthonormal columns that span those of columns (C, R), one after the other.

    By two Cholesky factorisations, which are a few matrix products: a QR is threaded in pieces so
    small that it takes seconds where other work holds the cores. Where columns depend on each
    other, by QR.
    """
    basis = columns
    for _ in range(2):  # the second removes the rounding errors of the first
        try:
            factor: NDArray[np.floating] = np.linalg.cholesky(basis.T @ basis)
        except np.linalg.LinAlgError:
            return np.linalg.qr(columns)[0]
        basis = basis @ inverse_of_lower(factor).T
    off = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()
    return basis if off <= MAX_NON_ORTHONORMALITY else np.linalg.qr(columns)[0]


def inverse_of_lower(matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """(R, R) the inverse of a lower triangular matrix (R, R), by halves: again for its products,
    since `np.linalg.inv` is threaded in small pieces, too."""
    half = len(matrix) // 2
    if half == 0:
        return 1 / matrix
    inverse: NDArray[np.floating] = np.zeros_like(matrix)
    inverse[:half, :half] = inverse_of_lower(matrix[:half, :half])
    inverse[half:, half:] = inverse_of_lower(matrix[half:, half:])
    inverse[half:, :half] = inverse[half:, half:] @ -matrix[half:, :half] @ inverse[:half, :half]
    return inverse


def _relative_costs(
    sample: NDArray[np.float64], basis: NDArray[np.float64], ranks: list[int]
) -> list[float]:
    """The expected cost of a search with the first 1, 2, ... of the ranks, relative to one without
    projection."""
    is_query = np.arange(len(sample)) % max(1, len(sample) // NUM_TRIALS) == 0
    nearest = _squared_distances(sample[is_query], sample[~is_query]).min(axis=1, keepdims=True)
    projected = sample @ basis  # (S, R)
    squared_norms = np.einsum("sc,sc->s", sample, sample)
    num_channels = sample.shape[1]
    costs = []
    for rank in ranks:
        kept = projected[:, :rank]
        rest = np.sqrt(np.maximum(squared_norms - (kept**2).sum(axis=1), 0))
        rows = np.column_stack([kept, rest])
        lower = _squared_distances(rows[is_query], rows[~is_query])
        left = float((lower <= nearest * (1 + 1e-6)).mean())
        opened = min(1.0, 16 * left)  # rows in groups that have such a row, at most
        scattered = SCATTERED_COST * (opened * (rank + 1) + left * num_channels)
        costs.append((rank + 1 + scattered) / num_channels)
    return costs


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.einsum("sc,sc->s", a, a)[:, None] + np.einsum("sc,sc->s", b, b)
    return np.maximum(norms - 2 * (a @ b.T), 0)
