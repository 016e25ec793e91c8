"""Times pixel_mapping against the published dense form in the same run, and the GEMM under it
against NumPy's and torch's: one JSON line per row.

    env -u OPENBLAS_CORETYPE python bench/ops/bench_pixel_mapping.py [--threads 2] [--gemm 1]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from op_rows import parse_options, print_rows
from ops.cases import depth_frame
from ops.feature_cases import CFM_SIZES, MappingCase, mapping_network

from mmad_fast import _kernels
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.pixel_mapping import bilinear_rows, pixel_mapping
from mmad_fast.ops.sparse_rows import SparseRows

GRID = 224
COVERAGES = (0.248, 0.175, 0.5, 1.3)  # pooling widens the first to 28 % of the map; 10k to 50k
GEMM_SIZES = [  # (m, n, k)
    (784, 960, 768),
    (1024, 1152, 1152),
    (14000, 960, 960),
    (14000, 1152, 960),
    (131072, 512, 128),
    (131072, 384, 512),
]


@dataclass(frozen=True)
class Scene:
    """How the foreground pixels of a depth frame mix tokens and groups.

    Attributes:
        token_rows: (P x 784).
        point_rows: (P x 1024).
        pixel_indices: (P,) on the 224 x 224 grid.
    """

    token_rows: SparseRows
    point_rows: SparseRows
    pixel_indices: NDArray[np.int64]


def scene(coverage: float) -> Scene:
    frame = depth_frame(GRID, coverage=coverage)
    centers = frame.points[farthest_point_sampling(frame.points, 1024)]
    point_rows, pixel_indices = pooled_interpolation_rows(
        inverse_distance_weights(frame.points, centers),
        frame.pixel_indices,
        num_centers=1024,
        grid_size=GRID,
        output_size=GRID,
    )
    return Scene(bilinear_rows(pixel_indices, token_grid=28), point_rows, pixel_indices)


def both_directions(where: Scene, sizes: tuple[int, ...]) -> tuple[MappingCase, MappingCase]:
    """The cases of RGB to points, whose network has these sizes, and of points to RGB."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((784, sizes[0])).astype(np.float32)
    groups = rng.standard_normal((1024, sizes[-1])).astype(np.float32)
    return (
        MappingCase(tokens, where.token_rows, groups, where.point_rows, mapping_network(sizes)),
        MappingCase(
            groups, where.point_rows, tokens, where.token_rows, mapping_network(sizes[::-1])
        ),
    )


def fused(cases: tuple[MappingCase, ...]) -> NDArray[np.float32]:
    return np.stack([pixel_mapping(*case.arguments) for case in cases])


def dense_torch(
    cases: tuple[MappingCase, MappingCase], where: Scene, num_threads: int
) -> Callable[[], NDArray[np.float32]]:
    """psi as published: both networks on every pixel of the map, background included, from dense
    features that are there already. Returns what it finds at the foreground."""
    import torch

    torch.set_num_threads(num_threads)
    functional = torch.nn.functional
    dense = []
    for case in cases:
        features = np.zeros((GRID * GRID, case.source_features.shape[1]), np.float32)
        features[where.pixel_indices] = case.source_rows.apply(case.source_features)
        dense.append(torch.from_numpy(features))
    layers = [
        [
            (torch.from_numpy(weight), torch.from_numpy(bias))
            for weight, bias in zip(case.network.weights, case.network.biases, strict=True)
        ]
        for case in cases
    ]

    def psi() -> NDArray[np.float32]:
        found = []
        for source, target, network in zip(dense, dense[::-1], layers, strict=True):
            hidden = source
            for layer, (weight, bias) in enumerate(network):
                hidden = functional.gelu(hidden) if layer else hidden
                hidden = functional.linear(hidden, weight, bias)
            difference = functional.normalize(hidden, dim=-1) - functional.normalize(target, dim=-1)
            found.append(difference.norm(dim=-1).numpy()[where.pixel_indices])
        return np.stack(found)

    return psi


def truth_at(cases: tuple[MappingCase, ...], pixels: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.stack(
        [
            pixel_mapping(
                case.source_features,
                case.source_rows.select(pixels),
                case.target_features,
                case.target_rows.select(pixels),
                case.network,
                backend="reference",
            )
            for case in cases
        ]
    )


def bench_mapping(options: argparse.Namespace) -> None:
    for coverage in COVERAGES:
        where = scene(coverage)
        num_pixels = len(where.pixel_indices)
        some = np.arange(0, num_pixels, num_pixels // 100)
        for name, sizes in CFM_SIZES.items():
            cases = both_directions(where, sizes)
            truth = truth_at(cases, some)
            functions = {"cpu": lambda c=cases: fused(c)}
            if find_spec("torch") and coverage == COVERAGES[0]:
                functions["torch, dense, all pixels (slow)"] = dense_torch(
                    cases, where, options.threads
                )
            print_rows(
                "pixel_mapping, both directions",
                functions,
                lambda got, at=some, expected=truth: float(np.abs(got[:, at] - expected).max()),
                shapes={"P": num_pixels, "grid": GRID, "layers": sizes, "variant": name},
                options=options,
                max_error=2e-6,
            )


def kernel_gemm(a: NDArray[np.float32], packed: Any, c: NDArray[np.float32]) -> NDArray[np.float32]:
    _kernels.gemm(a, packed, c)
    return c


def torch_gemm(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32], num_threads: int
) -> Callable[[], NDArray[np.float32]]:
    import torch

    torch.set_num_threads(num_threads)
    left, right, out = torch.from_numpy(a), torch.from_numpy(b).T, torch.from_numpy(c)

    def multiply() -> NDArray[np.float32]:
        torch.mm(left, right, out=out)
        return c

    return multiply


def bench_gemm(options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    for m, n, k in GEMM_SIZES:
        a = rng.standard_normal((m, k)).astype(np.float32)
        b = rng.standard_normal((n, k)).astype(np.float32)
        packed = _kernels.PackedMatrix(b, _kernels.best_instruction_set())
        unwritten = np.full((3, m, n), np.nan, np.float32)  # one result per backend
        truth = a[:50].astype(np.float64) @ b.T.astype(np.float64)
        functions = {
            "cpu": lambda a=a, packed=packed, c=unwritten[0]: kernel_gemm(a, packed, c),
            "numpy": lambda a=a, b=b, c=unwritten[1]: np.matmul(a, b.T, out=c),
        }
        if find_spec("torch"):
            functions["torch"] = torch_gemm(a, b, unwritten[2], options.threads)
        print_rows(
            "gemm",
            functions,
            lambda got, expected=truth: float(np.abs(got[:50] - expected).max()),
            shapes={"m": m, "n": n, "k": k},
            options=options,
            max_error=3e-4,
            flop=2.0 * m * n * k,
        )


def main() -> None:
    options = parse_options(__doc__, runs=7, gemm=1)
    if options.gemm:
        bench_gemm(options)
    bench_mapping(options)


if __name__ == "__main__":
    main()
