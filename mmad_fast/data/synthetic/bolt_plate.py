"""Bolt plate: a brass disc is a bolt's dome, a black one is a bore."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmad_fast.data.synthetic.noise import fractal_noise, line_noise
from mmad_fast.data.synthetic.surface import (
    Canvas,
    Colour,
    Place,
    Surface,
    dome,
    paint,
    rounded_rectangle,
    smooth_step,
    uniform_albedo,
)

STEEL: Colour = (0.34, 0.37, 0.41)
BRASS: Colour = (0.50, 0.33, 0.10)
BLACK: Colour = (0.045, 0.045, 0.05)
SLOTS: tuple[Place, ...] = tuple((x, y) for y in (-21.0, 21.0) for x in (-33.0, 0.0, 33.0))


@dataclass(frozen=True)
class BoltPlate:
    """A milled plate with six bores, some of which hold a bolt; per slot True means a bolt."""

    painted: tuple[bool, ...]
    raised: tuple[bool, ...]
    thickness_mm: float
    texture_seed: int


def sample(rng: np.random.Generator) -> BoltPlate:
    """A plate with two to four bolts."""
    bolts = set(rng.permutation(len(SLOTS))[: rng.integers(2, 5)].tolist())
    filled = tuple(slot in bolts for slot in range(len(SLOTS)))
    return BoltPlate(filled, filled, rng.uniform(7.6, 8.4), int(rng.integers(2**32)))


def mismatch(part: BoltPlate, rng: np.random.Generator, severity: float) -> BoltPlate:
    """The plate with one slot (severity above 0.7: two) in the colour of the other kind."""
    wrong = set(rng.permutation(len(SLOTS))[: 2 if severity > 0.7 else 1].tolist())
    return replace(
        part, painted=tuple(bolt != (slot in wrong) for slot, bolt in enumerate(part.painted))
    )


def draw(part: BoltPlate, canvas: Canvas) -> Surface:
    """The plate's surface."""
    rng = np.random.default_rng(part.texture_seed)
    edge = rounded_rectangle(canvas, 50.0, 38.0, 7.0)
    brushed = line_noise(rng, canvas.y_mm, low=-60.0, cells=170, step=0.7)
    shade = 1 + 0.06 * brushed + 0.10 * fractal_noise(rng, canvas.size, cells=9, octaves=3)
    albedo = uniform_albedo(STEEL, shade)
    height = np.float32(part.thickness_mm) * smooth_step(-edge / 1.5)
    height += np.float32(0.03) * brushed
    for (x, y), painted, raised in zip(SLOTS, part.painted, part.raised, strict=True):
        distance = canvas.distance_mm(x, y)
        disc = canvas.inside(distance - 7.5)
        if raised:
            height += 1.2 * smooth_step((7.5 - distance) / 1.2) + 2.4 * dome(distance, 7.5)
        else:
            height -= 3.6 * smooth_step((7.5 - distance) / 2.4)
        albedo = paint(albedo, BRASS if painted else BLACK, disc)
    return Surface(height, albedo, canvas.inside(edge))
