"""Scans that the tests of the methods share: a bumpy dome with coloured bumps, no background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmad_fast.scan import PreparedScan, Scan


def dome_scan(seed: int, *, size: int = 96, radius: float = 0.4) -> Scan:
    """A dome of 8 cm seen from above with four coloured bumps; (0, 0, 0) around it.

    `radius` is that of the dome in image widths.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    center = 0.5 + rng.uniform(-0.03, 0.03, 2)
    from_center = np.hypot(rows - center[0], columns - center[1])
    height = 0.02 * np.sqrt(np.clip(1 - (from_center / radius) ** 2, 0, None))
    color = np.full((size, size, 3), 150.0) + 40 * height[..., None] / 0.02
    for _ in range(4):
        angle, distance = rng.uniform(0, 2 * np.pi), 0.6 * radius * rng.uniform(0.3, 1)
        spot = center + distance * np.array([np.sin(angle), np.cos(angle)])
        bump = np.exp(-(((rows - spot[0]) ** 2 + (columns - spot[1]) ** 2) / (2 * 0.03**2)))
        height = height + 0.004 * bump
        color = color + bump[..., None] * np.array([80.0, -60.0, -60.0])
    xyz = np.stack([columns * 0.2 - 0.11, rows * 0.2 - 0.11, 0.5 - height], axis=-1)
    xyz += rng.normal(0, 5e-5, xyz.shape)
    xyz[from_center > radius] = 0
    rgb = np.clip(color + rng.normal(0, 2, color.shape), 0, 255).astype(np.uint8)
    return Scan.from_arrays(rgb, xyz.astype(np.float32), name=f"dome{seed}")


def prepare_dome(
    seed: int, *, rgb_size: int, grid_size: int = 224, radius: float = 0.4
) -> PreparedScan:
    """A dome as network input, made without the preprocessing that it does not need."""
    scan = dome_scan(seed, size=rgb_size, radius=radius)
    xyz = dome_scan(seed, size=grid_size, radius=radius).xyz
    is_point = (xyz != 0).all(axis=-1).ravel()
    return PreparedScan(
        rgb=((scan.rgb.transpose(2, 0, 1) / 255 - 0.45) / 0.225).astype(np.float32),
        xyz=xyz,
        points=xyz.reshape(-1, 3)[is_point],
        pixel_indices=np.flatnonzero(is_point).astype(np.int64),
        native_size=(rgb_size, rgb_size),
        padding=(0, 0, 0, 0),
        name=scan.name,
    )


@pytest.fixture(scope="session")
def make_dome() -> Callable[..., Scan]:
    return dome_scan


@pytest.fixture(scope="session")
def make_prepared_dome() -> Callable[..., PreparedScan]:
    return prepare_dome
