"""Distance of every query to its nearest row in a memory bank. The maths is in README.md."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import DeviceArray, is_device_array, read_device_array
from mmad_fast.ops.nearest_neighbor_scoring.backends import (
    NEAREST_ROWS_OP,
    OP,
    DeviceBank,
    make_device_bank,
)
from mmad_fast.ops.nearest_neighbor_scoring.projection import choose_projection, no_projection
from mmad_fast.validation import check_float_matrix, check_float_vector, check_integer

if TYPE_CHECKING:
    from mmad_fast import _kernels

__all__ = [
    "NEAREST_ROWS_OP",
    "OP",
    "NearestNeighbors",
    "PreparedBank",
    "nearest_neighbor_scoring",
    "nearest_rows",
]

ROWS_PER_CHECK = 1024
BANK_TYPES_ON_DEVICE = ("float32", "float16", "bfloat16")


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
            is a view of it: do not change it afterwards. A bank on a CUDA device is kept as given.
        device_bank: What the GPU backend reads; None for a NumPy array.
    """

    def __init__(
        self, bank: NDArray[np.float32] | NDArray[np.float16], *, prune: bool = True
    ) -> None:
        """Takes bank (M, C), finite, M and C at least 1.

        Args:
            bank: float32; or float16, which halves the memory: the results are then those of the
                bank `bank.astype(np.float32)`. On a CUDA device also bfloat16; contents are not
                checked there, and the rows' norms are computed now, on the array's stream.
            prune: Look for a projection of the rows that makes searching faster, and keep the
                projected rows: up to 128 float32 values per row where it helps, none where it
                does not. False for a bank that is searched once. Of no effect on a device.

        Raises:
            InvalidInputError: not a matrix of finite float16, float32 or float64 with a row and a
                column.
            BackendUnavailableError: a bank on a CUDA device, and no GPU backend can run.
        """
        self.device_bank: DeviceBank | None = None
        if is_device_array(bank):
            self.rows = bank
            self.device_bank = make_device_bank(_read_device_bank(bank))
            return
        rows = _check_bank(bank)
        if rows.shape[1] == 0:
            raise InvalidInputError(f"bank has shape {rows.shape}; at least 1 column is needed")
        rows = rows.view()
        rows.flags.writeable = False
        self.rows = rows
        self._prune = prune

    def prepare(self) -> PreparedBank:
        """This bank, measured and projected now: where the compiled kernel searches it, the first
        search would do that."""
        if self.device_bank is None and OP.resolve().name == "cpu":
            _ = self.kernel_bank
        return self

    @cached_property
    def kernel_bank(self) -> _kernels.Bank:
        """What the compiled kernel reads: the rows, their norms and, where that helps, their
        projections. Made at first use; two threads that meet there make it twice, with equal
        content."""
        from mmad_fast import _kernels

        rows = self.rows
        mean, basis = choose_projection(rows) if self._prune else no_projection(rows.shape[1])
        if rows.dtype == np.float16:
            return _kernels.Bank(rows.view(np.uint16), mean, basis)
        return _kernels.Bank(rows.astype(np.float32, copy=False), mean, basis)


def _check_bank(bank: Any) -> NDArray[np.float32] | NDArray[np.float16]:
    """The bank, C-contiguous; a float16 one is checked without being held as float32."""
    if isinstance(bank, np.ndarray) and bank.dtype == np.float16:
        half: NDArray[np.float16] = np.ascontiguousarray(bank)
        if half.ndim == 2 and len(half) > 0 and _is_finite(half):
            return half
        bank = half.astype(np.float32)  # is refused, with the reason
    return check_float_matrix(bank, "bank", min_rows=1)


def _is_finite(bank: NDArray[np.float16]) -> bool:
    """Every value is; without an array of the bank's size, which is read from disk at its pace."""
    blocks = range(0, len(bank), ROWS_PER_CHECK)
    return all(np.isfinite(bank[first : first + ROWS_PER_CHECK]).all() for first in blocks)


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
        queries: (Q, C) float32, finite, any unit; Q may be 0. On a CUDA device the bank must be
            there, too, the results are, and contents are not checked.
        bank: (M, C) float32, finite, M >= 1; or a PreparedBank, which saves checking and measuring
            the rows at every call and can exclude most rows of a feature bank at a tenth of the
            cost; either may be float16.
        backend: "auto", or a name of the table in backends.py.

    Raises:
        InvalidInputError: an array that is not a matrix of finite floats, an empty bank, or queries
            and bank with different numbers of columns; only one of both on a CUDA device, or not
            on the same one.
        BackendUnavailableError: the named backend does not exist or cannot run here.

    Source: d_min = min_j ||f - m_j|| of M3DM, section 3.4 (patch scores of PatchCore); method facts
        5.4. The published code takes torch.cdist, whose float32 matrix form loses digits where
        query and row are close.
    """
    if is_device_array(queries):
        return _on_device(queries, bank, backend)
    implementation = OP.resolve(backend)
    prepared = bank if isinstance(bank, PreparedBank) else PreparedBank(bank, prune=False)
    if prepared.device_bank is not None:
        raise InvalidInputError(
            f"the bank is on CUDA device {prepared.device_bank.rows.device} and queries are a "
            f"{type(queries).__qualname__}; move the queries there, or bring the bank to the host"
        )
    checked = check_float_matrix(queries, "queries")
    _check_widths(checked.shape, prepared.rows.shape)
    distances, indices = implementation.function(checked, prepared)
    return NearestNeighbors(distances, indices)


def nearest_rows(
    query: NDArray[np.float32] | NDArray[np.float16],
    bank: PreparedBank,
    *,
    count: int,
    exclude: int | None = None,
    backend: str = "auto",
) -> NearestNeighbors:
    """The rows of the bank that are nearest to one query, and their distances.

    The result is that of float64 arithmetic, whatever the number of threads. Where the bank has a
    projection, one pass over the projected rows finds it; else one pass over the bank.

    Args:
        query: (C,) float32 or float16, finite; a row of the bank, for one.
        bank: In host memory.
        count: How many rows, at least 1.
        exclude: A row of the bank that is left out; None leaves out none.
        backend: "auto", or a name of NEAREST_ROWS_OP in backends.py.

    Returns:
        distances (K,) float32, ascending, and indices (K,) int64, of equal distances the lowest
        first; K is `count`, or fewer where the bank has no more rows.

    Raises:
        InvalidInputError: a query that is no vector of C finite floats, a count below 1, an
            excluded row that does not exist, a bank on a CUDA device.
        BackendUnavailableError: the named backend does not exist or cannot run here.

    Source: the neighbours of m* in PatchCore (Roth et al., 2022), equation 7; method facts 5.4.
    """
    implementation = NEAREST_ROWS_OP.resolve(backend)
    if not isinstance(bank, PreparedBank):
        raise InvalidInputError(
            f"bank is a {type(bank).__qualname__}; it must be a PreparedBank: PreparedBank(bank)"
        )
    if bank.device_bank is not None:
        raise InvalidInputError(
            f"the bank is on CUDA device {bank.device_bank.rows.device}; nearest_rows takes one in "
            "host memory: PreparedBank(rows) of a NumPy array"
        )
    num_rows = len(bank.rows)
    count = check_integer(count, "count", minimum=1)
    if exclude is not None:
        exclude = check_integer(exclude, "exclude", minimum=0, maximum=num_rows - 1)
    if isinstance(query, np.ndarray) and query.dtype == np.float16:
        query = query.astype(np.float32)
    checked = check_float_vector(query, "query")
    _check_widths((1, *checked.shape), bank.rows.shape)
    excluded = -1 if exclude is None else exclude
    return NearestNeighbors(*implementation.function(checked, bank, min(count, num_rows), excluded))


def _on_device(queries: Any, bank: Any, backend: str) -> NearestNeighbors:
    implementation = OP.resolve(backend, device="cuda")
    array = read_device_array(queries, "queries", shape=(None, None))
    if isinstance(bank, PreparedBank):
        device_bank = bank.device_bank
        where = "in host memory" if device_bank is None else f"on {device_bank.rows.device}"
        if device_bank is None or device_bank.rows.device != array.device:
            raise InvalidInputError(
                f"queries are on CUDA device {array.device} and the bank is {where}; prepare "
                f"a bank on device {array.device}, e.g. with "
                f"PreparedBank(torch.as_tensor(bank, device='cuda:{array.device}'))"
            )
    else:
        device_bank = make_device_bank(_read_device_bank(bank, like=array))
    _check_widths(array.shape, device_bank.rows.shape)
    return NearestNeighbors(*implementation.function(array, device_bank))


def _read_device_bank(bank: Any, *, like: DeviceArray | None = None) -> DeviceArray:
    rows = read_device_array(
        bank, "bank", shape=(None, None), dtypes=BANK_TYPES_ON_DEVICE, like=like
    )
    if 0 in rows.shape:
        raise InvalidInputError(
            f"bank has shape {rows.shape}; at least 1 row and 1 column are needed"
        )
    return rows


def _check_widths(queries: tuple[int, ...], bank: tuple[int, ...]) -> None:
    if queries[1] != bank[1]:
        raise InvalidInputError(
            f"queries have shape {queries} and the bank has shape {bank}; "
            "both must have the same number of columns: use the features the bank was built from"
        )
