"""The backends of greedy k-centre selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.k_center_greedy import reference
from mmad_fast.ops.nearest_neighbor_scoring.projection import (
    Projection,
    choose_projection,
    no_projection,
)
from mmad_fast.ops.registry import Backend, Op, always

MIN_TERMS_TO_PROJECT = 1e11
"""Multiply-adds of a selection without pruning (rows x columns x selected rows) from which on a
projection is looked for."""

Report = Callable[[int], None]


def projection_of(rows: NDArray[np.float32], num_samples: int) -> Projection:
    """What the cpu backend projects the rows to: decides about time only, never about results."""
    if float(rows.size) * min(num_samples, len(rows)) < MIN_TERMS_TO_PROJECT:
        return no_projection(rows.shape[1])
    return choose_projection(rows)


def _cpu(
    rows: NDArray[np.float32], num_samples: int, start: int, report: Report
) -> NDArray[np.int64]:
    from mmad_fast import _kernels

    indices = np.empty(min(num_samples, len(rows)), np.int64)
    mean, basis = projection_of(rows, num_samples)
    selected = _kernels.k_center_greedy(rows, mean, basis, start, indices, report)
    return indices[: selected.num_selected]


def _triton(rows: DeviceArray, num_samples: int, start: int, report: Report) -> Any:
    from mmad_fast.ops.k_center_greedy import triton_kernel

    with rows.torch_stream():
        return rows.give(triton_kernel.k_center_greedy(rows.tensor(), num_samples, start, report))


def _reference(
    rows: NDArray[np.float32], num_samples: int, start: int, report: Report
) -> NDArray[np.int64]:
    indices = reference.k_center_greedy(rows, num_samples, start)
    report(len(indices))
    return indices


OP = Op(
    "k_center_greedy",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("triton", _triton, cuda_kernels.triton_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "cuda": "no kernel: a step reads all rows once and its time is that of the memory, which "
        "Triton's code reaches as well; the backend 'triton' has it",
    },
)
