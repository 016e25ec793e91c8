"""The kernel table's cases in feature space: scoring, mapping and embedding (and the coreset,
of coreset_op_cases.py). See op_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kernel_costs as costs
import numpy as np
from ceilings import product_precision
from coreset_op_cases import coreset_case
from geometry_op_cases import plain_weights_in_parts, pooling_windows
from gpu_device import Device
from numpy.typing import NDArray
from op_cases import (
    TINY_ERROR,
    OpCase,
    Sizes,
    checked_rows,
    host,
    public_backend,
    triton_function,
)
from ops.cases import depth_frame
from ops.embedding_cases import embedder_weights, surface_groups
from ops.feature_cases import MappingCase, mapping_network, queries_and_bank

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.pixel_mapping import bilinear_rows, reference
from mmad_fast.ops.point_embedding import point_embedding
from mmad_fast.ops.sparse_rows import SparseRows

TRITON_SCORING = "mmad_fast.ops.nearest_neighbor_scoring.triton_kernel"
TRITON_MAPPING = "mmad_fast.ops.pixel_mapping.triton_kernel"
NUM_CHECKED_QUERIES = 8
NUM_CHECKED_PIXELS = 100
MAX_MATRIX_BYTES = 8 << 30
EMBEDDING_ERROR = 1e-4
"""Relative to the largest token, as in bench/ops/bench_point_embedding.py."""


def rounded(array: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The array after a trip through the type."""
    import torch

    return torch.from_numpy(array).to(getattr(torch, dtype)).float().numpy()


def scoring_case(name: str, size: tuple[int, int, int], dtype: str, device: Device) -> OpCase:
    """Distance of every query to its nearest bank row; the bank held in `dtype`."""
    num_queries, num_rows, num_channels = size
    queries, bank = queries_and_bank(*size)
    bank = rounded(bank, dtype)
    chosen = checked_rows(num_queries, NUM_CHECKED_QUERIES)
    truth = np.empty(len(chosen))
    plain = np.empty(len(chosen))
    norms = (bank * bank).sum(axis=1, dtype=np.float32)
    for at, query in enumerate(queries[chosen]):
        exact = _distances(bank, query)
        truth[at] = exact.min()
        nearest = int((norms - 2 * (bank @ rounded(query, dtype))).argmin())
        plain[at] = exact[nearest]
    plain_error = float((np.abs(plain - truth) / truth).max())

    def error_of(found: Any) -> float:
        distances, indices = (host(part)[chosen] for part in found)
        reached = np.array(
            [
                np.sqrt(((bank[i].astype(np.float64) - q) ** 2).sum())
                for i, q in zip(indices, queries[chosen].astype(np.float64), strict=True)
            ]
        )
        wrong = np.maximum(np.abs(reached - truth), np.abs(distances - reached))
        return float((wrong / truth).max())

    case = OpCase(
        "nearest_neighbor_scoring",
        {"bank": name, "Q": num_queries, "M": num_rows, "C": num_channels},
        costs.nearest_neighbor_scoring(*size, precision=dtype),
        error_of,
        2 * plain_error + TINY_ERROR,
        dtype=dtype,
    )
    import torch

    query_tensor = device.tensor(queries)
    bank_tensor = device.tensor(bank).to(getattr(torch, dtype))

    def triton() -> Callable[[], Any]:
        function = triton_function(TRITON_SCORING, "nearest_neighbor_scoring")
        squared_norms = triton_function(TRITON_SCORING, "squared_norms")(bank_tensor)
        return lambda: function(query_tensor, bank_tensor, squared_norms)

    def expanded() -> Any:
        """The smallest |m|^2 - 2 q.m, with the whole matrix in memory."""
        operand = query_tensor.to(bank_tensor.dtype)
        rows_float = bank_tensor.float()
        scores = (rows_float * rows_float).sum(dim=1) - 2 * (operand @ bank_tensor.T).float()
        indices = scores.argmin(dim=1)
        return (query_tensor - rows_float[indices]).norm(dim=1), indices

    case.offer("triton", triton)
    if num_queries * num_rows * 12 <= MAX_MATRIX_BYTES:
        if dtype == "float32":
            case.baselines["torch, cdist and min"] = lambda: tuple(
                torch.cdist(query_tensor, bank_tensor).min(dim=1)
            )
        case.baselines["torch, matrix product and argmin"] = expanded
    return case


def _distances(bank: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """(M,) float64, a part of the bank at a time."""
    exact = query.astype(np.float64)
    parts = np.array_split(bank, max(1, len(bank) // 8192))
    return np.concatenate(
        [np.sqrt(((part.astype(np.float64) - exact) ** 2).sum(axis=1)) for part in parts]
    )


def mapping_scene(sizes: Sizes) -> tuple[NDArray[np.int64], SparseRows, SparseRows]:
    """(pixels (P,), token rows (P x T), point rows (P x G)) of a depth frame, the latter with the
    same number of entries in every row, as the GPU makes them."""
    frame = depth_frame(sizes.grid, coverage=sizes.coverage)
    num_groups = min(sizes.num_groups, len(frame.points))
    centers = frame.points[farthest_point_sampling(frame.points, num_groups)]
    indices, weights = plain_weights_in_parts(frame.points, centers)
    pixels, window_points, window_values = pooling_windows(frame.pixel_indices, sizes.grid)
    is_point = window_points >= 0
    at = np.maximum(window_points, 0)
    columns = np.where(is_point[..., None], indices[at], 0).reshape(len(pixels), -1)
    values = (weights[at] * (window_values * is_point)[..., None]).reshape(len(pixels), -1)
    offsets = np.arange(len(pixels) + 1, dtype=np.int64) * columns.shape[1]
    point_rows = SparseRows(
        offsets,
        columns.astype(np.int32).ravel(),
        values.astype(np.float32).ravel(),
        num_groups,
    )
    token_rows = bilinear_rows(pixels, token_grid=sizes.token_grid, output_size=sizes.grid)
    return pixels, token_rows, point_rows


def mapping_cases(name: str, layers: tuple[int, ...], sizes: Sizes, device: Device) -> list[OpCase]:
    """Both directions in every precision."""
    pixels, token_rows, point_rows = mapping_scene(sizes)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((sizes.token_grid**2, layers[0])).astype(np.float32)
    groups = rng.standard_normal((point_rows.num_columns, layers[-1])).astype(np.float32)
    sides = (tokens, token_rows), (groups, point_rows)
    return [
        mapping_case(
            f"{name}, {direction}",
            MappingCase(*source, *target, mapping_network(network)),
            pixels,
            sizes,
            dtype,
            device,
        )
        for direction, source, target, network in (
            ("RGB to points", *sides, layers),
            ("points to RGB", *sides[::-1], layers[::-1]),
        )
        for dtype in sizes.dtypes
    ]


def mapping_case(
    name: str,
    mapping: MappingCase,
    pixels: NDArray[np.int64],
    sizes: Sizes,
    dtype: str,
    device: Device,
) -> OpCase:
    chosen = checked_rows(len(pixels), NUM_CHECKED_PIXELS)
    network = mapping.network
    layers = (network.in_channels, *(len(weight) for weight in network.weights))
    some = [
        (host_rows(features, rows, chosen))
        for features, rows in (
            (mapping.source_features, mapping.source_rows),
            (mapping.target_features, mapping.target_rows),
        )
    ]
    truth = reference.pixel_mapping(
        mapping.source_features,
        mapping.source_rows.select(chosen),
        mapping.target_features,
        mapping.target_rows.select(chosen),
        network.weights,
        network.biases,
    )
    plain = plain_psi(*some, network, dtype)
    case = OpCase(
        "pixel_mapping",
        {"case": name, "P": len(pixels), "layers": list(layers)},
        costs.pixel_mapping(
            len(pixels),
            len(mapping.source_features),
            len(mapping.target_features),
            layers,
            source_entries=len(mapping.source_rows.columns) / len(pixels),
            target_entries=len(mapping.target_rows.columns) / len(pixels),
            precision=dtype,
        ),
        lambda psi: float(np.abs(host(psi)[chosen] - truth).max()),
        2 * float(np.abs(plain - truth).max()) + TINY_ERROR,
        dtype=dtype,
    )
    case.offer("triton", lambda: triton_mapping(mapping, dtype, device))
    if dtype != "bfloat16":
        for label, at in (("all pixels", None), ("scored pixels", pixels)):
            case.baselines[f"torch, dense, {label}"] = dense_mapping(
                mapping, pixels, at, sizes.grid, dtype, device
            )
    return case


def host_rows(
    features: NDArray[np.float32], rows: SparseRows, chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(R, C) float32: the dense features of some rows, whose columns may repeat."""
    selected = rows.select(chosen)
    lengths = np.diff(selected.offsets)
    matrix = np.zeros((len(chosen), rows.num_columns), np.float32)
    row_of_entry = np.repeat(np.arange(len(chosen)), lengths)
    np.add.at(matrix, (row_of_entry, selected.columns), selected.values)
    return matrix @ features


def plain_psi(
    source: NDArray[np.float32], target: NDArray[np.float32], network: Any, dtype: str
) -> NDArray[np.float32]:
    """psi as one writes it with operands of the type and float32 accumulate, densely."""
    import torch

    hidden = torch.from_numpy(source)
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        hidden = torch.nn.functional.gelu(hidden) if layer else hidden
        operand = torch.from_numpy(rounded(hidden.numpy(), dtype))
        weights = torch.from_numpy(rounded(weight, dtype))
        hidden = operand @ weights.T + torch.from_numpy(bias)
    return _psi(hidden, torch.from_numpy(target)).numpy()


def _psi(predicted: Any, target: Any) -> Any:
    from torch.nn.functional import normalize

    return (normalize(predicted, dim=-1) - normalize(target, dim=-1)).norm(dim=-1)


def triton_mapping(mapping: MappingCase, dtype: str, device: Device) -> Callable[[], Any]:
    """The fused kernel on everything of the case."""
    function = triton_function(TRITON_MAPPING, "pixel_mapping")
    network = triton_function(TRITON_MAPPING, "device_network")(
        mapping.network, device.name, precision=dtype
    )
    arrays = [
        device.tensor(array)
        for features, rows in (
            (mapping.source_features, mapping.source_rows),
            (mapping.target_features, mapping.target_rows),
        )
        for array in (features, rows.offsets, rows.columns, rows.values)
    ]
    return lambda: function(*arrays, network)


def dense_mapping(
    mapping: MappingCase,
    pixels: NDArray[np.int64],
    at: NDArray[np.int64] | None,
    grid: int,
    dtype: str,
    device: Device,
) -> Callable[[], Any]:
    """psi as published, from dense features that are there already: both networks on every pixel of
    the map, or on the pixels `at` only. Returns psi at the scored pixels."""
    import torch

    storage = getattr(torch, dtype)
    everything = np.arange(len(pixels))
    dense = []
    for features, rows in (
        (mapping.source_features, mapping.source_rows),
        (mapping.target_features, mapping.target_rows),
    ):
        found = host_rows(features, rows, everything)
        if at is None:
            full = np.zeros((grid * grid, features.shape[1]), np.float32)
            full[pixels] = found
            found = full
        dense.append(device.tensor(found).to(storage))
    layers = [
        (device.tensor(weight).to(storage), device.tensor(bias).to(storage))
        for weight, bias in zip(mapping.network.weights, mapping.network.biases, strict=True)
    ]
    where = device.tensor(pixels)

    @torch.inference_mode()
    def psi() -> Any:
        hidden = dense[0]
        for layer, (weight, bias) in enumerate(layers):
            hidden = torch.nn.functional.gelu(hidden) if layer else hidden
            hidden = torch.nn.functional.linear(hidden, weight, bias)
        found = _psi(hidden.float(), dense[1].float())
        return found[where] if at is None else found

    return psi


def embedding_case(sizes: Sizes, device: Device) -> OpCase:
    """The group embedder with the statistics of the cloud."""
    groups = surface_groups(sizes.num_groups, sizes.group_size)
    embedder = embedder_weights(uses_cloud_statistics=True)
    truth = point_embedding(groups, embedder, backend="reference")
    scale = float(np.abs(truth).max())
    case = OpCase(
        "point_embedding",
        {"G": sizes.num_groups, "K": sizes.group_size, "batch_norm": "cloud"},
        costs.point_embedding(sizes.num_groups, sizes.group_size),
        lambda tokens: float(np.abs(host(tokens) - truth).max()) / scale,
        EMBEDDING_ERROR,
    )
    array = device.array(groups)
    backend = public_backend(device, "torch")

    def call() -> Any:
        with product_precision("float32"):
            return point_embedding(array, embedder, backend=backend)

    case.functions["torch"] = call
    case.baselines["torch, layer by layer"] = layered_embedding(groups, embedder, device)
    return case


def layered_embedding(groups: NDArray[np.float32], embedder: Any, device: Device) -> Any:
    """The reference's layers in torch float32, each stored for all points."""
    import torch

    names = (
        *("first_weight", "first_bias", "first_norm_weight", "first_norm_bias", "wide_weight"),
        *("group_weight", "group_bias", "local_weight", "second_norm_weight", "second_norm_bias"),
        *("final_weight", "final_bias"),
    )
    w = {name: device.tensor(getattr(embedder, name)) for name in names}
    points = device.tensor(groups)
    num_groups, group_size = groups.shape[:2]

    def norm(x: Any, which: str) -> Any:
        weight, bias = w[f"{which}_norm_weight"], w[f"{which}_norm_bias"]
        return torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)

    @torch.inference_mode()
    def tokens() -> Any:
        hidden = points.view(-1, 3) @ w["first_weight"].T + w["first_bias"]
        hidden = torch.relu(norm(hidden, "first"))
        summary = (hidden @ w["wide_weight"].T).view(num_groups, group_size, -1).amax(dim=1)
        group_half = summary @ w["group_weight"].T + w["group_bias"]
        wide = (hidden @ w["local_weight"].T).view(num_groups, group_size, -1)
        wide = torch.relu(norm((wide + group_half[:, None]).flatten(0, 1), "second"))
        wide = (wide @ w["final_weight"].T).view(num_groups, group_size, -1)
        return wide.amax(dim=1) + w["final_bias"]

    return tokens


def feature_cases(sizes: Sizes, device: Device) -> list[Callable[[], list[OpCase]]]:
    """What makes the cases, one after the other: their inputs are large."""
    makers: list[Callable[[], list[OpCase]]] = [lambda: [embedding_case(sizes, device)]]
    for name, layers in sizes.layers.items():
        makers.append(lambda n=name, k=layers: mapping_cases(n, k, sizes, device))
    for name, size in sizes.banks.items():
        for dtype in sizes.dtypes:
            makers.append(lambda n=name, s=size, d=dtype: [scoring_case(n, s, d, device)])
    for name, size in sizes.coresets.items():
        for dtype in (dtype for dtype in sizes.dtypes if dtype != "bfloat16"):
            makers.append(lambda n=name, s=size, d=dtype: [coreset_case(n, s, d, device)])
    return makers
