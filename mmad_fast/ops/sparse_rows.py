"""Rows of a sparse matrix: how a pixel's feature is combined from a few tokens or point groups."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmad_fast.compiled_kernels import kernels_refusal
from mmad_fast.errors import InvalidInputError
from mmad_fast.validation import check_indices


@dataclass(frozen=True)
class SparseRows:
    """P rows over T columns in compressed-row form: row p is sum_k values[k] * feature[columns[k]]
    for k in offsets[p] .. offsets[p + 1].

    Interpolation, smoothing and pooling are linear, so the feature of a pixel is a short weighted
    sum of token (or group) features. Kept in this form, a Linear layer can be applied to the few
    tokens instead of the many pixels.

    The arrays may be on a CUDA device, all three of them on the same: there `pixel_mapping` takes
    them, `select` and `apply` do not, contents are not checked, and a column may occur several
    times in a row, in any order.

    Attributes:
        offsets: (P + 1,) int64, non-decreasing, offsets[0] == 0.
        columns: (nnz,) int32, in [0, num_columns), ascending within a row, no duplicates.
        values: (nnz,) float32, finite.
        num_columns: T.
    """

    offsets: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32]
    num_columns: int

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1

    def select(self, rows: NDArray[np.int64]) -> SparseRows:
        """The given rows (R,), in the given order.

        Raises:
            InvalidInputError: there is no such row.
        """
        from mmad_fast import _kernels

        chosen = check_indices(rows, "rows", limit=self.num_rows, of="the sparse rows")
        offsets, columns, values = _kernels.select_rows(*self._host_arrays(), chosen)
        return SparseRows(offsets, columns, values, self.num_columns)

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, C) float32: the dense features of all rows, from features (T, C).

        Each sum is added up in float32 in the order of its row.

        Raises:
            InvalidInputError: features has another number of rows than there are columns here, or a
                column is out of range.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.ndim != 2 or len(features) != self.num_columns:
            raise InvalidInputError(
                f"features has shape {features.shape}; it must be ({self.num_columns}, C), a row "
                "for each column of the sparse rows"
            )
        low, high = int(self.columns.min(initial=0)), int(self.columns.max(initial=0))
        if len(self.columns) and (low < 0 or high >= self.num_columns):
            raise InvalidInputError(
                f"the rows have column {low if low < 0 else high}; they must be in "
                f"0..{self.num_columns - 1}"
            )
        dense = np.empty((self.num_rows, features.shape[1]), np.float32)
        if kernels_refusal() is None:
            from mmad_fast import _kernels

            _kernels.apply_sparse_rows(*self._host_arrays(), features, dense)
            return dense
        for row, (begin, end) in enumerate(pairwise(self.offsets)):
            entries = self.values[begin:end, None] * features[self.columns[begin:end]]
            dense[row] = sum(entries, np.zeros(features.shape[1], np.float32))
        return dense

    def _host_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        return (
            np.ascontiguousarray(self.offsets, np.int64),
            np.ascontiguousarray(self.columns, np.int32),
            np.ascontiguousarray(self.values, np.float32),
        )
