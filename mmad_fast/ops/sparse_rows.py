"""Rows of a sparse matrix: how a pixel's feature is combined from a few tokens or point groups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.errors import InvalidInputError
from mmad_fast.validation import (
    MAX_INT32,
    check_float_matrix,
    check_float_vector,
    check_indices,
    check_integer,
)


@dataclass(frozen=True)
class SparseRows:
    """P rows over T columns in compressed-row form: row p is sum_k values[k] * feature[columns[k]]
    for k in offsets[p] .. offsets[p + 1].

    Interpolation, smoothing and pooling are linear, so the feature of a pixel is a short weighted
    sum of token (or group) features. Kept in this form, a Linear layer can be applied to the few
    tokens instead of the many pixels.

    The arrays may be on a CUDA device, all three of them on the same: there `pixel_mapping` takes
    them, `select` and `apply` do not, contents are not checked, and a column may occur several
    times in a row, in any order. NumPy arrays are checked when the rows are made: do not change
    them afterwards.

    Attributes:
        offsets: (P + 1,) int64, non-decreasing, offsets[0] == 0.
        columns: (nnz,) int32, in [0, num_columns), ascending within a row, no duplicates.
        values: (nnz,) float32, finite.
        num_columns: T, in 0..2^31 - 1.

    Raises:
        InvalidInputError: NumPy arrays of other types or shapes, offsets that do not ascend from 0
            to the number of entries, a column out of range, or a value that is not finite.
    """

    offsets: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]
    num_columns: int

    def __post_init__(self) -> None:
        if not isinstance(self.offsets, (np.ndarray, list, tuple)):
            return  # of a device; `_host_arrays` refuses them
        limit = check_integer(self.num_columns, "num_columns", minimum=0, maximum=MAX_INT32)
        columns = check_indices(self.columns, "columns", limit=limit, of="the columns")
        values = check_float_vector(self.values, "values", length=len(columns))
        offsets = check_indices(
            self.offsets, "offsets", limit=len(columns) + 1, of="the ends of rows"
        )
        ends = offsets[[0, -1]].tolist() if len(offsets) else []
        if ends != [0, len(columns)] or (offsets[1:] < offsets[:-1]).any():
            raise InvalidInputError(
                f"offsets are {len(offsets)} for {len(columns)} entries; they must begin with 0, "
                "never decrease and end with the number of entries"
            )
        checked = {"offsets": offsets, "columns": columns.astype(np.int32), "values": values}
        for name, array in checked.items():
            object.__setattr__(self, name, array)

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def select(self, rows: NDArray[np.int64]) -> SparseRows:
        """The given rows (R,), in the given order.

        Raises:
            InvalidInputError: there is no such row, or the arrays are on a device.
        """
        from mmad_fast import _kernels

        arrays = self._host_arrays()
        chosen = check_indices(rows, "rows", limit=self.num_rows, of="the sparse rows")
        offsets, columns, values = _kernels.select_rows(*arrays, chosen)
        return SparseRows(offsets, columns, values, self.num_columns)

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, C) float32: the dense features of all rows, from features (T, C).

        Each sum is added up in float32 in the order of its row.

        Raises:
            InvalidInputError: features are no finite (T, C) float array, or the arrays of the rows
                are on a device.
        """
        arrays = self._host_arrays()
        features = check_float_matrix(features, "features")
        if len(features) != self.num_columns:
            raise InvalidInputError(
                f"features has shape {features.shape}; it must be ({self.num_columns}, C), a row "
                "for each column of the sparse rows"
            )
        dense = np.empty((self.num_rows, features.shape[1]), np.float32)
        if kernels_refusal() is None:
            from mmad_fast import _kernels

            _kernels.apply_sparse_rows(*arrays, features, dense)
            return dense
        for row, (begin, end) in enumerate(pairwise(self.offsets)):
            entries = self.values[begin:end, None] * features[self.columns[begin:end]]
            dense[row] = sum(entries, np.zeros(features.shape[1], np.float32))
        return dense

    def _host_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        if not isinstance(self.offsets, np.ndarray):
            raise InvalidInputError(
                f"the arrays of these rows are {type(self.offsets).__qualname__}s; only rows of "
                "NumPy arrays are selected and applied"
            )
        return self.offsets, self.columns, self.values
