"""Greedy k-centre selection: the coreset of a memory bank. The maths is in README.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.device_arrays import is_device_array, read_device_array
from mmad_fast.ops.k_center_greedy.backends import OP
from mmad_fast.ops.registry import device_of
from mmad_fast.validation import check_float_matrix, check_integer, check_rows

__all__ = ["OP", "k_center_greedy"]

Progress = Callable[[int, int], None]


def k_center_greedy(
    rows: NDArray[np.float32],
    num_samples: int,
    *,
    start: int = 0,
    backend: str = "auto",
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """(n,) int64: rows that cover all others evenly, in the order in which they were selected.

    The first is `start`; each further one is the row whose distance to its nearest selected row is
    largest, of equals the one with the lowest index. Distances are Euclidean, those of float64
    arithmetic rounded to float32. Where all that are left are 0, every row equals a selected one
    and the selection ends: n is the smaller of num_samples and the number of distinct rows.

    Args:
        rows: (N, D) float32, any unit, finite, N and D at least 1. A C-contiguous array is read
            where it lies, such as a read-only np.memmap that is larger than the memory. On a CUDA
            device also float16, the result is there, too, and the content is not checked: rows that
            are not finite are never selected.
        num_samples: How many rows are wanted, at least 1.
        start: The first of them, in 0..N-1.
        backend: "auto", or a name of the table in backends.py.
        progress: Called with (rows selected, rows wanted) several times a second (by `reference`
            at the end only), on the calling thread; what it raises ends the selection. A
            KeyboardInterrupt does so, with or without.

    Raises:
        InvalidInputError: rows are no matrix of finite floats, or empty, or on a device more than
            2^30; num_samples < 1; start is out of range.
        BackendUnavailableError: the backend is unknown or cannot run here.

    Source: the greedy coreset of PatchCore (Roth et al., 2022), section 3.2, as M3DM takes it
        (method facts 5.3), whose float16 distances on the GPU make ties that are none.
    """
    implementation = OP.resolve(backend, device=device_of(rows))
    matrix: Any
    if is_device_array(rows):
        matrix = read_device_array(rows, "rows", shape=(None, None), dtypes=("float32", "float16"))
    else:
        matrix = check_float_matrix(rows, "rows")
    check_rows(matrix, "rows", minimum=1)
    if matrix.shape[1] == 0:
        raise InvalidInputError(f"rows have shape {matrix.shape}; at least 1 column is needed")
    num_samples = check_integer(num_samples, "num_samples", minimum=1)
    start = check_integer(start, "start", minimum=0, maximum=len(matrix) - 1)
    indices: NDArray[np.int64] = implementation.function(
        matrix, num_samples, start, _report(progress, num_samples)
    )
    return indices


def _report(progress: Progress | None, num_samples: int) -> Callable[[int], None]:
    """What a backend calls with the number of rows selected so far."""
    if progress is None:
        return lambda num_selected: None
    return lambda num_selected: progress(num_selected, num_samples)
