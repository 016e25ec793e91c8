"""Times inverse distance weights, dense features and pooled rows against peers in the same run.

The peer of the weights is scipy's k-d tree; that of the dense features is writing an array of their
size from one thread; that of the rows is what they replace, the dense steps
of the published code in torch on 1152 channels (rows are needed once per scan, for all channels).

python bench/ops/bench_inverse_distance_interpolation.py [--threads 2] [--runs 15] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    InterpolationWeights,
    PooledRows,
    inverse_distance_interpolation,
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.point_index import PointIndex

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from bench_clouds import bench_clouds
from op_rows import parse_options, print_rows
from ops.cases import Frame, depth_frame

NUM_CENTERS = 1024
NUM_CHANNELS = 1152
MAX_DENSE_POINTS = 60_000  # 276 MB of dense features


def scipy_tree(
    points: NDArray[np.float32], centers: NDArray[np.float32], workers: int
) -> InterpolationWeights:
    distances, indices = cKDTree(centers).query(points, 3, workers=workers)
    weights = 1 / (distances**2 + 1e-8)
    return InterpolationWeights(indices, weights / weights.sum(axis=1, keepdims=True))


def bench_weights(name: str, points: NDArray[np.float32], options: argparse.Namespace) -> None:
    index = PointIndex(points)
    centers = points[farthest_point_sampling(points, NUM_CENTERS, index=index)]
    truth = np.sort(scipy_tree(points, centers, options.threads).weights)
    shapes = {"cloud": name, "N": len(points), "G": NUM_CENTERS}
    print_rows(
        "inverse_distance_weights",
        {
            "cpu": lambda: inverse_distance_weights(points, centers),
            "cpu, index given": lambda: inverse_distance_weights(points, centers, index=index),
            "scipy cKDTree": lambda: scipy_tree(points, centers, options.threads),
        },
        lambda got: float(np.abs(np.sort(got.weights) - truth).max()),
        shapes=shapes,
        options=options,
        max_error=1e-5,
    )
    if len(points) > MAX_DENSE_POINTS:
        return
    features = np.random.default_rng(0).normal(size=(NUM_CENTERS, NUM_CHANNELS))
    features = features.astype(np.float32)
    indices, weights = inverse_distance_weights(points, centers, index=index)
    terms = (weights[::101, k : k + 1] * features[indices[::101, k]] for k in range(3))
    dense = sum(terms)

    def fill() -> NDArray[np.float32]:
        return np.full((len(points), NUM_CHANNELS), 1, np.float32)

    print_rows(
        "inverse_distance_interpolation",
        {
            "cpu, index given": lambda: inverse_distance_interpolation(
                features, centers, points, index=index
            ),
            "numpy fill of the result's size": fill,
        },
        lambda got: 0.0 if (got[0] == 1).all() else float(np.abs(got[::101] - dense).max()),
        shapes={**shapes, "C": NUM_CHANNELS},
        options=options,
        max_error=1e-5,
    )


def dense_steps(frame: Frame, point_features: torch.Tensor, output_size: int) -> torch.Tensor:
    channels, side = point_features.shape[0], frame.grid_size
    grid = torch.zeros(1, channels, side * side)
    grid[0][:, torch.from_numpy(frame.pixel_indices)] = point_features
    smoothed = torch.nn.functional.avg_pool2d(grid.view(1, channels, side, side), 3, 1)
    return torch.nn.functional.adaptive_avg_pool2d(smoothed, output_size)[0].flatten(1)


def bench_rows(frame: Frame, weights: InterpolationWeights, options: argparse.Namespace) -> None:
    features = np.random.default_rng(0).uniform(1, 2, (NUM_CENTERS, 4)).astype(np.float32)
    for output_size in (224, 56, 28):
        values = (weights.weights[:, :, None] * features[weights.indices]).sum(axis=1)
        truth = dense_steps(frame, torch.from_numpy(values.T.copy()), output_size).T.numpy()

        def error_of(got: PooledRows | torch.Tensor, truth: NDArray[np.float32] = truth) -> float:
            if isinstance(got, torch.Tensor):
                return 0.0  # the same function, on more channels
            dense = np.zeros_like(truth)
            dense[got.pixel_indices] = got.rows.apply(features)
            return float(np.abs(dense - truth).max())

        def rows(output_size: int = output_size) -> PooledRows:
            return pooled_interpolation_rows(
                weights,
                frame.pixel_indices,
                num_centers=NUM_CENTERS,
                grid_size=frame.grid_size,
                output_size=output_size,
            )

        wide = torch.ones(NUM_CHANNELS, len(frame.points))
        functions: dict[str, Callable[[], PooledRows | torch.Tensor]] = {
            "cpu": rows,
            f"torch, dense, {NUM_CHANNELS} channels (slow)": lambda size=output_size, wide=wide: (
                dense_steps(frame, wide, size)
            ),
        }
        print_rows(
            "pooled_interpolation_rows",
            functions,
            error_of,
            shapes={"N": len(frame.points), "G": NUM_CENTERS, "side": output_size},
            options=options,
            max_error=1e-5,
        )


def main() -> None:
    options = parse_options(__doc__)
    torch.set_num_threads(options.threads)
    for name, points in bench_clouds(options.data):
        bench_weights(name, points, options)
    frame = depth_frame()
    centers = frame.points[farthest_point_sampling(frame.points, NUM_CENTERS)]
    bench_rows(frame, inverse_distance_weights(frame.points, centers), options)


if __name__ == "__main__":
    main()
