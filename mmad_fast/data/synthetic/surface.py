"""The two records of a procedural scene, and the pieces that parts are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.synthetic.noise import Field

Albedo = NDArray[np.floating]
"""(S, S, 3) float32 linear reflectance, 0-1."""
Colour = tuple[float, float, float]
Place = tuple[float, float]
"""(x, y) on a part, in mm."""


@dataclass(frozen=True)
class Canvas:
    """The part's own coordinates of each pixel.

    Attributes:
        x_mm: (S, S) float32 millimetres, the part's centre being 0.
        y_mm: (S, S) float32 millimetres.
        pixel_mm: A pixel's side on the part.
    """

    x_mm: Field
    y_mm: Field
    pixel_mm: float

    @property
    def size(self) -> int:
        """S in pixels."""
        return int(self.x_mm.shape[0])

    def distance_mm(self, x: float, y: float) -> Field:
        """(S, S) float32: the distance to a place on the part."""
        return length(self.x_mm - np.float32(x), self.y_mm - np.float32(y))

    def distance_to_nearest_mm(self, places: Sequence[Place]) -> Field:
        """(S, S) float32: the distance to the nearest of some places, inf if there are none."""
        nearest = np.full(self.x_mm.shape, np.inf, dtype=np.float32)
        for x, y in places:
            np.minimum(nearest, self.distance_mm(x, y), out=nearest)
        return nearest

    def inside(self, signed_distance: Field) -> Field:
        """(S, S) float32: 1 where a signed distance (mm) is negative, else 0, soft by a pixel."""
        return np.clip(np.float32(0.5) - signed_distance / np.float32(self.pixel_mm), 0, 1)


@dataclass(frozen=True)
class Surface:
    """A part lying on the conveyor.

    Attributes:
        height_mm: (S, S) float32 above the conveyor, 0 beside the part.
        albedo: (S, S, 3) float32 linear reflectance, 0-1; the part's only where it covers.
        coverage: (S, S) float32, 1 on the part, 0 beside it.
    """

    height_mm: Field
    albedo: Albedo
    coverage: Field


def length(x: Field, y: Field) -> Field:
    """(S, S) float32: sqrt(x^2 + y^2); several times faster than hypot."""
    return np.sqrt(x * x + y * y)


def paint(albedo: Albedo, colour: Colour, amount: Field) -> Albedo:
    """(S, S, 3) float32: the albedo blended towards a colour.

    Args:
        albedo: (S, S, 3) float32.
        colour: Linear reflectance.
        amount: (S, S) float32, 0 leaves, 1 replaces.
    """
    return albedo + (np.array(colour, dtype=np.float32) - albedo) * amount[..., None]


def uniform_albedo(colour: Colour, shade: Field) -> Albedo:
    """(S, S, 3) float32: one colour times a shade.

    Args:
        colour: Linear reflectance.
        shade: (S, S) float32 around 1.
    """
    return np.array(colour, dtype=np.float32) * shade[..., None]


def smooth_step(value: Field) -> Field:
    """(S, S) float32: 0 below 0, 1 above 1, between 3 t^2 - 2 t^3."""
    t = np.clip(value, 0, 1)
    return t * t * (3 - 2 * t)


def bowl(distance: Field, radius: float) -> Field:
    """(S, S) float32: (1 - (d / r)^2)^2 of a distance and a radius in mm, 0 beyond it: 1 at the
    centre, falling smoothly."""
    rest = np.maximum(1 - (distance / np.float32(radius)) ** 2, 0)
    return rest * rest


def dome(distance: Field, radius: float) -> Field:
    """(S, S) float32: sqrt(1 - (d / r)^2) of a distance and a radius in mm, 0 beyond it: a round
    cap, steep at its edge."""
    return np.sqrt(np.maximum(1 - (distance / np.float32(radius)) ** 2, 0))


def rounded_rectangle(
    canvas: Canvas, half_width: float, half_height: float, radius: float
) -> Field:
    """(S, S) float32 mm: signed distance to a rectangle with round corners, negative inside.

    Args:
        canvas: The part's coordinates.
        half_width: Half the extent along x, in mm.
        half_height: Half the extent along y, in mm.
        radius: Of the corners, in mm.
    """
    x = np.abs(canvas.x_mm) - np.float32(half_width - radius)
    y = np.abs(canvas.y_mm) - np.float32(half_height - radius)
    outside = length(np.maximum(x, 0), np.maximum(y, 0))
    return outside + np.minimum(np.maximum(x, y), 0) - np.float32(radius)
