"""What can run point_embedding, in the order in which "auto" tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.point_embedding import reference
from mmad_fast.ops.registry import Backend, Op, always

if TYPE_CHECKING:
    from mmad_fast.ops.point_embedding.weights import EmbedderWeights


def _cpu(groups: NDArray[np.float32], embedder: EmbedderWeights) -> NDArray[np.float32] | None:
    from mmad_fast import _kernels

    tokens = np.empty((len(groups), len(embedder.final_weight)), np.float32)
    fits = _kernels.point_embedding(groups, embedder.kernel_embedder, tokens)
    return tokens if fits else None


def _torch(groups: DeviceArray, embedder: EmbedderWeights) -> Any:
    from mmad_fast.ops.point_embedding import torch_kernel

    with groups.torch_stream():
        tokens = torch_kernel.point_embedding(groups.tensor(), embedder)
        return groups.give(tokens)


OP = Op(
    "point_embedding",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("torch", _torch, cuda_kernels.torch_refusal, device="cuda"),
        Backend("reference", reference.point_embedding, always),
    ),
    absent=dict.fromkeys(
        ("cuda", "triton"),
        "no kernel: nearly all of it is large dense matrix products, at which cuBLAS is hard to "
        "beat; the backend 'torch' calls it",
    ),
)
