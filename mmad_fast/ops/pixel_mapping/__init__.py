"""How far a crossmodal network's prediction is from the feature seen, at every pixel. The maths is
in README.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.pixel_mapping.backends import OP
from mmad_fast.ops.pixel_mapping.bilinear import bilinear_rows
from mmad_fast.ops.pixel_mapping.network import MappingNetwork, PackedMappingNetwork
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.ops.validation import check_float_matrix

__all__ = ["OP", "MappingNetwork", "PackedMappingNetwork", "bilinear_rows", "pixel_mapping"]


def pixel_mapping(
    source_features: NDArray[np.float32],
    source_rows: SparseRows,
    target_features: NDArray[np.float32],
    target_rows: SparseRows,
    network: MappingNetwork | PackedMappingNetwork,
    *,
    backend: str = "auto",
) -> NDArray[np.float32]:
    """The discrepancy psi of every pixel between the network's prediction and the target feature.

    psi = || l2n(network(E_source)) - l2n(E_target) ||_2 with E = rows.apply(features) and
    l2n(x) = x / max(|x|, 1e-12). A pixel whose rows are empty has E = 0, and l2n(0) = 0.

    Args:
        source_features: (T, Cs) float32, finite: tokens or point groups the network reads.
        source_rows: P rows over T: how each pixel's source feature is combined.
        target_features: (U, Ct) float32, finite: what the network predicts.
        target_rows: P rows over U.
        network: Cs -> Ct; packed ones run on the cpu backend only.
        backend: "auto", or a name of the table in backends.py.

    Returns:
        (P,) float32 in [0, 2].

    Raises:
        InvalidInputError: features that are not matrices of finite floats; rows that do not fit
            them, or have different numbers of pixels, or are inconsistent in themselves; a network
            of another width, or a packed one for another backend than cpu; activations beyond the
            range of float32.
        BackendUnavailableError: the named backend does not exist or cannot run here.

    Source: CFM, section 3.3 (the discrepancy maps); method facts 6.3. The published code expands
        the features to all 50,176 pixels first; exact algebra moves the first weight before the
        expansion.
    """
    implementation = OP.resolve(backend)
    if isinstance(network, PackedMappingNetwork) and implementation.name != "cpu":
        raise InvalidInputError(
            f"the network is packed for the cpu backend and the backend is {implementation.name}; "
            "pass the MappingNetwork that it was packed from"
        )
    source = check_float_matrix(source_features, "source_features")
    target = check_float_matrix(target_features, "target_features")
    source_rows = _check_rows(source_rows, "source_rows", source)
    target_rows = _check_rows(target_rows, "target_rows", target)
    if source_rows.num_rows != target_rows.num_rows:
        raise InvalidInputError(
            f"source_rows has {source_rows.num_rows} pixels and target_rows has "
            f"{target_rows.num_rows}; both must describe the same pixels"
        )
    if (source.shape[1], target.shape[1]) != (network.in_channels, network.out_channels):
        raise InvalidInputError(
            f"source_features have shape {source.shape} and target_features have shape "
            f"{target.shape}, but the network maps {network.in_channels} channels to "
            f"{network.out_channels}: use the backbones the network was fitted with"
        )
    psi = implementation.function(source, source_rows, target, target_rows, network)
    if not np.isfinite(psi).all():
        raise InvalidInputError(
            f"psi is not finite at {np.count_nonzero(~np.isfinite(psi))} of {len(psi)} pixels: the "
            "network's activations leave the range of float32; check the scale of source_features "
            f"(largest magnitude {np.abs(source).max(initial=0):.3g}) and of the weights"
        )
    return psi


def _check_rows(rows: SparseRows, name: str, features: NDArray[np.float32]) -> SparseRows:
    """The rows with the kernels' dtypes, contiguous, every index inside the features."""
    if not isinstance(rows, SparseRows):
        raise InvalidInputError(f"{name} is a {type(rows).__name__}; it must be a SparseRows")
    if rows.num_columns != len(features):
        raise InvalidInputError(
            f"{name} has {rows.num_columns} columns and its features have shape {features.shape}; "
            "there must be one column per feature row"
        )
    offsets = np.ascontiguousarray(rows.offsets, np.int64)
    columns = np.ascontiguousarray(rows.columns, np.int32)
    values = np.ascontiguousarray(rows.values, np.float32)
    if offsets.ndim != 1 or len(offsets) == 0 or columns.ndim != 1 or columns.shape != values.shape:
        raise InvalidInputError(
            f"{name} has offsets {offsets.shape}, columns {columns.shape} and values "
            f"{values.shape}; it must be (P + 1,), (nnz,) and (nnz,)"
        )
    if offsets[0] != 0 or offsets[-1] != len(columns) or (np.diff(offsets) < 0).any():
        raise InvalidInputError(
            f"{name} has offsets from {offsets[0]} to {offsets[-1]} for {len(columns)} entries; "
            "they must start at 0, never decrease and end at the number of entries"
        )
    if len(columns) and (columns.min() < 0 or columns.max() >= len(features)):
        raise InvalidInputError(
            f"{name} refers to columns {columns.min()} to {columns.max()}; they must be in "
            f"0..{len(features) - 1}"
        )
    if not np.isfinite(values).all():
        raise InvalidInputError(f"{name} has a NaN or infinite value; all values must be finite")
    return SparseRows(offsets, columns, values, rows.num_columns)
