"""pixel_mapping in both directions against torch eager, in turns in one run.

The published code maps all 50,176 pixels and drops the background afterwards: its time does not
depend on how many pixels are foreground. Its dense feature maps are given to it.

python bench/peers/pixel_mapping.py [--only 14k]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peer_rows import Agreement, Case, Contender, DisagreementError, compare, parse_options

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from ops.cases import depth_frame
from ops.feature_cases import mapping_network

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.pixel_mapping import MappingNetwork, bilinear_rows, pixel_mapping
from mmad_fast.ops.sparse_rows import SparseRows

SIDE, TOKEN_GRID, NUM_CENTERS = 224, 28, 1024
RGB_CHANNELS, POINT_CHANNELS, HIDDEN = 768, 1152, 960
# Foreground pixels and a share of the frame that gives a few more; 14,049 are 28 %.
PIXELS = {"10k": (10_000, 0.2), "14k": (14_049, 0.28), "25k": (25_000, 0.5), "49k": (49_000, 1.7)}
MAX_DIFFERENCE = 1e-5

Psi = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Scene:
    """Features of one scan and the networks of both directions.

    Attributes:
        tokens, token_rows: (784, 768) and P rows over them.
        groups, group_rows: (1024, 1152) and P rows over them.
        pixels: (P,) row-major foreground pixels.
        networks: rgb to point, point to rgb.
    """

    tokens: NDArray[np.float32]
    token_rows: SparseRows
    groups: NDArray[np.float32]
    group_rows: SparseRows
    pixels: NDArray[np.int64]
    networks: tuple[MappingNetwork, MappingNetwork]


def scene(num_pixels: int, coverage: float) -> Scene:
    """A synthetic part of a little more than that many pixels, some of them left out."""
    frame = depth_frame(SIDE, coverage=coverage)
    centers = frame.points[farthest_point_sampling(frame.points, NUM_CENTERS)]
    pooled = pooled_interpolation_rows(
        inverse_distance_weights(frame.points, centers),
        frame.pixel_indices,
        num_centers=NUM_CENTERS,
        grid_size=SIDE,
        output_size=SIDE,
    )
    kept = np.linspace(0, len(pooled.pixel_indices) - 1, num_pixels).astype(np.int64)
    pixels = pooled.pixel_indices[kept]
    rng = np.random.default_rng(0)
    sizes = (RGB_CHANNELS, HIDDEN, HIDDEN, POINT_CHANNELS)
    return Scene(
        rng.standard_normal((TOKEN_GRID**2, RGB_CHANNELS), np.float32),
        bilinear_rows(pixels, token_grid=TOKEN_GRID, output_size=SIDE),
        rng.standard_normal((NUM_CENTERS, POINT_CHANNELS), np.float32),
        pooled.rows.select(kept),
        pixels,
        (mapping_network(sizes), mapping_network(sizes[::-1], seed=1)),
    )


def ours(scene: Scene) -> Psi:
    rgb, point = (scene.tokens, scene.token_rows), (scene.groups, scene.group_rows)
    return (
        pixel_mapping(*rgb, *point, scene.networks[0]),
        pixel_mapping(*point, *rgb, scene.networks[1]),
    )


def torch_eager(scene: Scene, *, foreground_only: bool) -> Callable[[], Psi]:
    """Both networks and discrepancies as published, on given feature maps.

    Args:
        foreground_only: Only the P foreground pixels, which the published code does not do.
    """
    import torch
    from torch.nn import functional

    rgb, point = (
        torch.from_numpy(rows.apply(features))
        for rows, features in (
            (scene.token_rows, scene.tokens),
            (scene.group_rows, scene.groups),
        )
    )
    pixels = torch.from_numpy(scene.pixels)
    if not foreground_only:
        rgb, point = (
            torch.zeros(SIDE**2, features.shape[1]).index_copy(0, pixels, features)
            for features in (rgb, point)
        )
    layers = [
        [
            (torch.from_numpy(weight), torch.from_numpy(bias))
            for weight, bias in zip(network.weights, network.biases, strict=True)
        ]
        for network in scene.networks
    ]

    def discrepancy(hidden: torch.Tensor, target: torch.Tensor, network: list) -> NDArray:
        for index, (weight, bias) in enumerate(network):
            hidden = functional.linear(functional.gelu(hidden) if index else hidden, weight, bias)
        difference = functional.normalize(hidden, dim=-1) - functional.normalize(target, dim=-1)
        psi = difference.norm(dim=-1)
        return (psi if foreground_only else psi[pixels]).numpy()

    @torch.inference_mode()
    def both() -> Psi:
        return discrepancy(rgb, point, layers[0]), discrepancy(point, rgb, layers[1])

    return both


def run(scene: Scene, options: argparse.Namespace) -> None:
    expected = ours(scene)

    def agreement(got: Psi) -> Agreement:
        difference = max(float(np.abs(g - e).max()) for g, e in zip(got, expected, strict=True))
        if not difference <= MAX_DIFFERENCE:
            raise DisagreementError(f"psi differs by {difference:.2g}")
        return Agreement("same psi", f"within {difference:.0e}")

    case = Case("pixel_mapping", "synthetic part", {"P": len(scene.pixels)}, agreement)
    contenders = [
        Contender("mmad-fast", lambda: lambda: ours(scene), is_ours=True),
        Contender(
            "torch eager, dense",
            lambda: torch_eager(scene, foreground_only=False),
            note="feature maps of 50,176 pixels are given, not timed",
            max_runs=3 if len(scene.pixels) == PIXELS["14k"][0] else 1,
        ),
        Contender(
            "torch eager, foreground",
            lambda: torch_eager(scene, foreground_only=True),
            note="features of the foreground pixels are given, not timed",
            max_runs=3,
        ),
    ]
    compare(case, contenders, options)


def main() -> None:
    options = parse_options(__doc__, parts=tuple(PIXELS), runs=7, budget_s=16.0)
    for name, (num_pixels, coverage) in PIXELS.items():
        if options.only in (None, name):
            run(scene(num_pixels, coverage), options)


if __name__ == "__main__":
    main()
