"""What can run nearest_neighbor_scoring, in the order in which "auto" tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.nearest_neighbor_scoring import reference
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal

if TYPE_CHECKING:
    from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def _cpu(queries: NDArray[np.float32], bank: PreparedBank) -> Found:
    from mmad_fast import _kernels

    distances = np.empty(len(queries), np.float32)
    indices = np.empty(len(queries), np.int64)
    _kernels.nearest_neighbor_scoring(queries, bank.kernel_bank, distances, indices)
    return distances, indices


def _reference(queries: NDArray[np.float32], bank: PreparedBank) -> Found:
    return reference.nearest_neighbor_scoring(queries, bank.rows)


OP = Op(
    "nearest_neighbor_scoring",
    (Backend("cpu", _cpu, kernels_refusal), Backend("reference", _reference, always)),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
