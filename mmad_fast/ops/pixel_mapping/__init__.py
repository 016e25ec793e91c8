"""How far a crossmodal network's prediction is from the feature seen, at every pixel. The maths is
in README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import DeviceArray, is_device_array, read_device_array
from mmad_fast.ops.pixel_mapping.backends import OP, network_on_device
from mmad_fast.ops.pixel_mapping.bilinear import bilinear_rows
from mmad_fast.ops.pixel_mapping.network import MappingNetwork, PackedMappingNetwork
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.validation import check_float_matrix

if TYPE_CHECKING:
    from mmad_fast.ops.pixel_mapping.device_network import DeviceMappingNetwork

__all__ = ["OP", "MappingNetwork", "PackedMappingNetwork", "bilinear_rows", "pixel_mapping"]


def pixel_mapping(
    source_features: NDArray[np.float32],
    source_rows: SparseRows,
    target_features: NDArray[np.float32],
    target_rows: SparseRows,
    network: MappingNetwork | PackedMappingNetwork | DeviceMappingNetwork,
    *,
    backend: str = "auto",
) -> NDArray[np.float32]:
    """(P,) float32 in [0, 2]: the discrepancy psi of every pixel between the network's prediction
    and the target feature.

    psi = || l2n(network(E_source)) - l2n(E_target) ||_2 with E = rows.apply(features) and
    l2n(x) = x / max(|x|, 1e-12). A pixel whose rows are empty has E = 0, and l2n(0) = 0.

    Args:
        source_features: (T, Cs) float32, finite: tokens or point groups the network reads. Where
            they are on a CUDA device, the target features and the arrays of both rows must be, and
            the result is; contents are not checked there.
        source_rows: P rows over T: how each pixel's source feature is combined.
        target_features: (U, Ct) float32, finite: what the network predicts.
        target_rows: P rows over U.
        network: Cs -> Ct; packed ones run on the cpu backend only. On a device a MappingNetwork is
            uploaded once, for float32 arithmetic; a DeviceMappingNetwork (made by `device_network`
            in device_network.py) has a precision of its own.
        backend: "auto", or a name of the table in backends.py.

    Raises:
        InvalidInputError: features that are not matrices of finite floats; rows that do not fit
            them, or have different numbers of pixels; a network
            of another width, or a packed one for another backend than cpu; activations beyond the
            range of float32 (psi is not looked at on a device). On a device: an array of another
            type, not C-contiguous, or on another device.
        BackendUnavailableError: the named backend does not exist or cannot run here.

    Source: CFM, section 3.3 (the discrepancy maps); method facts 6.3. The published code expands
        the features to all 50,176 pixels first; exact algebra moves the first weight before the
        expansion.
    """
    if is_device_array(source_features):
        return _on_device(
            source_features, source_rows, target_features, target_rows, network, backend
        )
    implementation = OP.resolve(backend)
    if isinstance(network, PackedMappingNetwork) and implementation.name != "cpu":
        raise InvalidInputError(
            f"the network is packed for the cpu backend and the backend is {implementation.name}; "
            "pass the MappingNetwork that it was packed from"
        )
    source = check_float_matrix(source_features, "source_features")
    target = check_float_matrix(target_features, "target_features")
    _check_rows(source_rows, "source_rows", source)
    _check_rows(target_rows, "target_rows", target)
    _check_fit(source_rows.num_rows, target_rows.num_rows, source.shape, target.shape, network)
    psi = implementation.function(source, source_rows, target, target_rows, network)
    if not np.isfinite(psi).all():
        raise InvalidInputError(
            f"psi is not finite at {np.count_nonzero(~np.isfinite(psi))} of {len(psi)} pixels: the "
            "network's activations leave the range of float32; check the scale of source_features "
            f"(largest magnitude {np.abs(source).max(initial=0):.3g}) and of the weights"
        )
    return psi


def _on_device(
    source_features: Any,
    source_rows: SparseRows,
    target_features: Any,
    target_rows: SparseRows,
    network: Any,
    backend: str,
) -> Any:
    implementation = OP.resolve(backend, device="cuda")
    source = read_device_array(source_features, "source_features", shape=(None, None))
    target = read_device_array(target_features, "target_features", shape=(None, None), like=source)
    source_arrays = _read_device_rows(source_rows, "source_rows", source, like=source)
    target_arrays = _read_device_rows(target_rows, "target_rows", target, like=source)
    network = network_on_device(network, source)
    num_pixels = len(source_arrays[0]) - 1, len(target_arrays[0]) - 1
    _check_fit(*num_pixels, source.shape, target.shape, network)
    return implementation.function((source, *source_arrays, target, *target_arrays), network)


def _read_device_rows(
    rows: SparseRows, name: str, features: DeviceArray, *, like: DeviceArray
) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    """Offsets, columns and values."""
    _check_row_kind(rows, name, features.shape)
    offsets = read_device_array(
        rows.offsets, f"{name}.offsets", shape=(None,), dtypes=("int64",), like=like
    )
    columns = read_device_array(
        rows.columns, f"{name}.columns", shape=(None,), dtypes=("int32",), like=like
    )
    values = read_device_array(rows.values, f"{name}.values", shape=columns.shape, like=like)
    if len(offsets) == 0:
        raise InvalidInputError(f"{name}.offsets is empty; it must be (P + 1,)")
    return offsets, columns, values


def _check_fit(
    num_source_pixels: int,
    num_target_pixels: int,
    source: tuple[int, ...],
    target: tuple[int, ...],
    network: Any,
) -> None:
    if num_source_pixels != num_target_pixels:
        raise InvalidInputError(
            f"source_rows has {num_source_pixels} pixels and target_rows has "
            f"{num_target_pixels}; both must describe the same pixels"
        )
    if (source[1], target[1]) != (network.in_channels, network.out_channels):
        raise InvalidInputError(
            f"source_features have shape {source} and target_features have shape "
            f"{target}, but the network maps {network.in_channels} channels to "
            f"{network.out_channels}: use the backbones the network was fitted with"
        )


def _check_row_kind(rows: SparseRows, name: str, features: tuple[int, ...]) -> None:
    if not isinstance(rows, SparseRows):
        raise InvalidInputError(f"{name} is a {type(rows).__name__}; it must be a SparseRows")
    if rows.num_columns != features[0]:
        raise InvalidInputError(
            f"{name} has {rows.num_columns} columns and its features have shape {features}; "
            "there must be one column per feature row"
        )


def _check_rows(rows: SparseRows, name: str, features: NDArray[np.float32]) -> None:
    _check_row_kind(rows, name, features.shape)
    if not isinstance(rows.offsets, np.ndarray):
        raise InvalidInputError(
            f"{name} is on a CUDA device and its features are a NumPy array; all arrays of one "
            "call must be in one place"
        )
