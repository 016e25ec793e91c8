"""The kernel table's cases on point clouds: sampling, grouping, interpolation. See op_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import kernel_costs as costs
import numpy as np
from gpu_device import Device
from numpy.typing import NDArray
from op_cases import (
    NUM_CHECKED,
    TINY_ERROR,
    OpCase,
    Sizes,
    checked_rows,
    host,
    public_backend,
    triton_function,
    weight_matrix,
)
from ops.cases import Frame

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.farthest_point_sampling.reference import (
    farthest_point_sampling as exact_sampling,
)
from mmad_fast.ops.inverse_distance_interpolation import inverse_distance_weights, reference
from mmad_fast.ops.knn_grouping import knn_grouping

TRITON_INTERPOLATION = "mmad_fast.ops.inverse_distance_interpolation.triton_kernel"
POOLING_TAPS = 4
"""Input pixels along one axis under an output pixel of the same grid: 3 x 3 mean, then pairs."""


def geometry_cases(frame: Frame, sizes: Sizes, device: Device) -> list[OpCase]:
    """Sampling, grouping, weights, dense rows and pooled rows on one cloud."""
    points = frame.points
    num_groups = min(sizes.num_groups, len(points))
    center_indices = exact_sampling(points, num_groups, 0, False)
    return [
        sampling_case(points, num_groups, device),
        grouping_case(points, center_indices, sizes.group_size, device),
        weights_case(points, points[center_indices], device),
        dense_case(points, points[center_indices], sizes.channels, device),
        pooled_rows_case(frame, points[center_indices], device),
    ]


def sampling_case(points: NDArray[np.float32], num_samples: int, device: Device) -> OpCase:
    cloud, tensor = device.array(points), device.tensor(points)
    case = OpCase(
        "farthest_point_sampling",
        {"N": len(points), "G": num_samples},
        costs.farthest_point_sampling(len(points), num_samples),
        lambda indices: sampling_shortfall(points, host(indices)),
        TINY_ERROR,
    )
    backend = public_backend(device, "cuda")
    case.functions["cuda"] = lambda: farthest_point_sampling(cloud, num_samples, backend=backend)
    case.baselines["torch, loop"] = lambda: torch_sampling(tensor, num_samples)
    return case


def sampling_shortfall(points: NDArray[np.float32], indices: NDArray[np.int64]) -> float:
    """How much nearer than the farthest point a sample was when it was chosen, at worst, relative
    to the farthest; 0 for an exact sampling whatever its ties."""
    exact = points.astype(np.float64)
    squared = np.full(len(exact), np.inf)
    worst = float(indices[0] != 0)
    for last, chosen in pairwise(indices):
        squared = np.minimum(squared, ((exact - exact[last]) ** 2).sum(axis=1))
        farthest = squared.max()
        if farthest > 0:
            worst = max(worst, float((farthest - squared[chosen]) / farthest))
    return worst


def torch_sampling(points: Any, num_samples: int) -> Any:
    """The loop that one writes in torch; nothing in it waits for the device."""
    import torch

    indices = torch.zeros(num_samples, dtype=torch.int64, device=points.device)
    nearest = torch.full((len(points),), torch.inf, device=points.device)
    last = indices[:1]
    for sample in range(1, num_samples):
        difference = points - points.index_select(0, last)
        nearest = torch.minimum(nearest, (difference * difference).sum(dim=1))
        last = nearest.argmax().view(1)
        indices[sample : sample + 1] = last
    return indices


def grouping_case(
    points: NDArray[np.float32], center_indices: NDArray[np.int64], group_size: int, device: Device
) -> OpCase:
    import torch

    group_size = min(group_size, len(points))
    cloud, centers = device.array(points), device.array(center_indices)
    tensor, center_tensor = device.tensor(points), device.tensor(center_indices)
    case = OpCase(
        "knn_grouping",
        {"N": len(points), "G": len(center_indices), "K": group_size},
        costs.knn_grouping(len(points), len(center_indices), group_size),
        lambda found: grouping_error(points, center_indices, *map(host, found)),
        TINY_ERROR,
    )

    def in_torch() -> Any:
        chosen = tensor[center_tensor]
        distances = torch.cdist(chosen, tensor, compute_mode="donot_use_mm_for_euclid_dist")
        indices = distances.topk(group_size, dim=1, largest=False).indices
        return indices, tensor[indices] - chosen[:, None]

    backend = public_backend(device, "cuda")
    case.functions["cuda"] = lambda: knn_grouping(cloud, centers, group_size, backend=backend)
    case.baselines["torch, cdist and topk"] = in_torch
    return case


def grouping_error(
    points: NDArray[np.float32],
    center_indices: NDArray[np.int64],
    indices: NDArray[np.int64],
    groups: NDArray[np.float32],
) -> float:
    """Largest difference of the distances reached, and of the centred points, relative to the
    largest distance of a group."""
    exact = points.astype(np.float64)
    worst = 0.0
    step = max(1, len(center_indices) // NUM_CHECKED)
    for g in range(0, len(center_indices), step):
        center = exact[center_indices[g]]
        distances = np.sqrt(((exact - center) ** 2).sum(axis=1))
        nearest = np.sort(distances)[: indices.shape[1]]
        reached = distances[indices[g]]
        scale = max(float(nearest[-1]), np.finfo(np.float32).tiny)
        is_repeated = len(np.unique(indices[g])) < indices.shape[1]
        difference = np.abs(groups[g] - (exact[indices[g]] - center)).max()
        found = max(float(np.abs(reached - nearest).max()), float(difference))
        worst = max(worst, np.inf if is_repeated else found / scale)
    return worst


def plain_weights(
    points: NDArray[np.float32], centers: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The three nearest centres and their weights, as one writes them in float32."""
    difference = points[:, None] - centers[None]
    squared = (difference * difference).sum(axis=2, dtype=np.float32)
    indices = np.argsort(squared, axis=1, kind="stable")[:, :3]
    weights = np.float32(1) / (np.take_along_axis(squared, indices, axis=1) + np.float32(1e-8))
    return indices, weights / weights.sum(axis=1, keepdims=True)


def torch_weights(points: Any, centers: Any) -> tuple[Any, Any]:
    import torch

    distances = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, indices = distances.topk(3, dim=1, largest=False)
    weights = 1 / (nearest * nearest + 1e-8)
    return indices, weights / weights.sum(dim=1, keepdim=True)


def weights_case(
    points: NDArray[np.float32], centers: NDArray[np.float32], device: Device
) -> OpCase:
    rows = checked_rows(len(points))
    truth = weight_matrix(*reference.exact_weights(points[rows], centers), len(centers))

    def error_of(found: Any) -> float:
        indices, weights = (host(part)[rows] for part in found)
        return float(np.abs(weight_matrix(indices, weights, len(centers)) - truth).max())

    plain = weight_matrix(*plain_weights(points[rows], centers), len(centers))
    case = OpCase(
        "inverse_distance_weights",
        {"N": len(points), "G": len(centers)},
        costs.inverse_distance_weights(len(points), len(centers)),
        error_of,
        2 * float(np.abs(plain - truth).max()) + TINY_ERROR,
    )
    arrays = device.array(points), device.array(centers)
    tensors = device.tensor(points), device.tensor(centers)
    backend = public_backend(device, "cuda")
    case.functions["cuda"] = lambda: inverse_distance_weights(*arrays, backend=backend)

    def triton() -> Callable[[], Any]:
        function = triton_function(TRITON_INTERPOLATION, "inverse_distance_weights")
        return lambda: function(*tensors)

    case.offer("triton", triton)
    case.baselines["torch, cdist and topk"] = lambda: torch_weights(*tensors)
    return case


def dense_case(
    points: NDArray[np.float32], centers: NDArray[np.float32], num_channels: int, device: Device
) -> OpCase:
    features = (
        np.random.default_rng(0).standard_normal((len(centers), num_channels)).astype(np.float32)
    )
    rows = checked_rows(len(points))
    truth = reference.inverse_distance_interpolation(features, centers, points[rows])
    indices, weights = plain_weights(points[rows], centers)
    plain = (features[indices] * weights[..., None]).sum(axis=1)
    case = OpCase(
        "inverse_distance_interpolation",
        {"N": len(points), "G": len(centers), "C": num_channels},
        costs.inverse_distance_interpolation(len(points), len(centers), num_channels),
        lambda dense: float(np.abs(host(dense)[rows] - truth).max()),
        2 * float(np.abs(plain - truth).max()) + TINY_ERROR,
    )
    tensors = tuple(device.tensor(array) for array in (features, centers, points))

    def triton() -> Callable[[], Any]:
        function = triton_function(TRITON_INTERPOLATION, "inverse_distance_interpolation")
        return lambda: function(*tensors)

    def in_torch() -> Any:
        chosen, parts = torch_weights(tensors[2], tensors[1])
        return (tensors[0][chosen] * parts[..., None]).sum(dim=1)

    case.offer("triton", triton)
    case.baselines["torch, cdist and gather"] = in_torch
    return case


def pooling_windows(
    pixel_indices: NDArray[np.int64], grid: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
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


def pooled_rows_case(frame: Frame, centers: NDArray[np.float32], device: Device) -> OpCase:
    indices, weights = plain_weights_in_parts(frame.points, centers)
    pixels, window_points, window_values = pooling_windows(frame.pixel_indices, frame.grid_size)
    chosen = checked_rows(len(pixels))
    truth = np.zeros((len(chosen), len(centers)))
    for at, pixel in enumerate(chosen):
        for point, value in zip(window_points[pixel], window_values[pixel], strict=True):
            if point >= 0:
                np.add.at(truth[at], indices[point], float(value) * weights[point].astype(float))

    def error_of(found: Any) -> float:
        columns, values = (host(part).reshape(len(pixels), -1)[chosen] for part in found)
        return float(np.abs(weight_matrix(columns, values, len(centers)) - truth).max())

    case = OpCase(
        "pooled_interpolation_rows",
        {"N": len(frame.points), "P": len(pixels), "W": window_points.shape[1]},
        costs.pooled_interpolation_rows(len(frame.points), len(pixels), window_points.shape[1]),
        error_of,
        TINY_ERROR,
    )
    tensors = [device.tensor(a) for a in (indices, weights, window_points, window_values)]

    def triton() -> Callable[[], Any]:
        function = triton_function(TRITON_INTERPOLATION, "pooled_interpolation_rows")
        return lambda: function(*tensors)

    def in_torch() -> Any:
        is_point = tensors[2] >= 0
        at = tensors[2].clamp(min=0).long()
        columns = tensors[0][at] * is_point[..., None]
        values = tensors[1][at] * (tensors[3] * is_point)[..., None]
        return columns.flatten().int(), values.flatten()

    case.offer("triton", triton)
    case.baselines["torch, gather"] = in_torch
    return case


def plain_weights_in_parts(
    points: NDArray[np.float32], centers: NDArray[np.float32], *, part: int = 4096
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `plain_weights`, for many points."""
    parts = [
        plain_weights(points[begin : begin + part], centers)
        for begin in range(0, len(points), part)
    ]
    indices, weights = zip(*parts, strict=True)
    return np.concatenate(indices).astype(np.int64), np.concatenate(weights)
