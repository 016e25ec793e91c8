"""The backends of farthest point sampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.farthest_point_sampling import reference
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal


def _cpu(
    index: PointIndex, num_samples: int, start_index: int, skip_near_origin: bool
) -> NDArray[np.int64]:
    from mmad_fast import _kernels

    indices = np.empty(num_samples, np.int64)
    _kernels.farthest_point_sampling(index.kernel_index, start_index, skip_near_origin, indices)
    return indices


def _reference(
    index: PointIndex, num_samples: int, start_index: int, skip_near_origin: bool
) -> NDArray[np.int64]:
    return reference.farthest_point_sampling(
        index.points, num_samples, start_index, skip_near_origin
    )


OP = Op(
    "farthest_point_sampling",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("reference", _reference, always),
    ),
    absent={
        "cuda": NOT_WRITTEN,
        "triton": "no kernel: every sample waits for the argmax over all points, a chain that does "
        "not suit Triton's independent programs; take backend='cpu' or 'auto'",
    },
)
