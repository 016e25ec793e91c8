"""Bounded value noise: random numbers on a lattice, blended smoothly between the lattice points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]
"""(S, S) float32 over the pixels of an image. NumPy's type stubs lose track of the 32 bits."""


def value_noise(rng: np.random.Generator, size: int, cells: int) -> Field:
    """(S, S) float32 in [-1, 1]: noise with `cells` lattice cells across the image.

    The lattice does not depend on the image's size, so that a scene looks the same at any size.

    Args:
        rng: Draws (cells + 1)^2 numbers.
        size: S in pixels.
        cells: How many cells across; more is finer.
    """
    lattice = rng.uniform(-1.0, 1.0, (cells + 1, cells + 1)).astype(np.float32)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    index = np.minimum(position.astype(np.int64), cells - 1)
    fraction = position - index.astype(np.float32)
    blend = fraction * fraction * (3 - 2 * fraction)
    rows = lattice[index] + (lattice[index + 1] - lattice[index]) * blend[:, None]
    columns = np.ascontiguousarray(rows.T)  # so that the second gather also takes whole rows
    left, right = columns[index], columns[index + 1]
    return np.ascontiguousarray((left + (right - left) * blend[:, None]).T)


def fractal_noise(
    rng: np.random.Generator, size: int, *, cells: int, octaves: int, falloff: float = 0.55
) -> Field:
    """(S, S) float32 in [-1, 1]: value noise of several scales, each twice as fine and weaker.

    Args:
        rng: Source of the lattices.
        size: S in pixels.
        cells: Cells across of the coarsest scale.
        octaves: How many scales.
        falloff: Amplitude of a scale over that of the one before.
    """
    weights = falloff ** np.arange(octaves)
    weights /= weights.sum()
    total = np.zeros((size, size), dtype=np.float32)
    for octave, weight in enumerate(weights):
        total += np.float32(weight) * value_noise(rng, size, cells << octave)
    return total


def line_noise(
    rng: np.random.Generator, coordinate: Field, *, low: float, cells: int, step: float
) -> Field:
    """(S, S) float32 in [-1, 1]: noise that varies along one coordinate only, e.g. brushed metal.

    Args:
        rng: Draws cells + 1 numbers.
        coordinate: (S, S) float32, the coordinate.
        low: Where the lattice starts, in the coordinate's unit.
        cells: How many cells; beyond them the noise is constant.
        step: A cell's length, in the coordinate's unit.
    """
    lattice = rng.uniform(-1.0, 1.0, cells + 1)
    at = low + step * np.arange(cells + 1)
    return np.interp(coordinate, at, lattice).astype(np.float32)


def box_blur(field: Field, radius: int) -> Field:
    """(S, S) float32: the mean over a square window, the border repeated.

    Args:
        field: (S, S) float32.
        radius: The window is 2 radius + 1 pixels wide.
    """
    width = 2 * radius + 1
    for _ in range(2):  # along rows, then, transposed, along columns
        padded = np.pad(field, ((radius + 1, radius), (0, 0)), mode="edge")
        sums = np.cumsum(padded, axis=0, dtype=np.float64)
        field = ((sums[width:] - sums[:-width]) / width).astype(np.float32).T
    return np.ascontiguousarray(field)
