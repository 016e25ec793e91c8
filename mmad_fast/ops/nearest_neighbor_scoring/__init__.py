"""Distance of every query to its nearest row in a memory bank. The maths is in README.md."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.nearest_neighbor_scoring.backends import OP
from mmad_fast.ops.validation import check_float_matrix

__all__ = ["OP", "NearestNeighbors", "PreparedBank", "nearest_neighbor_scoring"]


class NearestNeighbors(NamedTuple):
    """The nearest bank row of every query.

    Attributes:
        distances: (Q,) float32, Euclidean, >= 0.
        indices: (Q,) int64, row of the bank; the lowest where several are equally near.
    """

    distances: NDArray[np.float32]
    indices: NDArray[np.int64]


class PreparedBank:
    """A memory bank that is checked and measured once, for scoring many scans. Thread-safe.

    Attributes:
        rows: (M, C) float32, read-only. Where the given array was usable as it is, this is a view
            of it: do not change it afterwards.
    """

    def __init__(self, bank: NDArray[np.float32]) -> None:
        """Takes bank (M, C) float32, finite, M and C at least 1.

        Raises:
            InvalidInputError: not a matrix of finite float32 or float64 with a row and a column.
        """
        rows = check_float_matrix(bank, "bank", min_rows=1).view()
        if rows.shape[1] == 0:
            raise InvalidInputError(f"bank has shape {rows.shape}; at least 1 column is needed")
        rows.flags.writeable = False
        self.rows = rows

    @cached_property
    def kernel_bank(self) -> Any:
        """What the compiled kernel reads: the rows and their squared norms. Made at first use; two
        threads that meet there make it twice, with equal content."""
        from mmad_fast import _kernels

        return _kernels.Bank(self.rows)


def nearest_neighbor_scoring(
    queries: NDArray[np.float32],
    bank: NDArray[np.float32] | PreparedBank,
    *,
    backend: str = "auto",
) -> NearestNeighbors:
    """The distance of every query to the nearest row of the bank, and that row's index.

    Never forms the Q x M matrix of distances. The result is that of float64 arithmetic on the
    float32 inputs, whatever the number of threads.

    Args:
        queries: (Q, C) float32, finite, any unit; Q may be 0.
        bank: (M, C) float32, finite, M >= 1; or a PreparedBank, which saves checking and measuring
            the rows at every call.
        backend: "auto", or a name of the table in backends.py.

    Returns:
        distances (Q,) float32 and indices (Q,) int64; ties go to the lowest index.

    Raises:
        InvalidInputError: an array that is not a matrix of finite floats, an empty bank, or queries
            and bank with different numbers of columns.
        BackendUnavailableError: the named backend does not exist or cannot run here.

    Source: d_min = min_j ||f - m_j|| of M3DM, section 3.4 (patch scores of PatchCore); method facts
        5.4. The published code takes torch.cdist, whose float32 matrix form loses digits where
        query and row are close.
    """
    implementation = OP.resolve(backend)
    prepared = bank if isinstance(bank, PreparedBank) else PreparedBank(bank)
    checked = check_float_matrix(queries, "queries")
    if checked.shape[1] != prepared.rows.shape[1]:
        raise InvalidInputError(
            f"queries have shape {checked.shape} and the bank has shape {prepared.rows.shape}; "
            "both must have the same number of columns: use the features the bank was built from"
        )
    distances, indices = implementation.function(checked, prepared)
    return NearestNeighbors(distances, indices)
