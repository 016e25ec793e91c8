"""The backends of cosine maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.cosine_maps import reference
from mmad_fast.ops.registry import Backend, Op, always

Levels = Sequence[NDArray[np.float32]]


def _cpu(
    targets: Levels, restored: Levels, size: int, sigma: float, align_corners: bool
) -> NDArray[np.float32]:
    from mmad_fast import _kernels

    anomaly_map = np.empty((size, size), np.float32)
    _kernels.cosine_maps(list(targets), list(restored), sigma, align_corners, anomaly_map)
    return anomaly_map


def _reference(
    targets: Levels, restored: Levels, size: int, sigma: float, align_corners: bool
) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):  # of features that are not finite; refused afterwards
        exact = reference.cosine_maps(targets, restored, size, sigma, align_corners)
    return exact.astype(np.float32)


def _cuda(
    targets: Sequence[DeviceArray],
    restored: Sequence[DeviceArray],
    size: int,
    sigma: float,
    align_corners: bool,
) -> Any:
    kernels = cuda_kernels.kernels()
    first = targets[0]
    levels = [
        (target.pointer, other.pointer, *target.shape)
        for target, other in zip(targets, restored, strict=True)
    ]
    anomaly_map = first.empty((size, size), "float32")
    workspace = first.empty((kernels.cosine_maps_workspace(levels, size),), "uint8")
    kernels.cosine_maps(
        first.device,
        levels,
        size,
        sigma,
        align_corners,
        anomaly_map.pointer,
        workspace.pointer,
        first.stream,
    )
    return first.give(anomaly_map)


OP = Op(
    "cosine_maps",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("cuda", _cuda, cuda_kernels.cuda_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={"triton": "no kernel: the backend 'cuda' reads every feature once, as one would"},
)
