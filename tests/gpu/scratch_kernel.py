"""A Triton kernel for the tests of compiling and launching: a product of matrices and a bias."""

from __future__ import annotations

import triton
import triton.language as tl

from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig, TritonKernel


@triton.jit
def _load_tile(pointer, rows, columns, num_rows, num_columns):
    mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    return tl.load(pointer + rows[:, None] * num_columns + columns[None, :], mask=mask, other=0.0)


@triton.jit
def product(
    left,
    right,
    out,
    M,
    N,
    K,
    bias,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out (M, N) = left (M, K) right (N, K)^T + bias; a program writes one tile."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.full([BLOCK_M, BLOCK_N], bias, tl.float32)
    for start in range(0, K, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        a = _load_tile(left, rows, inner, M, K)
        b = _load_tile(right, columns, inner, N, K)
        total = tl.dot(a, tl.trans(b), total)
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    tl.store(out + rows[:, None].to(tl.int64) * N + columns[None, :], total, mask=mask)


def _config(rows: int, columns: int) -> LaunchConfig:
    return LaunchConfig(4, 3, {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 64})


KERNELS = (
    TritonKernel(
        name="scratch.product.float16",
        function="product",
        arguments={
            "left": "*fp16:16",
            "right": "*fp16:16",
            "out": "*fp32:16",
            "M": "i32",
            "N": "i64",
            "K": "i32:16",
            "bias": "fp32",
        },
        configs={DEFAULT_SM: (_config(64, 64), _config(32, 64)), 90: (_config(128, 64),)},
        uses_tensor_cores=True,
    ),
)
