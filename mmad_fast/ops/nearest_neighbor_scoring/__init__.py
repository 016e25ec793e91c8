"""Distance of every query to its nearest row in a memory bank. The maths is in README.md."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops.nearest_neighbor_scoring.backends import OP
from mmad_fast.ops.nearest_neighbor_scoring.projection import choose_projection, no_projection
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
        rows: (M, C) float32 or float16, read-only. Where the given array was usable as it is, this
            is a view of it: do not change it afterwards.
    """

    def __init__(
        self, bank: NDArray[np.float32] | NDArray[np.float16], *, prune: bool = True
    ) -> None:
        """Takes bank (M, C), finite, M and C at least 1.

        Args:
            bank: float32; or float16, which halves the memory: the results are then those of the
                bank `bank.astype(np.float32)`.
            prune: Look for a projection of the rows that makes searching faster, and keep the
                projected rows: up to 128 float32 values per row where it helps, none where it
                does not. False for a bank that is searched once.

        Raises:
            InvalidInputError: not a matrix of finite float16, float32 or float64 with a row and a
                column.
        """
        rows = _check_bank(bank)
        if rows.shape[1] == 0:
            raise InvalidInputError(f"bank has shape {rows.shape}; at least 1 column is needed")
        rows = rows.view()
        rows.flags.writeable = False
        self.rows = rows
        self._prune = prune

    @cached_property
    def kernel_bank(self) -> Any:
        """What the compiled kernel reads: the rows, their norms and, where that helps, their
        projections. Made at first use; two threads that meet there make it twice, with equal
        content."""
        from mmad_fast import _kernels

        rows = self.rows
        mean, basis = choose_projection(rows) if self._prune else no_projection(rows.shape[1])
        return _kernels.Bank(
            rows.view(np.uint16) if rows.dtype == np.float16 else rows, mean, basis
        )


def _check_bank(bank: Any) -> NDArray[np.float32] | NDArray[np.float16]:
    """The bank, C-contiguous; a float16 one is checked without being held as float32."""
    if isinstance(bank, np.ndarray) and bank.dtype == np.float16:
        half: NDArray[np.float16] = np.ascontiguousarray(bank)
        if half.ndim == 2 and len(half) > 0 and np.isfinite(half).all():
            return half
        bank = half.astype(np.float32)  # is refused, with the reason
    return check_float_matrix(bank, "bank", min_rows=1)


def nearest_neighbor_scoring(
    queries: NDArray[np.float32],
    bank: NDArray[np.float32] | NDArray[np.float16] | PreparedBank,
    *,
    backend: str = "auto",
) -> NearestNeighbors:
    """The distance of every query to the nearest row of the bank, and that row's index.

    Never forms the Q x M matrix of distances. The result is that of float64 arithmetic on the
    float32 inputs, whatever the number of threads.

    Args:
        queries: (Q, C) float32, finite, any unit; Q may be 0.
        bank: (M, C) float32, finite, M >= 1; or a PreparedBank, which saves checking and measuring
            the rows at every call and can exclude most rows of a feature bank at a tenth of the
            cost; either may be float16.
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
    prepared = bank if isinstance(bank, PreparedBank) else PreparedBank(bank, prune=False)
    checked = check_float_matrix(queries, "queries")
    if checked.shape[1] != prepared.rows.shape[1]:
        raise InvalidInputError(
            f"queries have shape {checked.shape} and the bank has shape {prepared.rows.shape}; "
            "both must have the same number of columns: use the features the bank was built from"
        )
    distances, indices = implementation.function(checked, prepared)
    return NearestNeighbors(distances, indices)
