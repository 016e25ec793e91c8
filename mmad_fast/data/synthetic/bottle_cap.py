"""Bottle cap: the orange mark lies in the notch, the white star is embossed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmad_fast.data.synthetic.noise import fractal_noise, value_noise
from mmad_fast.data.synthetic.surface import (
    Canvas,
    Colour,
    Surface,
    bowl,
    length,
    paint,
    smooth_step,
    uniform_albedo,
)

PLASTIC: tuple[Colour, ...] = ((0.05, 0.20, 0.13), (0.05, 0.12, 0.30))
ORANGE: Colour = (0.62, 0.22, 0.03)
WHITE: Colour = (0.62, 0.61, 0.57)
MARK_RADIUS_MM = 32.0


@dataclass(frozen=True)
class BottleCap:
    """A knurled cap: angles (rad) of the mark's colour and notch, the star's colour and relief."""

    mark_colour: float
    mark_notch: float
    star_colour: float
    star_relief: float
    plastic: int
    texture_seed: int


def sample(rng: np.random.Generator) -> BottleCap:
    """A cap whose mark and star are turned at random."""
    mark, star = rng.uniform(0, 2 * np.pi, 2).tolist()
    plastic = int(rng.integers(len(PLASTIC)))
    return BottleCap(mark, mark, star, star, plastic, int(rng.integers(2**32)))


def mismatch(part: BottleCap, rng: np.random.Generator, severity: float) -> BottleCap:
    """The cap with its mark printed 25 to 90 degrees beside the notch, or its star turned by 15 to
    36 degrees."""
    side = 1.0 if rng.integers(2) else -1.0
    if rng.integers(3):
        off = np.radians(25 + 65 * severity)
        return replace(part, mark_colour=part.mark_notch + side * off)
    return replace(part, star_colour=part.star_relief + side * np.radians(15 + 21 * severity))


def draw(part: BottleCap, canvas: Canvas) -> Surface:
    """The cap's surface."""
    rng = np.random.default_rng(part.texture_seed)
    radius, angle = length(canvas.x_mm, canvas.y_mm), np.arctan2(canvas.y_mm, canvas.x_mm)
    edge = radius - 47 - np.float32(0.7) * np.cos(40 * angle)
    grain = fractal_noise(rng, canvas.size, cells=40, octaves=2)
    cloud = value_noise(rng, canvas.size, 6)
    albedo = uniform_albedo(PLASTIC[part.plastic], 1 + 0.10 * grain + 0.06 * cloud)
    height = 10.5 * smooth_step(-edge / 4) + 1.3 * bowl(radius - 41, 2.6)
    height += 0.06 * grain + 0.12 * cloud
    turns = np.float32(MARK_RADIUS_MM)
    notch = canvas.distance_mm(turns * np.cos(part.mark_notch), turns * np.sin(part.mark_notch))
    mark = canvas.distance_mm(turns * np.cos(part.mark_colour), turns * np.sin(part.mark_colour))
    height -= 2.0 * smooth_step((5.2 - notch) / 2.6)
    albedo = paint(albedo, ORANGE, canvas.inside(mark - 4.6))
    star = radius - 14 - 4.5 * np.cos(5 * (angle - np.float32(part.star_relief)))
    height += 1.3 * smooth_step(-star / 1.8)
    star = radius - 14 - 4.5 * np.cos(5 * (angle - np.float32(part.star_colour)))
    albedo = paint(albedo, WHITE, canvas.inside(star / 1.6))
    return Surface(height * (edge < 0), albedo, canvas.inside(edge))
