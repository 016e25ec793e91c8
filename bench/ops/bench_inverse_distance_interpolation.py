"""Interpolation weights, the dense result and pooled rows against every exact peer. A search of a
peer becomes weights by NumPy, which is part of its time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from ops import case as bench
from ops.clouds import PARTS, Search, clouds, neighbor_agreement, neighbor_searches, sampled_index
from ops.inputs import Floats, Frame, Integers, depth_frame
from scipy.spatial import cKDTree

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    InterpolationWeights,
    PooledRows,
    inverse_distance_interpolation,
    inverse_distance_weights,
    pooled_interpolation_rows,
    reference,
)
from mmad_fast.ops.inverse_distance_interpolation.pixel_windows import pixel_windows

if TYPE_CHECKING:
    from gpu.device import Device

OP = "inverse_distance_interpolation"
PIECES = (*PARTS, "dense", "pooled")
NUM_CENTERS = 1024
DENSE_POINTS, DENSE_CHANNELS = 50_000, 1152
OUTPUT_SIZES = (224, 56, 28)
MAX_WEIGHT_DIFFERENCE = 1e-4
MAX_FEATURE_DIFFERENCE = 1e-4


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """The weights of every cloud, dense features of one, pooled rows of a frame."""
    for name, points in clouds(options):
        yield weights_case(name, points, options)
    if options.only == "dense":
        of_frame = argparse.Namespace(**{**vars(options), "only": "frame"})
        for name, points in clouds(of_frame, sizes=(DENSE_POINTS,)):
            yield dense_case(name, points, options)
    if options.only == "pooled":
        frame = depth_frame()
        for output_size in OUTPUT_SIZES:
            yield pooled_case(frame, output_size, options)


def weighted(search: Search, points: Floats, centers: Floats) -> InterpolationWeights:
    squared, indices = search(centers, points, 3)
    weights = 1 / (squared + 1e-8)
    weights /= weights.sum(axis=1, keepdims=True)
    return InterpolationWeights(indices, weights)  # type: ignore[arg-type]


def weights_agreement(
    got: InterpolationWeights, ours: InterpolationWeights, points: Floats, centers: Floats
) -> bench.Agreement:
    """How a peer's weights agree with ours.

    Raises:
        bench.DisagreementError: other neighbours than equally near ones, or other weights.
    """
    how = neighbor_agreement(got.indices, ours.indices, centers, points)
    difference = float(np.abs(got.weights - ours.weights).max())
    if not difference <= MAX_WEIGHT_DIFFERENCE:
        raise bench.DisagreementError(f"weights differ by {difference:.2g}")
    detail = ", ".join(filter(None, (how.detail, f"weights within {difference:.0e}")))
    return bench.Agreement(how.kind, detail)


def weights_case(name: str, points: Floats, options: argparse.Namespace) -> bench.Case:
    centers = points[farthest_point_sampling(points, NUM_CENTERS)]
    ours = inverse_distance_weights(points, centers)
    searches = neighbor_searches(options.threads)

    def peer(make: Callable[[], Search]) -> Callable[[], InterpolationWeights]:
        return partial(weighted, make(), points, centers)

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: partial(inverse_distance_weights, points, centers),
        "mmad-fast, shared index": lambda: partial(
            inverse_distance_weights, points, centers, index=sampled_index(points, NUM_CENTERS)
        ),
        **{name: partial(peer, make) for name, make in searches.items()},
        "pykdtree, no weights": lambda: partial(searches["pykdtree"](), centers, points, 3),
    }
    return bench.Case(
        "inverse_distance_weights",
        {"N": len(points), "G": NUM_CENTERS},
        bench.contenders("inverse_distance_weights", makes),
        data=name,
        check=lambda got: weights_agreement(got, ours, points, centers),
    )


def dense_case(name: str, points: Floats, options: argparse.Namespace) -> bench.Case:
    centers = points[farthest_point_sampling(points, NUM_CENTERS)]
    features = np.random.default_rng(0).standard_normal((NUM_CENTERS, DENSE_CHANNELS), np.float32)
    ours = inverse_distance_interpolation(features, centers, points)
    # The third centre is nearer than the fourth: else any of them is right.
    nearest, _ = cKDTree(centers).query(points, 4)
    is_decided = nearest[:, 3] - nearest[:, 2] > bench.RELATIVE_TIE * nearest[:, 3]
    shape = (len(points), DENSE_CHANNELS)
    pool = ThreadPoolExecutor(options.threads)

    def in_torch() -> Callable[[], Floats]:
        """The published gather and sum, on the weights of the fastest search."""
        torch = bench.with_threads(options.threads)
        search = neighbor_searches(options.threads)["pykdtree"]()
        tensor = torch.from_numpy(features)

        def interpolate() -> Floats:
            indices, weights = weighted(search, points, centers)
            chosen = tensor[torch.from_numpy(indices.astype(np.int64))]  # (N, 3, C)
            parts = torch.from_numpy(weights.astype(np.float32))[..., None]
            return (chosen * parts).sum(1).numpy()

        return interpolate

    def write() -> Floats:
        output = np.empty(shape, np.float32)
        list(pool.map(lambda rows: rows.fill(1), np.array_split(output, options.threads)))
        return output

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: lambda: inverse_distance_interpolation(features, centers, points),
        "pykdtree + torch": in_torch,
        "writing the output": lambda: write,
    }
    return bench.Case(
        OP,
        {"N": len(points), "G": NUM_CENTERS, "C": DENSE_CHANNELS},
        bench.contenders(OP, makes),
        data=name,
        error_of=lambda got: float(np.abs(got - ours)[is_decided].max()),
        max_error=MAX_FEATURE_DIFFERENCE * float(np.abs(ours).max()),
        same="same features, apart from points with tied centres",
    )


def dense_steps(frame: Frame, point_features: Any, output_size: int) -> Any:
    """(S * S, C) of (C, N): what pooled rows replace, as the published code does it in torch."""
    import torch

    channels, side = point_features.shape[0], frame.grid_size
    grid = torch.zeros(1, channels, side * side)
    grid[0][:, torch.from_numpy(frame.pixel_indices)] = point_features
    smoothed = torch.nn.functional.avg_pool2d(grid.view(1, channels, side, side), 3, 1)
    return torch.nn.functional.adaptive_avg_pool2d(smoothed, output_size)[0].flatten(1).T


def pooled_case(frame: Frame, output_size: int, options: argparse.Namespace) -> bench.Case:
    """Rows are needed once per scan, for all channels; the dense steps grow with the channels."""
    torch = bench.with_threads(options.threads)
    centers = frame.points[farthest_point_sampling(frame.points, NUM_CENTERS)]
    weights = inverse_distance_weights(frame.points, centers)
    features = np.random.default_rng(0).uniform(1, 2, (NUM_CENTERS, 4)).astype(np.float32)
    values = (weights.weights[:, :, None] * features[weights.indices]).sum(axis=1)
    truth = dense_steps(frame, torch.from_numpy(values.T.copy()), output_size).numpy()

    def error_of(got: PooledRows) -> float:
        dense = np.zeros_like(truth)
        dense[got.pixel_indices] = got.rows.apply(features)
        return float(np.abs(dense - truth).max())

    def ours() -> PooledRows:
        return pooled_interpolation_rows(
            weights,
            frame.pixel_indices,
            num_centers=NUM_CENTERS,
            grid_size=frame.grid_size,
            output_size=output_size,
        )

    wide = torch.ones(DENSE_CHANNELS, len(frame.points))
    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: ours,
        "torch, dense": lambda: lambda: dense_steps(frame, wide, output_size),
    }
    return bench.Case(
        "pooled_interpolation_rows",
        {"N": len(frame.points), "G": NUM_CENTERS, "side": output_size},
        bench.contenders("pooled_interpolation_rows", makes),
        data="synthetic part",
        error_of=error_of,
        max_error=1e-5,
    )


def work_of_weights(num_points: int, num_centers: int) -> bench.Work:
    """All N x G distances and one comparison each, in registers; three indices and weights out."""
    return bench.Work(
        plain_flop=num_points * num_centers * (bench.DISTANCE_FLOP + 1) + num_points * 9,
        device_bytes=(num_points + num_centers) * 3 * bench.FLOAT_BYTES
        + num_points * 3 * (bench.INDEX_BYTES + bench.FLOAT_BYTES),
    )


def work_of_dense(num_points: int, num_centers: int, num_channels: int) -> bench.Work:
    """Three weighted rows of features per point, written densely."""
    weights = work_of_weights(num_points, num_centers)
    return bench.Work(
        plain_flop=weights.plain_flop + 6 * num_points * num_channels,
        device_bytes=weights.device_bytes
        + num_points * 3 * (bench.INDEX_BYTES + bench.FLOAT_BYTES)
        + (num_centers + num_points) * num_channels * bench.FLOAT_BYTES,
    )


def work_of_rows(num_points: int, num_pixels: int, window: int) -> bench.Work:
    """Three entries per point under a pixel: indices and weights in, columns and values out."""
    entries = 3 * window * num_pixels
    return bench.Work(
        plain_flop=entries,
        device_bytes=num_points * 3 * (bench.INDEX_BYTES + bench.FLOAT_BYTES)
        + num_pixels * window * 2 * bench.FLOAT_BYTES
        + entries * 2 * bench.FLOAT_BYTES,
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    """Weights, dense rows and pooled rows of every frame."""
    for frame in sizes.frames:
        yield partial(gpu_cases_of, *frame, sizes, device)


def gpu_cases_of(
    side: int, coverage: float, sizes: bench.Sizes, device: Device
) -> list[bench.Case]:
    frame = depth_frame(side, coverage=coverage)
    num_groups = min(sizes.num_groups, len(frame.points))
    centers = frame.points[farthest_point_sampling(frame.points, num_groups)]
    return [
        gpu_weights_case(frame.points, centers, device),
        gpu_dense_case(frame.points, centers, sizes.channels, device),
        gpu_pooled_case(frame, centers, device),
    ]


def weight_matrix(indices: Integers, weights: NDArray, num_centers: int) -> NDArray[np.float64]:
    """(N, G): each weight at its centre."""
    matrix = np.zeros((len(indices), num_centers))
    np.add.at(matrix, (np.arange(len(indices))[:, None], indices), weights.astype(np.float64))
    return matrix


def plain_weights(points: Floats, centers: Floats, *, part: int = 4096) -> tuple[Integers, Floats]:
    """The three nearest centres and their weights, as one writes them in float32."""
    parts = []
    for some in np.array_split(points, max(1, len(points) // part)):
        difference = some[:, None] - centers[None]
        squared = (difference * difference).sum(axis=2, dtype=np.float32)
        indices = np.argsort(squared, axis=1, kind="stable")[:, :3]
        weights = np.float32(1) / (np.take_along_axis(squared, indices, axis=1) + np.float32(1e-8))
        parts.append((indices, weights / weights.sum(axis=1, keepdims=True)))
    all_indices, all_weights = zip(*parts, strict=True)
    return np.concatenate(all_indices), np.concatenate(all_weights)


def torch_weights(points: Any, centers: Any) -> tuple[Any, Any]:
    import torch

    distances = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, indices = distances.topk(3, dim=1, largest=False)
    weights = 1 / (nearest * nearest + 1e-8)
    return indices, weights / weights.sum(dim=1, keepdim=True)


def gpu_weights_case(points: Floats, centers: Floats, device: Device) -> bench.Case:
    rows = bench.checked_rows(len(points))
    truth = weight_matrix(*reference.exact_weights(points[rows], centers), len(centers))

    def error_of(found: Any) -> float:
        indices, weights = (bench.host(part)[rows] for part in found)
        return float(np.abs(weight_matrix(indices, weights, len(centers)) - truth).max())

    plain = weight_matrix(*plain_weights(points[rows], centers), len(centers))
    arrays = device.array(points), device.array(centers)
    tensors = device.tensor(points), device.tensor(centers)
    backend = bench.public_backend(device, "cuda")

    return bench.Case(
        "inverse_distance_weights",
        {"N": len(points), "G": len(centers)},
        [
            bench.ours("cuda", lambda: inverse_distance_weights(*arrays, backend=backend)),
            bench.triton(OP, *tensors, function="inverse_distance_weights"),
            bench.baseline("cdist and topk", lambda: torch_weights(*tensors)),
        ],
        work=work_of_weights(len(points), len(centers)),
        error_of=error_of,
        max_error=2 * float(np.abs(plain - truth).max()) + bench.TINY_ERROR,
    )


def gpu_dense_case(
    points: Floats, centers: Floats, num_channels: int, device: Device
) -> bench.Case:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(centers), num_channels)).astype(np.float32)
    rows = bench.checked_rows(len(points))
    truth = reference.inverse_distance_interpolation(features, centers, points[rows])
    indices, weights = plain_weights(points[rows], centers)
    plain = (features[indices] * weights[..., None]).sum(axis=1)
    tensors = tuple(device.tensor(array) for array in (features, centers, points))

    def in_torch() -> Any:
        chosen, parts = torch_weights(tensors[2], tensors[1])
        return (tensors[0][chosen] * parts[..., None]).sum(dim=1)

    return bench.Case(
        OP,
        {"N": len(points), "G": len(centers), "C": num_channels},
        [bench.triton(OP, *tensors), bench.baseline("cdist and gather", in_torch)],
        work=work_of_dense(len(points), len(centers), num_channels),
        error_of=lambda dense: float(np.abs(bench.host(dense)[rows] - truth).max()),
        max_error=2 * float(np.abs(plain - truth).max()) + bench.TINY_ERROR,
    )


def pooling_windows(
    pixel_indices: Integers, grid: int
) -> tuple[Integers, NDArray[np.int32], Floats]:
    """(pixels (P,) that some point reaches, window_points (P, W), window_values (P, W)): which
    points each pixel averages and how much, on an output grid of the same size; -1: no point."""
    import torch

    windows = pixel_windows(pixel_indices, grid, grid, upload=torch.from_numpy)
    return windows.pixel_indices, windows.points.numpy(), windows.shares.numpy()


def gpu_pooled_case(frame: Frame, centers: Floats, device: Device) -> bench.Case:
    indices, weights = plain_weights(frame.points, centers)
    pixels, window_points, window_values = pooling_windows(frame.pixel_indices, frame.grid_size)
    chosen = bench.checked_rows(len(pixels))
    truth = np.zeros((len(chosen), len(centers)))
    for at, pixel in enumerate(chosen):
        for point, value in zip(window_points[pixel], window_values[pixel], strict=True):
            if point >= 0:
                np.add.at(truth[at], indices[point], float(value) * weights[point].astype(float))

    def error_of(found: Any) -> float:
        columns, values = (bench.host(part).reshape(len(pixels), -1)[chosen] for part in found)
        return float(np.abs(weight_matrix(columns, values, len(centers)) - truth).max())

    tensors = [device.tensor(a) for a in (indices, weights, window_points, window_values)]

    def in_torch() -> Any:
        is_point = tensors[2] >= 0
        at = tensors[2].clamp(min=0).long()
        columns = tensors[0][at] * is_point[..., None]
        values = tensors[1][at] * (tensors[3] * is_point)[..., None]
        return columns.flatten().int(), values.flatten()

    return bench.Case(
        "pooled_interpolation_rows",
        {"N": len(frame.points), "P": len(pixels), "W": window_points.shape[1]},
        [
            bench.triton(OP, *tensors, function="pooled_interpolation_rows"),
            bench.baseline("gather", in_torch),
        ],
        work=work_of_rows(len(frame.points), len(pixels), window_points.shape[1]),
        error_of=error_of,
        max_error=bench.TINY_ERROR,
    )
