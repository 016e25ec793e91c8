"""What can run nearest_neighbor_scoring, in the order in which "auto" tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.nearest_neighbor_scoring import reference
from mmad_fast.ops.registry import Backend, Op, always

if TYPE_CHECKING:
    from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


class DeviceBank(NamedTuple):
    """A memory bank on a CUDA device.

    Attributes:
        rows: (M, C) float32, float16 or bfloat16.
        squared_norms: (M,) float32, a torch tensor.
    """

    rows: DeviceArray
    squared_norms: Any


def make_device_bank(rows: DeviceArray) -> DeviceBank:
    """The bank with its norms, computed on the rows' stream.

    Raises:
        BackendUnavailableError: no GPU backend can run here.
    """
    OP.resolve(device="cuda")
    from mmad_fast.ops.nearest_neighbor_scoring import triton_kernel

    with rows.torch_stream():
        return DeviceBank(rows, triton_kernel.squared_norms(rows.tensor()))


def _cpu(queries: NDArray[np.float32], bank: PreparedBank) -> Found:
    from mmad_fast import _kernels

    distances = np.empty(len(queries), np.float32)
    indices = np.empty(len(queries), np.int64)
    _kernels.nearest_neighbor_scoring(queries, bank.kernel_bank, distances, indices)
    return distances, indices


def _cpu_rows(query: NDArray[np.float32], bank: PreparedBank, count: int, exclude: int) -> Found:
    from mmad_fast import _kernels

    distances = np.empty(count, np.float32)
    indices = np.empty(count, np.int64)
    found = _kernels.nearest_rows(query, bank.kernel_bank, exclude, distances, indices)
    return distances[:found], indices[:found]


def _triton(queries: DeviceArray, bank: DeviceBank) -> tuple[Any, Any]:
    from mmad_fast.ops.nearest_neighbor_scoring import triton_kernel

    with queries.torch_stream():
        distances, indices = triton_kernel.nearest_neighbor_scoring(
            queries.tensor(), bank.rows.tensor(), bank.squared_norms
        )
        return queries.give(distances), queries.give(indices)


def _reference(queries: NDArray[np.float32], bank: PreparedBank) -> Found:
    return reference.nearest_neighbor_scoring(queries, bank.rows)


def _reference_rows(
    query: NDArray[np.float32], bank: PreparedBank, count: int, exclude: int
) -> Found:
    return reference.nearest_rows(query, bank.rows, count=count, exclude=exclude)


OP = Op(
    "nearest_neighbor_scoring",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("triton", _triton, cuda_kernels.triton_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "cuda": "no kernel: nearly all of it is a matrix product, whose tensor core code Triton "
        "writes for each architecture; the backend 'triton' has it",
    },
)

NEAREST_ROWS_OP = Op(
    "nearest_rows",
    (
        Backend("cpu", _cpu_rows, kernels_refusal),
        Backend("reference", _reference_rows, always),
    ),
    absent={
        "triton": "no kernel: one query reads the bank once, which torch's own products do",
        "cuda": "no kernel: one query reads the bank once, which torch's own products do",
    },
)
"""The backends of the function `nearest_rows`."""
