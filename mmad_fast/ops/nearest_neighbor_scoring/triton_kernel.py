"""Nearest-neighbour scoring in Triton. The maths and the error bound are in README.md.

Algorithm: 1. queries are rounded to the bank's type, each scaled by a power of two; 2. every split
of the bank finds, per query, its row with the smallest |m|^2 - 2 q.m; 3. these rows, one per split,
are compared by direct differences.

Launch: 1. one program per BLOCK_Q queries; 2. query tiles x splits, the query tile varying fastest,
so that the programs that run together read the same bank rows; 3. one program per query.

Memory: the bank is read ceil(Q / BLOCK_Q) times, in 16-byte pieces where the rows allow it; scores
stay in registers; between 2 and 3 lies one index per query and split.

Accumulation and precision: products in the bank's type, on tensor cores if it is a half type, or
float32 on sm_90 (three TF32 products per product); summed in float32. The comparison of step 3 in
float32, of the queries as given.

No kernel waits for the host or allocates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig, TritonKernel, compute_capability

Configs = Mapping[int, tuple[LaunchConfig, ...]]

PROGRAMS_PER_MULTIPROCESSOR = 2
"""The bank is split so that step 2 has about this many programs per multiprocessor: two equal waves
of one, or one wave where two are resident."""
MIN_SPLITS = 8
"""Fewest splits of the bank, also where the queries alone fill the device: each split gives the
exact comparison of step 3 one more candidate."""
INTERPRETED_MULTIPROCESSORS = 4


@triton.jit(do_not_specialize=["num_rows", "num_channels"])
def _squared_norms_kernel(  # type: ignore[no-untyped-def]
    bank,  # (M, C)
    squared_norms,  # (M)
    num_rows,
    num_channels,
    CHANNEL_MULTIPLE: tl.constexpr,  # divides C
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_channels = num_channels // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE  # seen by the compiler
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = m < num_rows
    row = bank + m.to(tl.int64)[:, None] * num_channels
    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for begin in range(0, num_channels, BLOCK_C):
        channel = begin + tl.arange(0, BLOCK_C)[None, :]
        is_value = is_row[:, None] & (channel < num_channels)
        value = tl.load(row + channel, mask=is_value, other=0.0).to(tl.float32)
        total += value * value
    tl.store(squared_norms + m, tl.sum(total, axis=1), mask=is_row)


@triton.jit(do_not_specialize=["num_queries", "num_channels"])
def _round_queries_kernel(  # type: ignore[no-untyped-def]
    queries,  # (Q, C) float32
    rounded,  # (Q, C) in the bank's type, divided by scales
    scales,  # (Q)
    num_queries,
    num_channels,
    CHANNEL_MULTIPLE: tl.constexpr,  # divides C
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_channels = num_channels // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE  # seen by the compiler
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = q < num_queries
    row = q.to(tl.int64)[:, None] * num_channels
    largest = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
    for begin in range(0, num_channels, BLOCK_C):
        channel = (begin + tl.arange(0, BLOCK_C))[None, :]
        is_value = is_query[:, None] & (channel < num_channels)
        value = tl.load(queries + row + channel, mask=is_value, other=0.0)
        largest = tl.maximum(largest, tl.abs(value))
    # The power of two at or below the largest value: its bits without the mantissa. At least
    # 2^-100 and at most 2^100, so that its inverse is a normal number too.
    bits = tl.max(largest, axis=1).to(tl.int32, bitcast=True)
    exponent = tl.minimum(tl.maximum(bits >> 23, 27), 227)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    for begin in range(0, num_channels, BLOCK_C):
        channel = (begin + tl.arange(0, BLOCK_C))[None, :]
        is_value = is_query[:, None] & (channel < num_channels)
        value = tl.load(queries + row + channel, mask=is_value, other=0.0) * inverse[:, None]
        tl.store(rounded + row + channel, value.to(rounded.dtype.element_ty), mask=is_value)
    tl.store(scales + q, (exponent << 23).to(tl.float32, bitcast=True), mask=is_query)


@triton.jit(do_not_specialize=["num_queries", "num_rows", "num_channels", "rows_per_split"])
def _candidates_kernel(  # type: ignore[no-untyped-def]
    queries,  # (Q, C) in the bank's type, divided by scales
    scales,  # (Q)
    bank,  # (M, C)
    squared_norms,  # (M)
    candidates,  # (Q, S), -1: none
    num_queries,
    num_rows,
    num_channels,
    rows_per_split,  # a multiple of BLOCK_M
    CHANNEL_MULTIPLE: tl.constexpr,  # divides C
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TF32X3: tl.constexpr,
):
    num_channels = num_channels // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE  # seen by the compiler
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_query = q < num_queries
    # Rows beyond the last are read as the last and left out at the end: no mask in the loop.
    query_row = queries + tl.minimum(q, num_queries - 1).to(tl.int64)[:, None] * num_channels
    factor = -2.0 * tl.load(scales + q, mask=is_query, other=1.0)
    lowest = tl.full([BLOCK_Q], float("inf"), tl.float32)
    lowest_at = tl.full([BLOCK_Q], -1, tl.int32)
    first = tl.program_id(1) * rows_per_split
    for tile in range(first, tl.minimum(first + rows_per_split, num_rows), BLOCK_M):
        m = tile + tl.arange(0, BLOCK_M)
        bank_row = bank + tl.minimum(m, num_rows - 1).to(tl.int64)[None, :] * num_channels
        products = tl.zeros([BLOCK_Q, BLOCK_M], tl.float32)
        for begin in range(0, num_channels, BLOCK_C):
            channel = begin + tl.arange(0, BLOCK_C)
            is_channel = channel < num_channels
            query = tl.load(query_row + channel[None, :], mask=is_channel[None, :], other=0.0)
            row = tl.load(bank_row + channel[:, None], mask=is_channel[:, None], other=0.0)
            products = tl.dot(query, row, products, input_precision="tf32x3" if TF32X3 else "ieee")
        norm = tl.load(squared_norms + m, mask=m < num_rows, other=float("inf"))
        score = norm[None, :] + factor[:, None] * products
        score = tl.where(score < float("inf"), score, float("inf"))  # NaN does not win
        tile_lowest, at = tl.min(score, axis=1, return_indices=True)  # of equals the first
        is_lower = tile_lowest < lowest
        lowest = tl.where(is_lower, tile_lowest, lowest)
        lowest_at = tl.where(is_lower, tile + at, lowest_at)
    to = q.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(candidates + to, lowest_at, mask=is_query)


@triton.jit(do_not_specialize=["num_channels", "num_splits"])
def _rescore_kernel(  # type: ignore[no-untyped-def]
    queries,  # (Q, C) float32
    bank,  # (M, C)
    candidates,  # (Q, S), -1: none; ascending where they are not
    distances,  # (Q)
    indices,  # (Q)
    num_channels,
    num_splits,
    CHANNEL_MULTIPLE: tl.constexpr,  # divides C
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_channels = num_channels // CHANNEL_MULTIPLE * CHANNEL_MULTIPLE  # seen by the compiler
    q = tl.program_id(0).to(tl.int64)
    nearest = float("inf")
    nearest_at = 0
    for begin_split in range(0, num_splits, BLOCK_S):
        split = begin_split + tl.arange(0, BLOCK_S)
        m = tl.load(candidates + q * num_splits + split, mask=split < num_splits, other=-1)
        is_row = m >= 0
        row = bank + m.to(tl.int64)[:, None] * num_channels
        total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        for begin in range(0, num_channels, BLOCK_C):
            channel = (begin + tl.arange(0, BLOCK_C))[None, :]
            is_channel = channel < num_channels
            query = tl.load(queries + q * num_channels + channel, mask=is_channel, other=0.0)
            value = tl.load(row + channel, mask=is_channel & is_row[:, None], other=0.0)
            difference = query - value.to(tl.float32)
            total += difference * difference
        squared = tl.sum(total, axis=1)
        squared = tl.where(is_row & (squared < float("inf")), squared, float("inf"))
        lowest = tl.min(squared, axis=0)
        at = tl.min(tl.where(squared == lowest, m, 2147483647), axis=0)
        # Candidates ascend, so an equal one of a later block has a higher index.
        is_nearer = lowest < nearest
        nearest_at = tl.where(is_nearer, at, nearest_at)
        nearest = tl.where(is_nearer, lowest, nearest)
    tl.store(distances + q, tl.sqrt_rn(nearest))
    tl.store(indices + q, nearest_at)


def _config(num_warps: int, num_stages: int, **constants: int) -> LaunchConfig:
    return LaunchConfig(num_warps, num_stages, constants)


def _candidates_config(
    num_warps: int, num_stages: int, q: int, m: int, c: int, *, tf32x3: bool = False
) -> LaunchConfig:
    return _config(num_warps, num_stages, BLOCK_Q=q, BLOCK_M=m, BLOCK_C=c, TF32X3=int(tf32x3))


_HALF_CONFIGS: Configs = {
    DEFAULT_SM: (
        _candidates_config(8, 3, 128, 128, 64),
        _candidates_config(8, 4, 128, 128, 32),
        _candidates_config(4, 4, 64, 128, 32),
    ),
    75: (_candidates_config(8, 2, 64, 128, 16), _candidates_config(4, 2, 64, 64, 16)),
    # Measured on an H100: 256 rows win by a fifth on large banks, 128 by a tenth on small ones.
    90: (_candidates_config(8, 3, 128, 256, 64), _candidates_config(8, 4, 128, 128, 64)),
    100: (_candidates_config(8, 4, 128, 128, 64), _candidates_config(8, 3, 128, 256, 64)),
}
# Three TF32 products beat float32's multiply-adds where tensor cores are much faster than these:
# measured on an H100. On GeForce cards both have the same rate.
_FLOAT_CONFIGS: Configs = {
    DEFAULT_SM: (_candidates_config(8, 3, 128, 128, 16), _candidates_config(4, 3, 64, 64, 32)),
    90: (
        _candidates_config(8, 3, 128, 128, 32, tf32x3=True),
        _candidates_config(4, 3, 64, 64, 32, tf32x3=True),
        _candidates_config(4, 3, 64, 128, 32, tf32x3=True),
    ),
}
# Rows that are not aligned are read value by value, which a deep pipeline cannot hide.
_UNALIGNED_HALF_CONFIGS: Configs = {
    DEFAULT_SM: (_candidates_config(4, 1, 64, 64, 32),),
    75: (_candidates_config(4, 1, 64, 64, 16),),
}
_UNALIGNED_FLOAT_CONFIGS: Configs = {DEFAULT_SM: (_candidates_config(8, 3, 128, 128, 16),)}
_TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class _Kernels(NamedTuple):
    """Of one type of bank and one divisor of C."""

    squared_norms: TritonKernel
    round_queries: TritonKernel
    candidates: TritonKernel
    rescore: TritonKernel


def _kernels(triton_type: str, multiple: int) -> _Kernels:
    is_half, is_aligned = triton_type != "fp32", multiple > 1
    configs = {
        (True, True): _HALF_CONFIGS,
        (True, False): _UNALIGNED_HALF_CONFIGS,
        (False, True): _FLOAT_CONFIGS,
        (False, False): _UNALIGNED_FLOAT_CONFIGS,
    }[is_half, is_aligned]
    of_type, of_float = f"*{triton_type}:16", "*fp32:16"

    def kernel(
        what: str,
        arguments: Mapping[str, str],
        configs: Configs,
        *,
        uses_tensor_cores: bool = False,
    ) -> TritonKernel:
        return TritonKernel(
            name=f"nearest_neighbor_scoring.{what}.{triton_type}.c{multiple}",
            function=f"_{what}_kernel",
            arguments=arguments,
            configs=configs,
            constants={"CHANNEL_MULTIPLE": multiple},
            uses_tensor_cores=uses_tensor_cores,
        )

    return _Kernels(
        kernel(
            "squared_norms",
            {"bank": of_type, "squared_norms": of_float, "num_rows": "i32", "num_channels": "i32"},
            {DEFAULT_SM: (_config(4, 1, BLOCK_M=16, BLOCK_C=128),)},
        ),
        kernel(
            "round_queries",
            {
                "queries": of_float,
                "rounded": of_type,
                "scales": of_float,
                "num_queries": "i32",
                "num_channels": "i32",
            },
            {DEFAULT_SM: (_config(4, 1, BLOCK_Q=8, BLOCK_C=128),)},
        ),
        kernel(
            "candidates",
            {
                "queries": of_type,
                "scales": of_float,
                "bank": of_type,
                "squared_norms": of_float,
                "candidates": "*i32:16",
                "num_queries": "i32",
                "num_rows": "i32",
                "num_channels": "i32",
                "rows_per_split": "i32",
            },
            configs,
            uses_tensor_cores=is_half,
        ),
        kernel(
            "rescore",
            {
                "queries": of_float,
                "bank": of_type,
                "candidates": "*i32:16",
                "distances": of_float,
                "indices": "*i64:16",
                "num_channels": "i32",
                "num_splits": "i32",
            },
            {DEFAULT_SM: (_config(4, 1, BLOCK_S=16, BLOCK_C=128),)},
        ),
    )


def _values_of_16_bytes(dtype: torch.dtype) -> int:
    return 16 // dtype.itemsize


_KERNELS = {
    (dtype, multiple): _kernels(triton_type, multiple)
    for dtype, triton_type in _TRITON_TYPES.items()
    for multiple in (_values_of_16_bytes(dtype), 1)
}
KERNELS: tuple[TritonKernel, ...] = tuple(k for kernels in _KERNELS.values() for k in kernels)


def squared_norms(bank: torch.Tensor) -> torch.Tensor:
    """(M,) float32: the sums of squares of the rows, for `nearest_neighbor_scoring`.

    Args:
        bank: (M, C) float32, float16 or bfloat16, contiguous.
    """
    norms = torch.empty(len(bank), dtype=torch.float32, device=bank.device)
    _launch_squared_norms(bank, norms)
    return norms


def nearest_neighbor_scoring(
    queries: torch.Tensor, bank: torch.Tensor, bank_squared_norms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """distances (Q,) float32 and indices (Q,) int64: the nearest bank row of every query.

    The distance is the Euclidean one to the row that is named, in float32. That row is the nearest
    up to the rounding of the queries to the bank's type and of float32 sums (README.md). Ties go to
    the lowest index where the sums are exact, and among equal rows always. Where no row is at a
    finite distance in float32, index 0 and infinity.

    Args:
        queries: (Q, C) float32, contiguous; Q may be 0.
        bank: (M, C) float32, float16 or bfloat16, contiguous, on the same device, 1 <= M < 2^31.
        bank_squared_norms: (M,) float32, from `squared_norms`.
    """
    distances = torch.empty(len(queries), dtype=torch.float32, device=queries.device)
    indices = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    if len(queries) > 0:
        num_splits = _choose_num_splits(queries, bank)
        _launch_scoring(queries, bank, bank_squared_norms, distances, indices, num_splits)
    return distances, indices


def _kernels_of(bank: torch.Tensor) -> _Kernels:
    multiple = _values_of_16_bytes(bank.dtype)
    return _KERNELS[bank.dtype, multiple if bank.shape[1] % multiple == 0 else 1]


def _choose_num_splits(queries: torch.Tensor, bank: torch.Tensor) -> int:
    """How many programs share the bank: so many that query tiles x splits fill the device."""
    num_multiprocessors = INTERPRETED_MULTIPROCESSORS
    if bank.is_cuda:
        properties = torch.cuda.get_device_properties(bank.device)
        num_multiprocessors = properties.multi_processor_count
    options = _kernels_of(bank).candidates.launch_options(compute_capability(bank))
    query_tiles = triton.cdiv(len(queries), options["BLOCK_Q"])
    filling = PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // query_tiles
    return max(MIN_SPLITS, filling)


def _launch_squared_norms(bank: torch.Tensor, norms: torch.Tensor) -> None:
    num_rows, num_channels = bank.shape
    if num_rows == 0:
        return
    options = _kernels_of(bank).squared_norms.launch_options(compute_capability(bank))
    with torch.cuda.device_of(bank):
        _squared_norms_kernel[(triton.cdiv(num_rows, options["BLOCK_M"]),)](
            bank, norms, num_rows, num_channels, **options
        )


def _launch_scoring(
    queries: torch.Tensor,
    bank: torch.Tensor,
    norms: torch.Tensor,
    distances: torch.Tensor,
    indices: torch.Tensor,
    num_splits: int,
) -> None:
    """All three steps; the bank is split in at most num_splits parts of whole tiles."""
    kernels, sm = _kernels_of(bank), compute_capability(bank)
    (num_queries, num_channels), num_rows = queries.shape, len(bank)
    rounded = torch.empty_like(queries, dtype=bank.dtype)
    scales = torch.empty_like(distances)
    options = kernels.candidates.launch_options(sm)
    num_tiles = triton.cdiv(num_rows, options["BLOCK_M"])
    rows_per_split = triton.cdiv(num_tiles, num_splits) * options["BLOCK_M"]
    num_splits = triton.cdiv(num_rows, rows_per_split)
    candidates = torch.empty((num_queries, num_splits), dtype=torch.int32, device=bank.device)
    round_options = kernels.round_queries.launch_options(sm)
    with torch.cuda.device_of(bank):
        _round_queries_kernel[(triton.cdiv(num_queries, round_options["BLOCK_Q"]),)](
            queries, rounded, scales, num_queries, num_channels, **round_options
        )
        _candidates_kernel[(triton.cdiv(num_queries, options["BLOCK_Q"]), num_splits)](
            rounded,
            scales,
            bank,
            norms,
            candidates,
            num_queries,
            num_rows,
            num_channels,
            rows_per_split,
            **options,
        )
        _rescore_kernel[(num_queries,)](
            queries,
            bank,
            candidates,
            distances,
            indices,
            num_channels,
            num_splits,
            **kernels.rescore.launch_options(sm),
        )
