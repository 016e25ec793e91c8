"""The camera above the conveyor, and how it sees a surface: points, light, noise, holes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmad_fast.data.synthetic.noise import Field, box_blur, fractal_noise
from mmad_fast.data.synthetic.surface import Canvas, Surface

Vectors = NDArray[np.floating]
"""(S, S, 3) float32."""

CONVEYOR = (0.055, 0.058, 0.062)
DEPTH_NOISE_M = 0.0001
MAX_INCIDENCE_DEGREES = 75.0
MAX_DEPTH_STEP_M = 0.004
SINGLE_HOLES = 0.0005
QUANTUM_M = 2.0**-16


@dataclass(frozen=True)
class View:
    """A pinhole camera over a tilted conveyor, and where the part lies.

    Attributes:
        rays: (S, S, 3) float32, the direction through each pixel's centre, z = 1.
        center: (3,) float64 metres, where the optical axis meets the conveyor.
        normal: (3,) float64, the conveyor's unit normal, towards the camera.
        focal_px: Focal length in pixels; the principal point is (S / 2, S / 2).
        lamp: (3,) float64 metres, the lamp's place in the camera frame.
        power: The lamp's power; 1 is usual.
    """

    rays: Vectors
    center: NDArray[np.float64]
    normal: NDArray[np.float64]
    focal_px: float
    lamp: NDArray[np.float64]
    power: float


def sample_view(
    rng: np.random.Generator, size: int, *, view_mm: float, height_mm: float, distance_m: float
) -> View:
    """A camera that sees `view_mm` from edge to edge, the conveyor tilted by 2 to 4 degrees.

    Args:
        rng: Draws the tilt and the lamp.
        size: S in pixels.
        view_mm: What the image shows at the part's height.
        height_mm: The part's height.
        distance_m: From the camera to the conveyor along the optical axis.
    """
    focal = size * (distance_m - height_mm / 1000) * 1000 / view_mm
    tilt, towards = np.radians(rng.uniform(2.0, 4.0)), rng.uniform(0, 2 * np.pi)
    normal = -np.array(
        [np.sin(tilt) * np.cos(towards), np.sin(tilt) * np.sin(towards), np.cos(tilt)]
    )
    lamp = np.array([-0.22, -0.28, 0.05]) + rng.uniform(-0.04, 0.04, 3)
    steps = (np.arange(size) + 0.5 - size / 2) / focal
    rays = np.stack([*np.meshgrid(steps, steps), np.ones((size, size))], axis=-1)
    return View(
        rays.astype(np.float32),
        np.array([0.0, 0.0, distance_m]),
        normal,
        focal,
        lamp,
        rng.uniform(0.92, 1.08),
    )


def sample_canvas(
    rng: np.random.Generator, view: View, *, height_mm: float, turn_degrees: float
) -> Canvas:
    """The part's coordinates of each pixel, for a part laid down at random.

    Args:
        rng: Draws the turn and a shift of up to 4 mm.
        view: The camera.
        height_mm: Pixels get the coordinates of their rays at this height above the conveyor.
        turn_degrees: The largest turn.
    """
    points = _points_at(view, np.full(view.rays.shape[:2], height_mm, dtype=np.float32))
    points = (points - view.center.astype(np.float32)) * np.float32(1000)
    turn = np.radians(rng.uniform(-turn_degrees, turn_degrees))
    shift = rng.uniform(-4.0, 4.0, 2)
    across = np.cross(view.normal, [0.0, 1.0, 0.0])
    across *= -np.sign(across[0]) / -np.linalg.norm(across)
    down = np.cross(across, view.normal)
    down *= np.sign(down[1])
    x = points @ across.astype(np.float32) - np.float32(shift[0])
    y = points @ down.astype(np.float32) - np.float32(shift[1])
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    pixel_mm = 1000 * (view.center[2] - height_mm / 1000) / view.focal_px
    return Canvas(cos * x + sin * y, cos * y - sin * x, float(pixel_mm))


def photograph(
    rng: np.random.Generator, view: View, surface: Surface
) -> tuple[NDArray[np.uint8], Vectors]:
    """What the camera records of a part on the conveyor.

    Args:
        rng: Source of the conveyor's texture, of the noise and of the holes.
        view: The camera.
        surface: The part.

    Returns:
        rgb (S, S, 3) uint8, and xyz (S, S, 3) float32 metres in the camera frame, registered pixel
        by pixel; missing is (0, 0, 0).
    """
    size = surface.height_mm.shape[0]
    cloud = fractal_noise(rng, size, cells=11, octaves=4, falloff=0.8)
    on_part = surface.coverage[..., None]
    belt = np.array(CONVEYOR, dtype=np.float32) * (1 + np.float32(0.5) * cloud)[..., None]
    albedo = belt + (surface.albedo - belt) * on_part
    height = surface.height_mm + np.float32(0.04) * cloud * (1 - surface.coverage)
    points = _points_at(view, height)
    normals = _normals(points)
    rgb = _expose(rng, view, points, normals, albedo, height)
    return rgb, _measure_points(rng, view, points, normals)


def _points_at(view: View, height_mm: Field) -> Vectors:
    """(S, S, 3) float32 metres: each ray's point at a height above the conveyor."""
    reach = np.float32(view.normal @ view.center) + height_mm * np.float32(0.001)
    return view.rays * (reach / (view.rays @ view.normal.astype(np.float32)))[..., None]


def _normals(points: Vectors) -> Vectors:
    """(S, S, 3) float32: unit normals towards the camera, from central differences."""
    right, down = np.empty_like(points), np.empty_like(points)
    right[:, 1:-1] = points[:, 2:] - points[:, :-2]
    right[:, 0], right[:, -1] = right[:, 1], right[:, -2]
    down[1:-1] = points[2:] - points[:-2]
    down[0], down[-1] = down[1], down[-2]
    (ax, ay, az), (bx, by, bz) = np.moveaxis(right, -1, 0), np.moveaxis(down, -1, 0)
    normals = np.stack([by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax], axis=-1)
    return normals / np.sqrt(np.einsum("hwc,hwc->hw", normals, normals))[..., None]


def _expose(
    rng: np.random.Generator,
    view: View,
    points: Vectors,
    normals: Vectors,
    albedo: Vectors,
    height_mm: Field,
) -> NDArray[np.uint8]:
    """(S, S, 3) uint8: Lambert's law, one lamp and a sky, contact shadow, blur, gamma, noise."""
    to_lamp = view.lamp.astype(np.float32) - points
    squared = np.einsum("hwc,hwc->hw", to_lamp, to_lamp)
    facing = np.einsum("hwc,hwc->hw", normals, to_lamp) / np.sqrt(squared)
    reach = np.float32(np.sum((view.lamp - view.center) ** 2))
    light = np.float32(1.2 * view.power) * np.maximum(facing, 0) * reach / squared
    size = height_mm.shape[0]
    near = box_blur(height_mm, max(1, round(size * 0.03)))
    shift = max(1, round(size * 0.02))  # the lamp stands at the upper left
    shadow = np.clip((np.roll(near, (shift, shift), axis=(0, 1)) - height_mm) * 0.09, 0, 0.75)
    occluded = np.clip((near - height_mm) * 0.05, 0, 0.5)
    light = light * (1 - shadow) + np.float32(0.36) * (1 - occluded)
    radiance = np.pad(albedo * light[..., None], ((1, 1), (1, 1), (0, 0)), mode="edge")
    radiance = 0.16 * (radiance[:-2] + radiance[2:]) + 0.68 * radiance[1:-1]
    radiance = 0.16 * (radiance[:, :-2] + radiance[:, 2:]) + 0.68 * radiance[:, 1:-1]
    grey = np.float32(255) * np.clip(radiance, 0, 1) ** np.float32(1 / 2.2)
    grey += rng.standard_normal(grey.shape, dtype=np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _measure_points(
    rng: np.random.Generator, view: View, points: Vectors, normals: Vectors
) -> Vectors:
    """(S, S, 3) float32 metres: the points with noise along their rays, holes as (0, 0, 0)."""
    depth = points[..., 2]
    size = depth.shape[0]
    missing = rng.uniform(size=depth.shape) < SINGLE_HOLES
    length = np.sqrt(np.einsum("hwc,hwc->hw", view.rays, view.rays))
    incidence = np.abs(np.einsum("hwc,hwc->hw", normals, view.rays)) / length
    missing |= incidence < np.cos(np.radians(MAX_INCIDENCE_DEGREES))
    for axis in (0, 1):
        step = np.diff(depth, axis=axis) > MAX_DEPTH_STEP_M
        missing |= np.pad(step, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    rows, columns = np.ogrid[:size, :size]
    margin = round(size * 0.06)  # the rim stays whole
    for _ in range(int(rng.integers(1, 5))):
        row, column = margin + rng.uniform(size=2) * (size - 2 * margin)
        radius = rng.uniform(1.0, 2.5) * size / 256
        missing |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    noisy = depth + np.float32(DEPTH_NOISE_M) * rng.standard_normal(depth.shape, dtype=np.float32)
    # As real sensors do; well below the noise.
    noisy = np.rint(noisy / np.float32(QUANTUM_M)) * np.float32(QUANTUM_M)
    return np.where(missing[..., None], np.float32(0), view.rays * noisy[..., None])
