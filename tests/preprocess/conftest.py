"""Scans that the preprocessing tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmad_fast.scan import Scan

PIXEL_PITCH_M = 0.0008
TABLE_DEPTH_M = 0.46


def table_scan(
    height: int = 96, width: int = 96, *, radius_px: float = 24, rise_m: float = 0.02, seed: int = 0
) -> Scan:
    """A noisy tilted table with a round block on it, 2 % of the pixels not measured."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    # Half a pixel off centre: no measured coordinate is exactly zero.
    x = (columns - width / 2 + 0.25) * PIXEL_PITCH_M
    y = (rows - height / 2 + 0.25) * PIXEL_PITCH_M
    z = TABLE_DEPTH_M + 0.03 * x - 0.02 * y + rng.normal(0, 1e-4, (height, width))
    z[block_mask(height, width, radius_px)] -= rise_m
    xyz = np.stack([x, y, z], axis=-1)
    xyz[rng.random((height, width)) < 0.02] = 0
    rgb = rng.integers(1, 256, (height, width, 3), dtype=np.uint8)
    return Scan.from_arrays(rgb, xyz, name="table")


def block_mask(height: int, width: int, radius_px: float) -> np.ndarray:
    """(H, W) bool: the pixels of table_scan's block."""
    rows, columns = np.mgrid[:height, :width]
    return (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius_px**2


@pytest.fixture
def make_table_scan() -> Callable[..., Scan]:
    return table_scan


@pytest.fixture
def make_block_mask() -> Callable[..., np.ndarray]:
    return block_mask
