"""What can run point_embedding, in the order in which "auto" tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.point_embedding import reference
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal

if TYPE_CHECKING:
    from mmad_fast.ops.point_embedding.weights import EmbedderWeights


def _cpu(groups: NDArray[np.float32], embedder: EmbedderWeights) -> NDArray[np.float32] | None:
    from mmad_fast import _kernels

    tokens = np.empty((len(groups), len(embedder.final_weight)), np.float32)
    fits = _kernels.point_embedding(groups, embedder.kernel_embedder, tokens)
    return tokens if fits else None


OP = Op(
    "point_embedding",
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("reference", reference.point_embedding, always),
    ),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
