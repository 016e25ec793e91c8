"""Biscuit: red is a drop of jam and a bump, dark brown is a docker hole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmad_fast.data.synthetic.noise import fractal_noise
from mmad_fast.data.synthetic.surface import (
    Canvas,
    Colour,
    Place,
    Surface,
    bowl,
    dome,
    paint,
    rounded_rectangle,
    smooth_step,
    uniform_albedo,
)

DOUGH: Colour = (0.56, 0.35, 0.15)
CRUST: Colour = (0.30, 0.14, 0.05)
HOLE: Colour = (0.15, 0.07, 0.03)
JAM: Colour = (0.36, 0.035, 0.03)


@dataclass(frozen=True)
class Biscuit:
    """A scalloped biscuit: docker holes in a grid, drops of jam in between."""

    holes: tuple[Place, ...]
    drops: tuple[Place, ...]
    drop_bumps: tuple[Place, ...]
    drop_radii: tuple[float, ...]
    texture_seed: int


def sample(rng: np.random.Generator) -> Biscuit:
    """A biscuit with three to five drops; holes under a drop are left out."""
    drops = _scatter(rng, int(rng.integers(3, 6)), half_x=34.0, half_y=22.0, apart=15.0, near=())
    grid = [(x, y) for y in (-21.0, -7.0, 7.0, 21.0) for x in (-33.0, -16.5, 0.0, 16.5, 33.0)]
    jittered = [(x + rng.uniform(-1, 1), y + rng.uniform(-1, 1)) for x, y in grid]
    holes = tuple(p for p in jittered if all(_apart(p, drop) > 8.5 for drop in drops))
    radii = tuple(rng.uniform(4.2, 5.6, len(drops)).tolist())
    return Biscuit(holes, drops, drops, radii, int(rng.integers(2**32)))


def mismatch(part: Biscuit, rng: np.random.Generator, severity: float) -> Biscuit:
    """The biscuit with the relief of a drop (severity above 0.6: of two) elsewhere than its
    colour."""
    moved = rng.permutation(len(part.drops))[: 2 if severity > 0.6 else 1].tolist()
    kept = tuple(p for index, p in enumerate(part.drop_bumps) if index not in moved)
    places = _scatter(rng, len(moved), half_x=36.0, half_y=24.0, apart=11.0, near=kept + part.drops)
    bumps = list(part.drop_bumps)
    for index, place in zip(moved, places, strict=True):
        bumps[index] = place
    return replace(part, drop_bumps=tuple(bumps))


def draw(part: Biscuit, canvas: Canvas) -> Surface:
    """The biscuit's surface."""
    rng = np.random.default_rng(part.texture_seed)
    scallops = np.cos(26 * np.arctan2(canvas.y_mm * 1.25, canvas.x_mm))
    edge = rounded_rectangle(canvas, 48.0, 37.0, 12.0) - np.float32(1.0) * scallops
    crumb = fractal_noise(rng, canvas.size, cells=26, octaves=3, falloff=0.8)
    baked = fractal_noise(rng, canvas.size, cells=5, octaves=2)
    albedo = uniform_albedo(DOUGH, 1 + 0.22 * crumb + 0.12 * baked)
    albedo = paint(albedo, CRUST, 0.75 * smooth_step(1 + edge / 7 + 0.25 * baked))
    height = 7.0 * smooth_step(-edge / 3.5) ** 0.7 + 0.8 * smooth_step(-edge / 25)
    height += 0.25 * baked + 0.12 * crumb
    to_hole = canvas.distance_to_nearest_mm(part.holes)
    height -= 1.6 * bowl(to_hole, 2.8)
    albedo = paint(albedo, HOLE, canvas.inside(to_hole - 1.5))
    for (x, y), radius in zip(part.drop_bumps, part.drop_radii, strict=True):
        height += 2.2 * dome(canvas.distance_mm(x, y), radius)
    for (x, y), radius in zip(part.drops, part.drop_radii, strict=True):
        albedo = paint(albedo, JAM, canvas.inside(canvas.distance_mm(x, y) - np.float32(radius)))
    return Surface(height * (edge < 0), albedo, canvas.inside(edge))


def _apart(one: Place, other: Place) -> float:
    return float(np.hypot(one[0] - other[0], one[1] - other[1]))


def _scatter(
    rng: np.random.Generator,
    count: int,
    *,
    half_x: float,
    half_y: float,
    apart: float,
    near: tuple[Place, ...],
) -> tuple[Place, ...]:
    """`count` places in a rectangle: of 32 tries each, the first well apart, or the farthest."""
    places: list[Place] = []
    for _ in range(count):
        tries = rng.uniform((-half_x, -half_y), (half_x, half_y), (32, 2))
        taken = np.array([*near, *places]).reshape(-1, 2)
        room = np.linalg.norm(tries[:, None] - taken[None], axis=-1).min(axis=1, initial=np.inf)
        chosen = int(np.argmax(room >= apart)) if (room >= apart).any() else int(room.argmax())
        places.append((float(tries[chosen, 0]), float(tries[chosen, 1])))
    return tuple(places)
