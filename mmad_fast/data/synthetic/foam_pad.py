"""Foam pad: a light ridge is high, a dark one is low."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmad_fast.data.synthetic.noise import fractal_noise, value_noise
from mmad_fast.data.synthetic.surface import Canvas, Colour, Surface, rounded_rectangle, smooth_step

LIGHT_FOAM: Colour = (0.52, 0.49, 0.40)
DARK_FOAM: Colour = (0.16, 0.20, 0.27)
NUM_RIDGES = 7
RIDGE_MM = 13.0


@dataclass(frozen=True)
class FoamPad:
    """A profiled pad: seven ridges, each light and high (True) or dark and low."""

    light: tuple[bool, ...]
    high: tuple[bool, ...]
    wave_phase: float
    texture_seed: int


def sample(rng: np.random.Generator) -> FoamPad:
    """A pad with two to five light ridges in any order."""
    chosen = set(rng.permutation(NUM_RIDGES)[: rng.integers(2, 6)].tolist())
    kinds = tuple(ridge in chosen for ridge in range(NUM_RIDGES))
    return FoamPad(kinds, kinds, rng.uniform(0, 2 * np.pi), int(rng.integers(2**32)))


def mismatch(part: FoamPad, rng: np.random.Generator, severity: float) -> FoamPad:
    """The pad with one ridge (severity above 0.75: two) in the colour of the other kind."""
    wrong = set(rng.permutation(NUM_RIDGES)[: 2 if severity > 0.75 else 1].tolist())
    return replace(part, light=tuple(kind != (i in wrong) for i, kind in enumerate(part.light)))


def draw(part: FoamPad, canvas: Canvas) -> Surface:
    """The pad's surface."""
    rng = np.random.default_rng(part.texture_seed)
    wave = np.float32(0.8) * np.sin(canvas.x_mm / 13 + np.float32(part.wave_phase))
    edge = rounded_rectangle(canvas, 46.0, 46.0, 8.0)
    position = (canvas.y_mm + wave) / np.float32(RIDGE_MM) + np.float32(NUM_RIDGES / 2)
    ridge = np.clip(position.astype(np.int64), 0, NUM_RIDGES - 1)
    across = np.clip(position - ridge.astype(np.float32), 0, 1)
    profile = np.sin(np.float32(np.pi) * across) ** 2
    pores = value_noise(rng, canvas.size, 90)
    pores = np.maximum(pores + value_noise(rng, canvas.size, 61) - np.float32(0.55), 0)
    cloud = fractal_noise(rng, canvas.size, cells=6, octaves=3)
    crest = np.where(part.high, 4.2, 1.6).astype(np.float32)[ridge]
    height = (10 + crest * profile) * smooth_step(-edge / 5) ** 0.6
    height += (0.2 * cloud - 0.5 * pores) * canvas.inside(edge)
    colours = np.where(np.array(part.light)[:, None], LIGHT_FOAM, DARK_FOAM).astype(np.float32)
    shade = (0.82 + 0.18 * profile) * (1 + 0.10 * cloud - 0.45 * pores)
    return Surface(height * (edge < 0), colours[ridge] * shade[..., None], canvas.inside(edge))
