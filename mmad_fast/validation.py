"""What the ops check of the arrays they are given: once, at the public function of each op."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError

MAX_MAGNITUDE = 1e18
"""Largest value whose squared differences still fit in float32, so that no distance is infinite."""
MAX_INT32 = 2**31 - 1
MAX_CENTERS = 2**24
"""Of a cloud: more than any has points, and few enough to be held in memory per thread."""
MAX_SIDE = 2**12
"""Of a grid of pixels or tokens."""
VALUES_PER_PART = 1 << 18
"""Of a matrix that is checked: 1 MiB."""


def check_float_matrix(
    array: Any, name: str, *, num_columns: int | None = None, min_rows: int = 0
) -> NDArray[np.float32]:
    """(R, C) float32, C-contiguous, finite: the array itself where it is that already.

    Args:
        array: (R, C) NumPy array or nested sequence, float32 or float64 (rounded to float32); may
            be strided or read-only.
        name: What the caller calls it.
        num_columns: C, if only one is allowed.
        min_rows: Smallest R.

    Raises:
        InvalidInputError: not a NumPy array or sequence of numbers, another dtype, another shape,
            too few rows, NaN, infinite, or larger than 1e18 in magnitude.
    """
    matrix = _as_array(array, name)
    columns = "C" if num_columns is None else str(num_columns)
    if matrix.ndim != 2 or (num_columns is not None and matrix.shape[1] != num_columns):
        raise InvalidInputError(f"{name} has shape {matrix.shape}; it must be (rows, {columns})")
    if matrix.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InvalidInputError(
            f"{name} has dtype {matrix.dtype}; it must be float32 (or float64, which is rounded): "
            f"convert it with {name}.astype(np.float32)"
        )
    check_rows(matrix, name, minimum=min_rows)
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    if not all(_is_bounded(part) for part in _parts(matrix)):
        _refuse_content(matrix, name)
    return matrix


def check_float_vector(array: Any, name: str, *, length: int | None = None) -> NDArray[np.float32]:
    """(length,) float32, C-contiguous, finite; as `check_float_matrix`, of one axis.

    Raises:
        InvalidInputError: another number of axes or, where it is given, another length; as
            `check_float_matrix`.
    """
    vector = _as_array(array, name)
    if vector.ndim != 1 or length not in (None, len(vector)):
        wanted = "length" if length is None else length
        raise InvalidInputError(
            f"{name} has shape {vector.shape}; it must be one vector ({wanted},)"
        )
    return check_float_matrix(vector[None], name)[0]


def check_rows(matrix: Sized, name: str, *, minimum: int) -> None:
    """Nothing, where the matrix has enough rows.

    Raises:
        InvalidInputError: it has fewer.
    """
    if len(matrix) < minimum:
        raise InvalidInputError(
            f"{name} has {len(matrix)} rows; at least {minimum} "
            f"{'is' if minimum == 1 else 'are'} needed"
        )


def check_indices(
    array: Any, name: str, *, limit: int, of: str, shape: tuple[int | None, ...] = (None,)
) -> NDArray[np.int64]:
    """The array as C-contiguous int64, every value in [0, limit).

    Args:
        array: NumPy integer array or nested sequence of integers.
        name: What the caller calls it.
        limit: One more than the largest index.
        of: What is indexed, for the message.
        shape: The length of each axis, None where any is allowed.

    Raises:
        InvalidInputError: not integers, another shape, or a value outside the range.
    """
    indices = _as_array(array, name)
    if len(shape) != indices.ndim or any(
        length is not None and length != given
        for length, given in zip(shape, indices.shape, strict=True)
    ):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise InvalidInputError(f"{name} has shape {indices.shape}; it must be ({wanted})")
    if indices.size == 0:
        return np.empty(indices.shape, np.int64)
    if indices.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} has dtype {indices.dtype}; it must hold integer indices")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= limit:
        raise InvalidInputError(
            f"{name} holds {low if low < 0 else high}; it must be in 0..{limit - 1}, "
            f"the range of {of}"
        )
    return np.ascontiguousarray(indices, dtype=np.int64)


def check_integer(value: Any, name: str, *, minimum: int, maximum: int | None = None) -> int:
    """The value as int.

    Raises:
        InvalidInputError: not an integer (a bool is none), or outside minimum..maximum.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidInputError(f"{name} is {value!r}; it must be an integer")
    if value < minimum or (maximum is not None and value > maximum):
        wanted = f"at least {minimum}" if maximum is None else f"in {minimum}..{maximum}"
        raise InvalidInputError(f"{name} is {value}; it must be {wanted}")
    return int(value)


def _as_array(array: Any, name: str) -> NDArray[Any]:
    if not isinstance(array, (np.ndarray, list, tuple)) or isinstance(array, np.ma.MaskedArray):
        kind = type(array)
        raise InvalidInputError(
            f"{name} is a {kind.__module__}.{kind.__qualname__}; it must be a NumPy array "
            "(a torch tensor: pass tensor.detach().cpu().numpy(); or move all arrays of the call "
            "to one CUDA device)"
        )
    try:
        converted = np.asarray(array)
    except ValueError as error:
        raise InvalidInputError(f"{name} cannot be read as an array of numbers: {error}") from error
    if converted.dtype.kind not in "biufc":
        raise InvalidInputError(f"{name} has dtype {converted.dtype}; it must hold numbers")
    return converted


def _parts(matrix: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Rows that fit into the cache: read once, and without a copy of a mapped file's size."""
    num_rows = max(1, VALUES_PER_PART // max(1, matrix.shape[1]))
    for first in range(0, len(matrix) if matrix.size else 0, num_rows):
        yield matrix[first : first + num_rows]


def _is_bounded(part: NDArray[np.float32]) -> bool:
    return max(float(part.max()), -float(part.min())) <= MAX_MAGNITUDE  # not so with a NaN


def _refuse_content(matrix: NDArray[np.float32], name: str) -> None:
    is_bad = [~(np.abs(part) <= MAX_MAGNITUDE).all(axis=1) for part in _parts(matrix)]
    bad_rows = np.flatnonzero(np.concatenate(is_bad))
    row = matrix[bad_rows[0]]
    what = "a NaN" if np.isnan(row).any() else "an infinite or too large value"
    raise InvalidInputError(
        f"{name} has {what} in {len(bad_rows)} of {len(matrix)} rows (the first is row "
        f"{bad_rows[0]}); all values must be finite and at most {MAX_MAGNITUDE:g} in magnitude: "
        "remove those rows"
    )
