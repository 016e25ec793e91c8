"""The backends of farthest point sampling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.farthest_point_sampling import reference
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal


def _cpu(
    points: NDArray[np.float32], num_samples: int, start_index: int, skip_near_origin: bool
) -> NDArray[np.int64]:
    from mmad_fast import _kernels

    indices = np.empty(num_samples, np.int64)
    _kernels.farthest_point_sampling(points, start_index, skip_near_origin, indices)
    return indices


OP = Op(
    "farthest_point_sampling",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("reference", reference.farthest_point_sampling, always),
    ),
    absent={
        "cuda": NOT_WRITTEN,
        "triton": "no kernel: every sample waits for the argmax over all points, a chain that does "
        "not suit Triton's independent programs; take backend='cpu' or 'auto'",
    },
)
