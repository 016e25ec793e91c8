"""The ops of one scan as one CUDA graph: latency against the same launches one by one.

The chain is that of a detector between its networks: sampling, grouping, weights, entries of the
pooled rows, and the mapping in both directions. Its windows depend on the pixel grid alone and are
made on the host before, as the detector makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gpu.device import Device
from gpu.rows import RowFile
from ops.bench_inverse_distance_interpolation import pooling_windows
from ops.case import Sizes, kernels_of, largest_difference, parts_of, public_backend
from ops.inputs import depth_frame, mapping_network
from settings import timing_fields

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.pixel_mapping import bilinear_rows

STEP = "graph"
MAX_DIFFERENCE = 0.0
"""A replay runs the same kernels on the same inputs."""


def measure_graph(device: Device, rows: RowFile, sizes: Sizes, *, num_runs: int = 200) -> None:
    """A row for the eager chain and one for the graph, per mapping network and precision."""
    for name, layers in sizes.layers.items():
        for dtype in sizes.dtypes[:2]:
            facts: dict[str, Any] = {"shapes": {"variant": name}, "dtype": dtype}
            with rows.guarded(STEP, "chain of ops", **facts):
                chain, shapes = op_chain(device, sizes, tuple(layers), dtype)
                facts |= {"shapes": shapes | {"variant": name}}
                measure_chain(chain, device, rows, facts, num_runs=num_runs)


def measure_chain(
    chain: Callable[[], Any], device: Device, rows: RowFile, facts: dict[str, Any], *, num_runs: int
) -> None:
    expected = parts_of(chain())
    eager = timing_fields(device.wall_latencies_ms(chain, num_warmup=3, num_runs=num_runs))
    rows.write(STEP, "chain of ops", backend="eager", **facts, **eager)
    replay, outputs = captured(chain, device)
    replay()
    device.synchronize()
    difference = largest_difference(parts_of(outputs), expected)
    if not difference <= MAX_DIFFERENCE:
        raise RuntimeError(f"the graph's result differs from the eager one by {difference:g}")
    graph = timing_fields(device.wall_latencies_ms(replay, num_warmup=3, num_runs=num_runs))
    graph["ratio_to_eager"] = eager["p50_ms"] / graph["p50_ms"]
    rows.write(STEP, "chain of ops", backend="CUDA graph", **facts, **graph)


def captured(chain: Callable[[], Any], device: Device) -> tuple[Callable[[], Any], list[Any]]:
    """(replay, its outputs); without a GPU there is no graph and replay is the chain."""
    if not device.is_cuda:
        return chain, list(chain())
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            chain()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = list(chain())
    return graph.replay, outputs


def op_chain(
    device: Device, sizes: Sizes, layers: tuple[int, ...], dtype: str
) -> tuple[Callable[[], tuple[Any, ...]], dict[str, int]]:
    """(a call that queues the ops of a scan and gives both discrepancies, its shapes)."""
    frame = depth_frame(sizes.grid, coverage=sizes.coverage)
    num_groups = min(sizes.num_groups, len(frame.points))
    pixels, window_points, window_values = pooling_windows(frame.pixel_indices, sizes.grid)
    token_rows = bilinear_rows(pixels, token_grid=sizes.token_grid, output_size=sizes.grid)
    rng = np.random.default_rng(0)
    tokens = device.tensor(rng.standard_normal((sizes.token_grid**2, layers[0])).astype(np.float32))
    features = device.tensor(rng.standard_normal((num_groups, layers[-1])).astype(np.float32))
    entries = 3 * window_points.shape[1]
    offsets = device.tensor(np.arange(len(pixels) + 1, dtype=np.int64) * entries)
    of_tokens = [
        device.tensor(a) for a in (token_rows.offsets, token_rows.columns, token_rows.values)
    ]
    windows = device.tensor(window_points), device.tensor(window_values)
    points, cloud = device.tensor(frame.points), device.array(frame.points)
    interpolation = kernels_of("inverse_distance_interpolation")
    mapping = kernels_of("pixel_mapping")
    networks = [
        mapping.device_network(mapping_network(sizes_of), device.name, precision=dtype)
        for sizes_of in (layers, layers[::-1])
    ]
    backend = public_backend(device, "cuda")
    group_size = min(sizes.group_size, len(frame.points))

    def chain() -> tuple[Any, ...]:
        chosen = farthest_point_sampling(cloud, num_groups, backend=backend)
        groups = knn_grouping(cloud, chosen, group_size, backend=backend).groups
        at = chosen if device.is_cuda else device.tensor(chosen)
        indices, parts = interpolation.inverse_distance_weights(points, points[at])
        columns, values = interpolation.pooled_interpolation_rows(indices, parts, *windows)
        rgb, point = (tokens, *of_tokens), (features, offsets, columns, values)
        there = mapping.pixel_mapping(*rgb, *point, networks[0])
        back = mapping.pixel_mapping(*point, *rgb, networks[1])
        return groups, there, back

    return chain, {"N": len(frame.points), "P": len(pixels), "G": num_groups}
