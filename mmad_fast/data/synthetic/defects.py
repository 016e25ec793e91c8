"""The defects that change a finished surface: stain, dent, bump, crack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.synthetic.noise import Field, box_blur, value_noise
from mmad_fast.data.synthetic.surface import Canvas, Surface, bowl, length, smooth_step

MISMATCH = "mismatch"
MIN_SHAPE_CHANGE_MM = 0.15
MIN_COLOUR_CHANGE = 0.05


def stain(surface: Surface, canvas: Canvas, rng: np.random.Generator, severity: float) -> Surface:
    """The surface with a blot whose reflectance is changed by 15 to 50 %; the shape stays."""
    x, y = _place(surface, canvas, rng, margin_mm=9.0)
    radius = rng.uniform(5.0, 8.0)
    ragged = 1 + np.float32(0.35) * value_noise(rng, canvas.size, 18)
    blot = smooth_step((np.float32(radius) - canvas.distance_mm(x, y) * ragged) / np.float32(1.5))
    strength = 0.15 + 0.35 * severity
    tint = 1 - strength * rng.uniform(0.8, 1.2, 3)
    if rng.integers(4) == 0:  # bleached instead of soiled
        tint = 1 / tint
    factor = 1 + (tint.astype(np.float32) - 1) * blot[..., None]
    return replace(surface, albedo=np.clip(surface.albedo * factor, 0, 0.95))


def dent(surface: Surface, canvas: Canvas, rng: np.random.Generator, severity: float) -> Surface:
    """The surface with a smooth dent, 0.7 to 2.8 mm deep; the reflectance stays."""
    return replace(surface, height_mm=surface.height_mm - _blob(surface, canvas, rng, severity))


def bump(surface: Surface, canvas: Canvas, rng: np.random.Generator, severity: float) -> Surface:
    """The surface with a smooth bump, 0.7 to 2.8 mm high; the reflectance stays."""
    return replace(surface, height_mm=surface.height_mm + _blob(surface, canvas, rng, severity))


def crack(surface: Surface, canvas: Canvas, rng: np.random.Generator, severity: float) -> Surface:
    """The surface with a crooked groove, 0.6 to 2 mm deep and 18 to 40 mm long, that is also
    darker by 25 to 60 %."""
    x, y = _place(surface, canvas, rng, margin_mm=8.0)
    steps = 10
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.uniform(-0.55, 0.55, steps))
    moves = np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    moves *= (18 + 22 * severity) / steps
    corners = np.array([x, y]) + np.concatenate([[[0.0, 0.0]], np.cumsum(moves, axis=0)])
    corners -= (corners[-1] - corners[0]) / 2
    # At least about a pixel wide: a narrower one would fall between the pixels of a small image.
    half_width = max(0.5 + 0.3 * severity, 0.6 * canvas.pixel_mm)
    line = np.maximum(1 - _distance_to_line(canvas, corners) / np.float32(half_width + 0.2), 0)
    line = np.minimum(line * 1.6, 1) * (surface.coverage > 0.5)
    height = surface.height_mm - np.float32(0.6 + 1.4 * severity) * line
    darker = 1 - np.float32(0.25 + 0.35 * severity) * line
    return replace(surface, height_mm=height, albedo=surface.albedo * darker[..., None])


SURFACE_DEFECTS: dict[str, Callable[[Surface, Canvas, np.random.Generator, float], Surface]] = {
    "stain": stain,
    "dent": dent,
    "bump": bump,
    "crack": crack,
}
"""By name what spoils a nominal surface, given the part's coordinates, the source of the lots and
the severity, 0 to 1."""


def changed_pixels(nominal: Surface, changed: Surface) -> NDArray[np.bool_]:
    """(S, S) bool: where a part differs from what it would be without the defect.

    Args:
        nominal: The surface without the defect.
        changed: The surface with it.

    Returns:
        True on the part where the shape moved by more than 0.15 mm or the reflectance of a channel
        changed by more than 5 %.
    """
    moved = np.abs(changed.height_mm - nominal.height_mm) > MIN_SHAPE_CHANGE_MM
    difference = np.abs(changed.albedo - nominal.albedo)
    recoloured = (difference > MIN_COLOUR_CHANGE * nominal.albedo).any(axis=-1)
    return (moved | recoloured) & (nominal.coverage > 0.5)


def _blob(surface: Surface, canvas: Canvas, rng: np.random.Generator, severity: float) -> Field:
    """(S, S) float32 mm: a smooth oval hill of 0.7 to 2.8 mm on the part."""
    radius = rng.uniform(6.0, 10.0)
    x, y = _place(surface, canvas, rng, margin_mm=radius)
    stretch, angle = rng.uniform(0.7, 1.0), rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    from_x, from_y = canvas.x_mm - np.float32(x), canvas.y_mm - np.float32(y)
    along, across = cos * from_x + sin * from_y, cos * from_y - sin * from_x
    hill = bowl(length(along, across / np.float32(stretch)), radius)
    return np.float32(0.7 + 2.1 * severity) * hill * surface.coverage


def _place(
    surface: Surface, canvas: Canvas, rng: np.random.Generator, *, margin_mm: float
) -> tuple[float, float]:
    """A place on the part, `margin_mm` away from its edge, not too black to show a stain."""
    radius = max(1, round(margin_mm / canvas.pixel_mm))
    inside = box_blur(surface.coverage, radius) > 0.999
    candidates = np.flatnonzero(inside & (surface.albedo.max(axis=-1) > 0.08))
    # A fraction instead of an index, so that the place hardly depends on the image's size.
    chosen = candidates[int(rng.uniform() * len(candidates))]
    return float(canvas.x_mm.flat[chosen]), float(canvas.y_mm.flat[chosen])


def _distance_to_line(canvas: Canvas, corners: NDArray[np.float64]) -> Field:
    """(S, S) float32 mm: the distance to a polyline; inf beyond 4 mm around its bounding box."""
    low, high = corners.min(axis=0) - 4, corners.max(axis=0) + 4
    near = (canvas.x_mm > low[0]) & (canvas.x_mm < high[0])
    near &= (canvas.y_mm > low[1]) & (canvas.y_mm < high[1])
    points = np.stack([canvas.x_mm[near], canvas.y_mm[near]], axis=-1)  # (P, 2)
    nearest = np.full(len(points), np.inf)
    for start, end in pairwise(corners):
        way = end - start
        t = np.clip((points - start) @ way / (way @ way), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - start - t[:, None] * way, axis=-1))
    distance = np.full(canvas.x_mm.shape, np.inf, dtype=np.float32)
    distance[near] = nearest
    return distance
