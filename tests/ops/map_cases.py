"""Feature levels that the tests of cosine_maps share, and the map of plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Levels = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class MapCase:
    """Shapes (C, H, W) of the levels, and the side of the map."""

    name: str
    shapes: tuple[tuple[int, int, int], ...]
    size: int


CASES = (
    MapCase("published-quarter", ((64, 16, 16), (128, 8, 8), (256, 4, 4)), 64),
    MapCase("one-level-one-pixel", ((5, 1, 1),), 9),
    MapCase("one-place", ((3, 4, 4), (1, 2, 2)), 1),
    MapCase("ragged", ((7, 63, 5), (1, 1, 9), (65, 3, 7)), 63),
    MapCase("larger-than-the-map", ((16, 21, 13),), 7),
    MapCase("as-a-transformer", ((96, 28, 28),) * 3, 56),
)


def make_levels(case: MapCase, *, seed: int = 0) -> tuple[Levels, Levels]:
    """(targets, restored): restored ones are near, and one pixel of each map has features of 0."""
    rng = np.random.default_rng(seed)
    targets = [rng.standard_normal(shape).astype(np.float32) for shape in case.shapes]
    restored = [
        target + np.float32(0.3) * rng.standard_normal(target.shape).astype(np.float32)
        for target in targets
    ]
    for target, other in zip(targets, restored, strict=True):
        target[:, 0, 0] = 0
        other[:, -1, -1] = 0
    return targets, restored


def torch_map(
    targets: Levels,
    restored: Levels,
    *,
    size: int,
    sigma: float = 4.0,
    align_corners: bool = True,
) -> NDArray[np.float64]:
    """(S, S) as the published code has it, in float64."""
    total = torch.zeros(size, size, dtype=torch.float64)
    for target, other in zip(targets, restored, strict=True):
        pair = (torch.from_numpy(target).double(), torch.from_numpy(other).double())
        distances = 1 - F.cosine_similarity(*pair, dim=0)
        total += F.interpolate(
            distances[None, None], size=(size, size), mode="bilinear", align_corners=align_corners
        )[0, 0]
    return gaussian_filter(total.numpy(), sigma) if sigma else total.numpy()
