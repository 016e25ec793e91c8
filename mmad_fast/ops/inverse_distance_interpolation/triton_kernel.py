"""Inverse distance interpolation in Triton: weights, dense features, entries of pooled rows.

Weights
    Algorithm: all pairs. Lane l of a point looks at the centres l, l + BLOCK_G, ... and keeps its
    three nearest, in ascending order: an equal distance does not displace. The three nearest of
    all lanes are taken at the end, of equals the lowest index. NaN compares as false, so it is
    never kept.
    Launch: one program per BLOCK_N points; a tile of BLOCK_N x BLOCK_G pairs in registers.
    Memory: points and centres are rows of 12 bytes, read by coordinate; the centres stay in the
    first level cache. Nothing but the results is written.
    Precision: float32, each operation rounded (compiled without fused multiply-add), so that
    indices and weights are those of plain float32, bit by bit.

Dense features
    Algorithm: per point three rows, weighted and summed in float32.
    Launch: one program per BLOCK_N points x BLOCK_C channels.
    Memory: rows in 16-byte pieces where C is a multiple of 4.

Entries of pooled rows
    Algorithm: per (pixel, point of its window) three products.
    Launch: one program per BLOCK of them; entries are written in order.

No kernel waits for the host or allocates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig, TritonKernel, compute_capability

WIDTH = 4
"""float32 values in a load of 16 bytes."""


@triton.jit
def _nearest_lane(distances, centers):  # type: ignore[no-untyped-def]
    """The smallest distance of each point's lanes, of equals the one with the lowest centre."""
    smallest = tl.min(distances, axis=1)
    is_smallest = distances == smallest[:, None]
    return smallest, tl.min(tl.where(is_smallest, centers, 2147483647), axis=1)


@triton.jit(do_not_specialize=["num_points", "num_centers"])
def _weights_kernel(  # type: ignore[no-untyped-def]
    points,  # (N, 3)
    centers,  # (G, 3)
    indices,  # (N, 3)
    weights,  # (N, 3)
    num_points,
    num_centers,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_point = n < num_points
    row = n.to(tl.int64) * 3
    x = tl.load(points + row, mask=is_point, other=0.0)[:, None]
    y = tl.load(points + row + 1, mask=is_point, other=0.0)[:, None]
    z = tl.load(points + row + 2, mask=is_point, other=0.0)[:, None]
    lane = tl.arange(0, BLOCK_G)[None, :]
    d0 = tl.full([BLOCK_N, BLOCK_G], float("inf"), tl.float32)  # d0 <= d1 <= d2
    d1 = d0
    d2 = d0
    g0 = tl.zeros([BLOCK_N, BLOCK_G], tl.int32)
    g1 = g0
    g2 = g0
    for begin in range(0, num_centers, BLOCK_G):
        g = begin + lane
        is_center = g < num_centers
        # A lane without a centre is infinitely far and never kept.
        dx = x - tl.load(centers + g * 3, mask=is_center, other=float("inf"))
        dy = y - tl.load(centers + g * 3 + 1, mask=is_center, other=float("inf"))
        dz = z - tl.load(centers + g * 3 + 2, mask=is_center, other=float("inf"))
        d = dx * dx + dy * dy + dz * dz  # (BLOCK_N, BLOCK_G)
        is_first = d < d0
        is_second = d < d1
        is_third = d < d2
        g2 = tl.where(is_second, g1, tl.where(is_third, g, g2))
        d2 = tl.where(is_second, d1, tl.where(is_third, d, d2))
        g1 = tl.where(is_first, g0, tl.where(is_second, g, g1))
        d1 = tl.where(is_first, d0, tl.where(is_second, d, d1))
        g0 = tl.where(is_first, g, g0)
        d0 = tl.where(is_first, d, d0)
    first, at_first = _nearest_lane(d0, g0)
    is_taken = g0 == at_first[:, None]
    d0, g0 = tl.where(is_taken, d1, d0), tl.where(is_taken, g1, g0)
    d1, g1 = tl.where(is_taken, d2, d1), tl.where(is_taken, g2, g1)
    second, at_second = _nearest_lane(d0, g0)
    is_taken = g0 == at_second[:, None]
    d0, g0 = tl.where(is_taken, d1, d0), tl.where(is_taken, g1, g0)
    third, at_third = _nearest_lane(d0, g0)
    w0 = tl.div_rn(1.0, first + 1e-8)
    w1 = tl.div_rn(1.0, second + 1e-8)
    w2 = tl.div_rn(1.0, third + 1e-8)
    total = w0 + w1 + w2
    tl.store(weights + row, tl.div_rn(w0, total), mask=is_point)
    tl.store(weights + row + 1, tl.div_rn(w1, total), mask=is_point)
    tl.store(weights + row + 2, tl.div_rn(w2, total), mask=is_point)
    tl.store(indices + row, at_first.to(tl.int64), mask=is_point)
    tl.store(indices + row + 1, at_second.to(tl.int64), mask=is_point)
    tl.store(indices + row + 2, at_third.to(tl.int64), mask=is_point)


@triton.jit(do_not_specialize=["num_points", "num_centers", "num_channels"])
def _dense_kernel(  # type: ignore[no-untyped-def]
    features,  # (G, C)
    indices,  # (N, 3)
    weights,  # (N, 3)
    dense,  # (N, C)
    num_points,
    num_centers,
    num_channels,
    CHANNEL_MULTIPLE: tl.constexpr,  # divides C
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_channels = num_channels // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE  # seen by the compiler
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    is_point = n < num_points
    is_value = is_point[:, None] & (channel < num_channels)
    n = n.to(tl.int64)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for k in tl.static_range(3):
        center = tl.load(indices + n * 3 + k, mask=is_point, other=0)
        center = tl.minimum(tl.maximum(center, 0), num_centers - 1)
        weight = tl.load(weights + n * 3 + k, mask=is_point, other=0.0)
        row = features + center[:, None] * num_channels + channel
        total += weight[:, None] * tl.load(row, mask=is_value, other=0.0)
    tl.store(dense + n[:, None] * num_channels + channel, total, mask=is_value)


@triton.jit(do_not_specialize=["num_entries", "num_points"])
def _pooled_rows_kernel(  # type: ignore[no-untyped-def]
    indices,  # (N, 3)
    weights,  # (N, 3)
    window_points,  # (P * W), < 0: no point
    window_values,  # (P * W)
    columns,  # (P * W * 3)
    values,  # (P * W * 3)
    num_entries,  # P * W
    num_points,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_entry = entry < num_entries
    point = tl.load(window_points + entry, mask=is_entry, other=-1)
    point = tl.minimum(point, num_points - 1)
    is_point = point >= 0
    value = tl.load(window_values + entry, mask=is_point, other=0.0)[:, None]
    k = tl.arange(0, 4)[None, :]  # the next power of 2 to 3
    is_loaded = is_point[:, None] & (k < 3)
    at = point.to(tl.int64)[:, None] * 3 + k
    column = tl.load(indices + at, mask=is_loaded, other=0)
    weight = tl.load(weights + at, mask=is_loaded, other=0.0)
    is_stored = is_entry[:, None] & (k < 3)
    to = entry[:, None] * 3 + k
    tl.store(columns + to, column.to(tl.int32), mask=is_stored)
    tl.store(values + to, value * weight, mask=is_stored)


_WEIGHTS = TritonKernel(
    name="inverse_distance_interpolation.weights.fp32",
    function="_weights_kernel",
    arguments={
        "points": "*fp32:16",
        "centers": "*fp32:16",
        "indices": "*i64:16",
        "weights": "*fp32:16",
        "num_points": "i32",
        "num_centers": "i32",
    },
    configs={
        DEFAULT_SM: (
            LaunchConfig(4, 1, {"BLOCK_N": 32, "BLOCK_G": 32}),
            LaunchConfig(4, 1, {"BLOCK_N": 16, "BLOCK_G": 32}),
            LaunchConfig(8, 1, {"BLOCK_N": 64, "BLOCK_G": 32}),
        )
    },
    enable_fp_fusion=False,
)


def _dense(channel_multiple: int) -> TritonKernel:
    return TritonKernel(
        name=f"inverse_distance_interpolation.dense.fp32.c{channel_multiple}",
        function="_dense_kernel",
        arguments={
            "features": "*fp32:16",
            "indices": "*i64:16",
            "weights": "*fp32:16",
            "dense": "*fp32:16",
            "num_points": "i32",
            "num_centers": "i32",
            "num_channels": "i32",
        },
        configs={
            DEFAULT_SM: (
                LaunchConfig(4, 1, {"BLOCK_N": 16, "BLOCK_C": 128}),
                LaunchConfig(4, 1, {"BLOCK_N": 4, "BLOCK_C": 512}),
            )
        },
        constants={"CHANNEL_MULTIPLE": channel_multiple},
    )


_DENSE_BY_MULTIPLE = {multiple: _dense(multiple) for multiple in (WIDTH, 1)}

_POOLED_ROWS = TritonKernel(
    name="inverse_distance_interpolation.pooled_rows.fp32",
    function="_pooled_rows_kernel",
    arguments={
        "indices": "*i64:16",
        "weights": "*fp32:16",
        "window_points": "*i32:16",
        "window_values": "*fp32:16",
        "columns": "*i32:16",
        "values": "*fp32:16",
        "num_entries": "i32",
        "num_points": "i32",
    },
    configs={DEFAULT_SM: (LaunchConfig(4, 1, {"BLOCK": 256}),)},
)

KERNELS: tuple[TritonKernel, ...] = (_WEIGHTS, *_DENSE_BY_MULTIPLE.values(), _POOLED_ROWS)


def inverse_distance_weights(
    points: torch.Tensor, centers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """indices (N, 3) int64 and weights (N, 3) float32 of the three nearest centres.

    A centre that is infinitely far or NaN is not among them; a missing one has index 0 and weight
    0. A point with no centre at a finite distance has the weights NaN.

    Args:
        points: (N, 3) float32 metres, contiguous; N may be 0.
        centers: (G, 3) float32 metres, contiguous, G >= 3, on the same device.
    """
    indices = torch.empty((len(points), 3), dtype=torch.int64, device=points.device)
    weights = torch.empty((len(points), 3), dtype=torch.float32, device=points.device)
    _launch_weights(points, centers, indices, weights)
    return indices, weights


def inverse_distance_interpolation(
    features: torch.Tensor, centers: torch.Tensor, points: torch.Tensor
) -> torch.Tensor:
    """dense (N, C) float32: the feature of each point, from its three nearest centres.

    Args:
        features: (G, C) float32, of the centres, contiguous.
        centers: (G, 3) float32 metres, contiguous, G >= 3.
        points: (N, 3) float32 metres, contiguous; N may be 0.
    """
    indices, weights = inverse_distance_weights(points, centers)
    dense = torch.empty((len(points), features.shape[1]), dtype=torch.float32, device=points.device)
    _launch_dense(features, indices, weights, dense)
    return dense


def pooled_interpolation_rows(
    indices: torch.Tensor,
    weights: torch.Tensor,
    window_points: torch.Tensor,
    window_values: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """columns (P * 3 W,) int32 and values (P * 3 W,) float32 of the rows of P pooled pixels.

    Entry (p, 3 j + k) is centre indices[window_points[p, j], k] with the value
    window_values[p, j] * weights[window_points[p, j], k]: a row's columns neither ascend nor are
    they unique.

    Args:
        indices: (N, 3) int64, from `inverse_distance_weights`.
        weights: (N, 3) float32.
        window_points: (P, W) int32 in [0, N), the points that pixel p averages; negative where
            there is none: column 0 and value 0.
        window_values: (P, W) float32, the weight of that point in the average.
    """
    num_entries = 3 * window_points.numel()
    columns = torch.empty(num_entries, dtype=torch.int32, device=indices.device)
    values = torch.empty(num_entries, dtype=torch.float32, device=indices.device)
    _launch_pooled_rows(indices, weights, window_points, window_values, columns, values)
    return columns, values


def _launch_weights(
    points: torch.Tensor, centers: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor
) -> None:
    if len(points) == 0:
        return
    options = _WEIGHTS.launch_options(compute_capability(points))
    grid = (triton.cdiv(len(points), options["BLOCK_N"]),)
    with torch.cuda.device_of(points):
        _weights_kernel[grid](
            points, centers, indices, weights, len(points), len(centers), **options
        )


def _launch_dense(
    features: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, dense: torch.Tensor
) -> None:
    num_points, num_channels = dense.shape
    if dense.numel() == 0:
        return
    kernel = _DENSE_BY_MULTIPLE[WIDTH if num_channels % WIDTH == 0 else 1]
    options = kernel.launch_options(compute_capability(features))
    grid = (
        triton.cdiv(num_points, options["BLOCK_N"]),
        triton.cdiv(num_channels, options["BLOCK_C"]),
    )
    with torch.cuda.device_of(features):
        _dense_kernel[grid](
            features,
            indices,
            weights,
            dense,
            num_points,
            len(features),
            num_channels,
            **options,
        )


def _launch_pooled_rows(
    indices: torch.Tensor,
    weights: torch.Tensor,
    window_points: torch.Tensor,
    window_values: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
) -> None:
    num_entries = window_points.numel()
    if num_entries == 0:
        return
    options = _POOLED_ROWS.launch_options(compute_capability(indices))
    grid = (triton.cdiv(num_entries, options["BLOCK"]),)
    with torch.cuda.device_of(indices):
        _pooled_rows_kernel[grid](
            indices,
            weights,
            window_points,
            window_values,
            columns,
            values,
            num_entries,
            len(indices),
            **options,
        )
