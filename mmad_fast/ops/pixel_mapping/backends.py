"""What can run pixel_mapping, in the order in which "auto" tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmad_fast.ops.pixel_mapping import reference
from mmad_fast.ops.registry import NOT_WRITTEN, Backend, Op, always, kernels_refusal
from mmad_fast.ops.sparse_rows import SparseRows

if TYPE_CHECKING:
    from mmad_fast.ops.pixel_mapping.network import MappingNetwork, PackedMappingNetwork


def _cpu(
    source_features: NDArray[np.float32],
    source_rows: SparseRows,
    target_features: NDArray[np.float32],
    target_rows: SparseRows,
    network: MappingNetwork | PackedMappingNetwork,
) -> NDArray[np.float32]:
    from mmad_fast import _kernels

    psi = np.empty(source_rows.num_rows, np.float32)
    _kernels.pixel_mapping(
        source_features,
        source_rows.offsets,
        source_rows.columns,
        source_rows.values,
        target_features,
        target_rows.offsets,
        target_rows.columns,
        target_rows.values,
        network.kernel_network,
        psi,
    )
    return psi


def _reference(
    source_features: NDArray[np.float32],
    source_rows: SparseRows,
    target_features: NDArray[np.float32],
    target_rows: SparseRows,
    network: MappingNetwork,
) -> NDArray[np.float32]:
    return reference.pixel_mapping(
        source_features, source_rows, target_features, target_rows, network.weights, network.biases
    )


OP = Op(
    "pixel_mapping",
    (Backend("cpu", _cpu, kernels_refusal), Backend("reference", _reference, always)),
    absent={"cuda": NOT_WRITTEN, "triton": NOT_WRITTEN},
)
