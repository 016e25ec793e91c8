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
from ops.clouds import PARTS, clouds
from ops.inputs import Floats, Frame, Integers, depth_frame
from ops.neighbor_search import RELATIVE_TIE, Search, neighbor_agreement, neighbor_searches
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
from mmad_fast.ops.point_index import PointIndex

if TYPE_CHECKING:
    from gpu.device import Device

OP = "inverse_distance_interpolation"
PIECES = (*PARTS, "dense", "pooled")
NUM_CENTERS = 1024
DENSE_POINTS, DENSE_CHANNELS = 50_000, 1152
OUTPUT_SIZES = (224, 56, 28)
POOLING_TAPS = 4
"""Input pixels along one axis under an output pixel of the same grid: 3 x 3 mean, then pairs."""
MAX_WEIGHT_DIFFERENCE = 1e-4
MAX_FEATURE_DIFFERENCE = 1e-4


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """The weights of every cloud, dense features of one, pooled rows of a frame."""
    if options.only not in ("dense", "pooled"):
        for name, points in clouds(options):
            yield weights_case(name, points, options)
    if bench.is_asked_for(options, "dense"):
        of_frame = argparse.Namespace(**{**vars(options), "only": "frame"})
        for name, points in clouds(of_frame, sizes=(DENSE_POINTS,)):
            yield dense_case(name, points, options)
    if bench.is_asked_for(options, "pooled"):
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
        search = make()
        return lambda: weighted(search, points, centers)

    def shared_index() -> Callable[[], InterpolationWeights]:
        index = PointIndex(points)
        farthest_point_sampling(points, NUM_CENTERS, index=index)
        return lambda: inverse_distance_weights(points, centers, index=index)

    def query_alone() -> Callable[[], object]:
        search = searches["pykdtree"]()
        return lambda: search(centers, points, 3)

    contenders = [
        bench.Contender(
            "mmad-fast", lambda: lambda: inverse_distance_weights(points, centers), is_ours=True
        ),
        bench.Contender(
            "mmad-fast, shared index",
            shared_index,
            is_ours=True,
            note="index made by the sampling before, not timed",
        ),
        *(bench.Contender(name, partial(peer, make)) for name, make in searches.items()),
        bench.Contender("pykdtree, no weights", query_alone, part="finds the neighbours only"),
    ]
    return bench.Case(
        "inverse_distance_weights",
        {"N": len(points), "G": NUM_CENTERS},
        contenders,
        data=name,
        check=lambda got: weights_agreement(got, ours, points, centers),
    )


def dense_case(name: str, points: Floats, options: argparse.Namespace) -> bench.Case:
    centers = points[farthest_point_sampling(points, NUM_CENTERS)]
    features = np.random.default_rng(0).standard_normal((NUM_CENTERS, DENSE_CHANNELS), np.float32)
    ours = inverse_distance_interpolation(features, centers, points)
    # The third centre is nearer than the fourth: else any of them is right.
    nearest, _ = cKDTree(centers).query(points, 4)
    is_decided = nearest[:, 3] - nearest[:, 2] > RELATIVE_TIE * nearest[:, 3]
    shape = (len(points), DENSE_CHANNELS)
    pool = ThreadPoolExecutor(options.threads)

    def agreement(got: Floats) -> bench.Agreement:
        difference = float(np.abs(got - ours)[is_decided].max())
        if not difference <= MAX_FEATURE_DIFFERENCE * float(np.abs(ours).max()):
            raise bench.DisagreementError(f"features differ by {difference:.2g}")
        num_tied = int(np.count_nonzero(~is_decided))
        detail = f"within {difference:.0e}, apart from {num_tied} points with tied centres"
        return bench.Agreement("same features", detail)

    def in_torch() -> Callable[[], Floats]:
        """The published gather and sum, on the weights of the fastest search."""
        torch = bench.with_threads(options.threads)
        search, tensor = (
            neighbor_searches(options.threads)["pykdtree"](),
            torch.from_numpy(features),
        )

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

    contenders = [
        bench.Contender(
            "mmad-fast",
            lambda: lambda: inverse_distance_interpolation(features, centers, points),
            is_ours=True,
        ),
        bench.Contender("pykdtree + torch", in_torch, max_runs=5),
        bench.Contender(
            "writing the output",
            lambda: write,
            part="lower bound: fills a new array of the output's shape",
        ),
    ]
    shapes = {"N": len(points), "G": NUM_CENTERS, "C": DENSE_CHANNELS}
    return bench.Case(OP, shapes, contenders, data=name, check=agreement)


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
    return bench.Case(
        "pooled_interpolation_rows",
        {"N": len(frame.points), "G": NUM_CENTERS, "side": output_size},
        [
            bench.Contender("mmad-fast", lambda: ours, is_ours=True),
            bench.Contender(
                "torch, dense",
                lambda: lambda: dense_steps(frame, wide, output_size),
                part=f"the dense steps on {DENSE_CHANNELS} channels, which need no rows",
                max_runs=3,
            ),
        ],
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
    for side, coverage in sizes.frames:
        yield lambda at=(side, coverage): gpu_cases_of(  # type: ignore[misc]
            depth_frame(at[0], coverage=at[1]), sizes, device
        )


def gpu_cases_of(frame: Frame, sizes: bench.Sizes, device: Device) -> list[bench.Case]:
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

    def triton() -> Callable[[], Any]:
        function = bench.kernels_of(OP).inverse_distance_weights
        return lambda: function(*tensors)

    return bench.Case(
        "inverse_distance_weights",
        {"N": len(points), "G": len(centers)},
        [
            bench.ours_on(
                "cuda", lambda: lambda: inverse_distance_weights(*arrays, backend=backend)
            ),
            bench.ours_on("triton", triton),
            bench.baseline("cdist and topk", lambda: torch_weights(*tensors)),
        ],
        work=work_of_weights(len(points), len(centers)),
        error_of=error_of,
        max_error=2 * float(np.abs(plain - truth).max()) + bench.TINY_ERROR,
    )


def gpu_dense_case(
    points: Floats, centers: Floats, num_channels: int, device: Device
) -> bench.Case:
    features = (
        np.random.default_rng(0).standard_normal((len(centers), num_channels)).astype(np.float32)
    )
    rows = bench.checked_rows(len(points))
    truth = reference.inverse_distance_interpolation(features, centers, points[rows])
    indices, weights = plain_weights(points[rows], centers)
    plain = (features[indices] * weights[..., None]).sum(axis=1)
    tensors = tuple(device.tensor(array) for array in (features, centers, points))

    def triton() -> Callable[[], Any]:
        function = bench.kernels_of(OP).inverse_distance_interpolation
        return lambda: function(*tensors)

    def in_torch() -> Any:
        chosen, parts = torch_weights(tensors[2], tensors[1])
        return (tensors[0][chosen] * parts[..., None]).sum(dim=1)

    return bench.Case(
        OP,
        {"N": len(points), "G": len(centers), "C": num_channels},
        [bench.ours_on("triton", triton), bench.baseline("cdist and gather", in_torch)],
        work=work_of_dense(len(points), len(centers), num_channels),
        error_of=lambda dense: float(np.abs(bench.host(dense)[rows] - truth).max()),
        max_error=2 * float(np.abs(plain - truth).max()) + bench.TINY_ERROR,
    )


def pooling_windows(
    pixel_indices: Integers, grid: int
) -> tuple[Integers, NDArray[np.int32], Floats]:
    """(pixels (P,) that some point reaches, window_points (P, W), window_values (P, W)): which
    points each pixel averages and how much, on an output grid of the same size; -1: no point."""
    axis = reference._axis_weights(grid, grid)  # (S, S)
    taps = np.stack([np.flatnonzero(row)[:POOLING_TAPS] for row in _padded(axis)])  # (S, 4)
    amounts = np.take_along_axis(axis, taps, axis=1)
    point_at = np.full(grid * grid, -1, np.int32)
    point_at[pixel_indices] = np.arange(len(pixel_indices), dtype=np.int32)
    row, column = np.divmod(np.arange(grid * grid), grid)
    under = taps[row][:, :, None] * grid + taps[column][:, None, :]
    values = amounts[row][:, :, None] * amounts[column][:, None, :]
    points = point_at[under.reshape(grid * grid, -1)]
    values = values.reshape(grid * grid, -1)
    points = np.where(values > 0, points, -1).astype(np.int32)
    pixels = np.flatnonzero((points >= 0).any(axis=1))
    return pixels, points[pixels], values[pixels].astype(np.float32)


def _padded(axis: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which inputs are read: those with a weight, and neighbours of weight 0 up to four."""
    used = axis > 0
    for row in used:
        first = min(int(np.flatnonzero(row)[0]), len(row) - POOLING_TAPS)
        row[first : first + POOLING_TAPS] = True
    return used


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

    def triton() -> Callable[[], Any]:
        function = bench.kernels_of(OP).pooled_interpolation_rows
        return lambda: function(*tensors)

    def in_torch() -> Any:
        is_point = tensors[2] >= 0
        at = tensors[2].clamp(min=0).long()
        columns = tensors[0][at] * is_point[..., None]
        values = tensors[1][at] * (tensors[3] * is_point)[..., None]
        return columns.flatten().int(), values.flatten()

    return bench.Case(
        "pooled_interpolation_rows",
        {"N": len(frame.points), "P": len(pixels), "W": window_points.shape[1]},
        [bench.ours_on("triton", triton), bench.baseline("gather", in_torch)],
        work=work_of_rows(len(frame.points), len(pixels), window_points.shape[1]),
        error_of=error_of,
        max_error=bench.TINY_ERROR,
    )
