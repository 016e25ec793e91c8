"""pixel_mapping in both directions against torch eager, and the products under it against NumPy
and torch.

The published code maps all 50,176 pixels and drops the background afterwards: its time does not
depend on how many pixels are foreground. Its dense feature maps are given to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from ops import case as bench
from ops.bench_inverse_distance_interpolation import plain_weights, pooling_windows
from ops.inputs import Floats, Integers, MappingCase, depth_frame, mapping_network
from settings import read_toml

from mmad_fast import _kernels
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.pixel_mapping import bilinear_rows, pixel_mapping, reference
from mmad_fast.ops.sparse_rows import SparseRows

if TYPE_CHECKING:
    from gpu.device import Device

OP = "pixel_mapping"
SIDE, TOKEN_GRID, NUM_CENTERS = 224, 28, 1024
LAYERS = (768, 960, 960, 1152)
# Foreground pixels and a share of the frame that gives a few more; 14,049 are 28 %.
PIXELS = {"10k": (10_000, 0.2), "14k": (14_049, 0.28), "25k": (25_000, 0.5), "49k": (49_000, 1.7)}
PIECES = (*PIXELS, "gemm")
RUNS, BUDGET_S = 7, 16.0
MAX_DIFFERENCE = 1e-5
MAX_GEMM_DIFFERENCE = 3e-4
GELU_FLOP = 14
"""0.5 x (1 + erf(x / sqrt 2)): a polynomial of degree 5, an exponential, a few products."""
NUM_CHECKED_PIXELS = 100

Psi = tuple[Floats, Floats]


def cases(options: argparse.Namespace) -> Iterator[bench.Case]:
    """More and more foreground pixels, and the matrix products."""
    if options.only == "gemm":
        for m, n, k in read_toml(bench.FOLDER / "sizes.toml")["products"]:
            yield gemm_case(m, n, k, options.threads)
    else:
        yield case_of(*scene(*PIXELS[options.only]))


def scene(num_pixels: int, coverage: float) -> tuple[Integers, tuple[MappingCase, MappingCase]]:
    """(foreground pixels (P,), RGB to points and points to RGB) of a synthetic part of a little
    more than that many pixels, some of them left out."""
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
    rgb = (
        rng.standard_normal((TOKEN_GRID**2, LAYERS[0]), np.float32),
        bilinear_rows(pixels, token_grid=TOKEN_GRID, output_size=SIDE),
    )
    point = (rng.standard_normal((NUM_CENTERS, LAYERS[-1]), np.float32), pooled.rows.select(kept))
    return pixels, (
        MappingCase(*rgb, *point, mapping_network(LAYERS)),
        MappingCase(*point, *rgb, mapping_network(LAYERS[::-1], seed=1)),
    )


def case_of(pixels: Integers, directions: tuple[MappingCase, MappingCase]) -> bench.Case:
    def ours() -> Psi:
        there, back = (pixel_mapping(*direction.arguments) for direction in directions)
        return there, back

    def published(at: Integers | None) -> Callable[[], Psi]:
        there, back = (
            dense_mapping(direction, pixels, at, SIDE, "float32", "cpu") for direction in directions
        )
        return lambda: (there().numpy(), back().numpy())

    expected = ours()

    def error_of(got: Psi) -> float:
        return max(float(np.abs(g - e).max()) for g, e in zip(got, expected, strict=True))

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: ours,
        "torch eager, dense": lambda: published(None),
        "torch eager, foreground": lambda: published(pixels),
    }
    return bench.Case(
        OP,
        {"P": len(pixels)},
        bench.contenders(OP, makes),
        data="synthetic part",
        error_of=error_of,
        max_error=MAX_DIFFERENCE,
        same="same psi",
    )


def gemm_case(m: int, n: int, k: int, num_threads: int) -> bench.Case:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, k)).astype(np.float32) for rows in (m, n))
    packed = _kernels.PackedMatrix(b, _kernels.best_instruction_set())
    unwritten = np.full((3, m, n), np.nan, np.float32)  # one result per contender
    truth = a[:50].astype(np.float64) @ b.T.astype(np.float64)

    def ours() -> Floats:
        _kernels.gemm(a, packed, unwritten[0])
        return unwritten[0]

    def in_torch() -> Callable[[], Floats]:
        torch = bench.with_threads(num_threads)
        left, right = torch.from_numpy(a), torch.from_numpy(b).T
        out = torch.from_numpy(unwritten[2])
        return lambda: torch.mm(left, right, out=out).numpy()

    makes: dict[str, bench.Make] = {
        "mmad-fast": lambda: ours,
        "NumPy": lambda: lambda: np.matmul(a, b.T, out=unwritten[1]),
        "torch": in_torch,
    }
    return bench.Case(
        "gemm",
        {"m": m, "n": n, "k": k},
        bench.contenders("gemm", makes),
        data="random",
        work=bench.Work(matrix_flop=2.0 * m * n * k),
        error_of=lambda got: float(np.abs(got[:50] - truth).max()),
        max_error=MAX_GEMM_DIFFERENCE,
    )


def work(
    num_pixels: int,
    num_tokens: int,
    num_targets: int,
    layers: tuple[int, ...],
    *,
    source_entries: float,
    target_entries: float,
    dtype: str = "float32",
) -> bench.Work:
    """The first weight on the tokens; per pixel the expansion of its output, GELU, the inner
    layers, and the last one compared with the expanded target as it is made."""
    source, first, *_, target = layers
    inner = sum(a * b for a, b in pairwise(layers[1:]))
    return bench.Work(
        matrix_flop=2.0 * (num_tokens * source * first + num_pixels * inner),
        plain_flop=num_pixels
        * (
            2.0 * source_entries * first
            + GELU_FLOP * sum(layers[1:-1])
            + 2.0 * target_entries * target
            + 6.0 * target
        ),
        device_bytes=bench.OPERAND_BYTES[dtype] * (source * first + inner)
        + bench.FLOAT_BYTES * num_tokens * (source + 2 * first)
        + bench.FLOAT_BYTES * num_targets * target
        + num_pixels * (source_entries + target_entries) * 2 * bench.FLOAT_BYTES
        + bench.FLOAT_BYTES * num_pixels,
    )


def gpu_cases(sizes: bench.Sizes, device: Device) -> Iterator[bench.CaseMaker]:
    for name, layers in sizes.layers.items():
        yield partial(gpu_cases_of, name, tuple(layers), sizes, device)


def mapping_scene(sizes: bench.Sizes) -> tuple[Integers, SparseRows, SparseRows]:
    """(pixels (P,), token rows (P x T), point rows (P x G)) of a depth frame, the latter with the
    same number of entries in every row, as the GPU makes them."""
    frame = depth_frame(sizes.grid, coverage=sizes.coverage)
    num_groups = min(sizes.num_groups, len(frame.points))
    centers = frame.points[farthest_point_sampling(frame.points, num_groups)]
    indices, weights = plain_weights(frame.points, centers)
    pixels, window_points, window_values = pooling_windows(frame.pixel_indices, sizes.grid)
    is_point = window_points >= 0
    at = np.maximum(window_points, 0)
    columns = np.where(is_point[..., None], indices[at], 0).reshape(len(pixels), -1)
    values = (weights[at] * (window_values * is_point)[..., None]).reshape(len(pixels), -1)
    offsets = np.arange(len(pixels) + 1, dtype=np.int64) * columns.shape[1]
    point_rows = SparseRows(
        offsets, columns.astype(np.int32).ravel(), values.astype(np.float32).ravel(), num_groups
    )
    token_rows = bilinear_rows(pixels, token_grid=sizes.token_grid, output_size=sizes.grid)
    return pixels, token_rows, point_rows


def gpu_cases_of(
    name: str, layers: tuple[int, ...], sizes: bench.Sizes, device: Device
) -> list[bench.Case]:
    """Both directions in every precision."""
    pixels, token_rows, point_rows = mapping_scene(sizes)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((sizes.token_grid**2, layers[0])).astype(np.float32)
    groups = rng.standard_normal((point_rows.num_columns, layers[-1])).astype(np.float32)
    sides = (tokens, token_rows), (groups, point_rows)
    return [
        gpu_case(
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


def gpu_case(
    name: str,
    mapping: MappingCase,
    pixels: Integers,
    sizes: bench.Sizes,
    dtype: str,
    device: Device,
) -> bench.Case:
    chosen = bench.checked_rows(len(pixels), NUM_CHECKED_PIXELS)
    network = mapping.network
    layers = (network.in_channels, *(len(weight) for weight in network.weights))
    source = mapping.source_rows.select(chosen).apply(mapping.source_features)
    target = mapping.target_rows.select(chosen).apply(mapping.target_features)
    truth = reference.pixel_mapping(
        mapping.source_features,
        mapping.source_rows.select(chosen),
        mapping.target_features,
        mapping.target_rows.select(chosen),
        network.weights,
        network.biases,
    )
    plain = plain_psi(source, target, network, dtype)
    fused = partial(triton_mapping, mapping, dtype, device)
    listed = [bench.Contender("triton", fused, is_ours=True)]
    if dtype != "bfloat16":
        for label, at in (("all pixels", None), ("scored pixels", pixels)):
            dense = dense_mapping(mapping, pixels, at, sizes.grid, dtype, device.name)
            listed.append(bench.baseline(f"dense, {label}", dense))
    return bench.Case(
        OP,
        {"case": name, "P": len(pixels), "layers": list(layers)},
        listed,
        dtype=dtype,
        work=work(
            len(pixels),
            len(mapping.source_features),
            len(mapping.target_features),
            layers,
            source_entries=len(mapping.source_rows.columns) / len(pixels),
            target_entries=len(mapping.target_rows.columns) / len(pixels),
            dtype=dtype,
        ),
        error_of=lambda psi: float(np.abs(bench.host(psi)[chosen] - truth).max()),
        max_error=2 * float(np.abs(plain - truth).max()) + bench.TINY_ERROR,
    )


def plain_psi(source: Floats, target: Floats, network: Any, dtype: str) -> Floats:
    """psi as one writes it with operands of the type and float32 accumulate, densely."""
    import torch

    hidden = torch.from_numpy(source)
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        hidden = torch.nn.functional.gelu(hidden) if layer else hidden
        operand = torch.from_numpy(bench.rounded(hidden.numpy(), dtype))
        weights = torch.from_numpy(bench.rounded(weight, dtype))
        hidden = operand @ weights.T + torch.from_numpy(bias)
    return _psi(hidden, torch.from_numpy(target)).numpy()


def _psi(predicted: Any, target: Any) -> Any:
    from torch.nn.functional import normalize

    return (normalize(predicted, dim=-1) - normalize(target, dim=-1)).norm(dim=-1)


def triton_mapping(mapping: MappingCase, dtype: str, device: Device) -> Callable[[], Any]:
    """The fused kernel on everything of the case."""
    kernels = bench.kernels_of(OP)
    network = kernels.device_network(mapping.network, device.name, precision=dtype)
    arrays = [
        device.tensor(array)
        for features, rows in (
            (mapping.source_features, mapping.source_rows),
            (mapping.target_features, mapping.target_rows),
        )
        for array in (features, rows.offsets, rows.columns, rows.values)
    ]
    return lambda: kernels.pixel_mapping(*arrays, network)


def dense_mapping(
    mapping: MappingCase, pixels: Integers, at: Integers | None, grid: int, dtype: str, device: str
) -> Callable[[], Any]:
    """psi as published, from dense features that are there already: both networks on every pixel of
    the map, or on the pixels `at` only. Returns psi at the scored pixels."""
    import torch

    storage = getattr(torch, dtype)
    dense = []
    for features, rows in (
        (mapping.source_features, mapping.source_rows),
        (mapping.target_features, mapping.target_rows),
    ):
        found = rows.apply(features)
        if at is None:
            full = np.zeros((grid * grid, features.shape[1]), np.float32)
            full[pixels] = found
            found = full
        dense.append(torch.from_numpy(found).to(device, storage))
    layers = [
        (torch.from_numpy(weight).to(device, storage), torch.from_numpy(bias).to(device, storage))
        for weight, bias in zip(mapping.network.weights, mapping.network.biases, strict=True)
    ]
    where = torch.from_numpy(pixels).to(device)

    @torch.inference_mode()
    def psi() -> Any:
        hidden = dense[0]
        for layer, (weight, bias) in enumerate(layers):
            hidden = torch.nn.functional.gelu(hidden) if layer else hidden
            hidden = torch.nn.functional.linear(hidden, weight, bias)
        found = _psi(hidden.float(), dense[1].float())
        return found[where] if at is None else found

    return psi
