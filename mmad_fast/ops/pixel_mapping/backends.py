"""What can run pixel_mapping, in the order in which "auto" tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu import cuda_kernels
from mmad_fast.gpu.device_arrays import DeviceArray
from mmad_fast.ops.pixel_mapping import reference
from mmad_fast.ops.pixel_mapping.network import MappingNetwork
from mmad_fast.ops.registry import Backend, Op, always
from mmad_fast.ops.sparse_rows import SparseRows

if TYPE_CHECKING:
    from mmad_fast.ops.pixel_mapping.network import PackedMappingNetwork


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


def network_on_device(network: Any, beside: DeviceArray) -> Any:
    """The DeviceMappingNetwork of a network, uploaded at the first use and kept with it.

    Raises:
        InvalidInputError: neither a MappingNetwork nor a DeviceMappingNetwork.
    """
    from mmad_fast.ops.pixel_mapping.device_network import DeviceMappingNetwork, device_network

    if isinstance(network, DeviceMappingNetwork):
        return network
    if not isinstance(network, MappingNetwork):
        raise InvalidInputError(
            f"the network is a {type(network).__name__}; on a CUDA device it must be a "
            "MappingNetwork or a DeviceMappingNetwork"
        )
    if beside.device not in network.on_devices:
        with beside.torch_stream():
            network.on_devices[beside.device] = device_network(network, beside.torch_device)
    return network.on_devices[beside.device]


def _triton(arrays: tuple[DeviceArray, ...], network: Any) -> Any:
    """arrays: source features, offsets, columns, values; the same of the target."""
    from mmad_fast.ops.pixel_mapping import triton_kernel

    source = arrays[0]
    with source.torch_stream():
        arguments: list[Any] = [*(array.tensor() for array in arrays), network]
        return source.give(triton_kernel.pixel_mapping(*arguments))


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
    (
        Backend("cpu", _cpu, kernels_refusal),
        Backend("triton", _triton, cuda_kernels.triton_refusal, device="cuda"),
        Backend("reference", _reference, always),
    ),
    absent={
        "cuda": "no kernel: it is a chain of matrix products, whose tensor core code Triton writes "
        "for each architecture; the backend 'triton' has it",
    },
)
