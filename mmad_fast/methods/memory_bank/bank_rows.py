"""Memory banks: which of the training scans' patches a detector keeps, and how they are scaled.

The published code holds the dense matrix of all patches. Here every pass reads the scans one after
the other and only their distinct rows, which gives the same rows: see README.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.feature_store import ArrayFile
from mmad_fast.methods.fit_request import Progress
from mmad_fast.methods.memory_bank.search import normalize_rows
from mmad_fast.ops.k_center_greedy import k_center_greedy

CORESET_FRACTION = 0.1
PROJECTION_EPS = 0.9
"""Distortion that the random projection may have; the published code's coreset_eps."""

Scale = tuple[float, float]
"""(mean, std) of a bank: a row x is stored as (x - mean) / std."""

SHARED, NO_SCAN = -1, -2
"""In place of a bank row's scan: several scans have it; no patch of a scan is it."""


class ScanRows(NamedTuple):
    """The patches of one scan, equal ones once.

    Attributes:
        rows: (Q, C) float32 or float64 distinct rows, in the order in which they first occur.
        counts: (Q,) int64 number of patches that have the row.
    """

    rows: NDArray[np.float32]
    counts: NDArray[np.int64]


class BankRows(NamedTuple):
    """The rows of a memory bank, and where they come from.

    Attributes:
        rows: (M, C) normalised, of the type of the patches.
        scans: (M,) int64 the only training scan that has the row among its patches, SHARED or
            NO_SCAN.
    """

    rows: NDArray[np.float32]
    scans: NDArray[np.int64]


class PatchRows(Protocol):
    """The raw patches of one bank, scan by scan; each access reads them anew."""

    def __len__(self) -> int: ...

    def __getitem__(self, scan: int, /) -> ScanRows: ...


def in_order_of_occurrence(rows: NDArray[np.float32], owner: NDArray[np.int64]) -> ScanRows:
    """The distinct rows of a scan in the order of the patches.

    Args:
        rows: (Q, C) float32 distinct rows in any order.
        owner: (P,) int64 row of each patch; a row without a patch is left out.
    """
    used, first, counts = np.unique(owner, return_index=True, return_counts=True)
    order = np.argsort(first)
    return ScanRows(rows[used[order]], counts[order].astype(np.int64))


def measure_rows(scans: PatchRows) -> Scale:
    """Mean and (unbiased) standard deviation of all elements of all patches, in float64.

    Each scan's mean and squared deviations are merged into those before it, which loses no digits
    however many scans there are.
    """
    num_elements, mean, deviations = 0, 0.0, 0.0
    for scan in _each(scans):
        num_here = int(scan.counts.sum()) * scan.rows.shape[1]
        rows = scan.rows.astype(np.float64)
        mean_here = float(scan.counts @ rows.sum(axis=1)) / num_here
        rows -= mean_here
        deviations += float(scan.counts @ np.einsum("qc,qc->q", rows, rows))
        gap, total = mean_here - mean, num_elements + num_here
        deviations += gap**2 * num_elements * num_here / total
        mean += gap * num_here / total
        num_elements = total
    return mean, float(np.sqrt(deviations / max(1, num_elements - 1)))


def coreset_size(num_rows: int, fraction: float = CORESET_FRACTION) -> int:
    """How many of so many patches a bank keeps: a tenth, at least 1.

    Source: PatchCore's banks, as the public code of 3D-ADS and M3DM has them.
    """
    return max(1, int(fraction * num_rows))


def build_bank(
    scans: PatchRows,
    num_samples: int,
    scale: Scale,
    *,
    num_rows: int,
    seed: int,
    scratch: Path,
    progress: Progress,
) -> BankRows:
    """The bank of M normalised rows in the order in which the coreset takes them.

    M is num_samples, or the number of distinct rows where that is smaller: the published code then
    repeats its first row.

    Args:
        scans: The raw patches.
        num_samples: Rows to keep.
        scale: (mean, std) of the bank.
        num_rows: Patches; equal ones count. It decides the width of the projection.
        seed: Of the projection.
        scratch: An existing folder for the projected rows.
        progress: Called with (stage, done, total): stages are "projection" and "coreset".

    Raises:
        MmadFastError: the disk is full.

    Source: PatchCore's greedy coreset, as M3DM's code has it: sparse random projection to the
    Johnson-Lindenstrauss width, start at row 0, always the row farthest from the rows taken.
    """
    file_name, offsets = scratch / "projected.rows", [0]
    digests: list[NDArray[np.uint64]] = []
    transform: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None
    with ArrayFile(file_name) as file:
        for scan in _each(scans):
            if transform is None:
                transform = _random_projection(num_rows, scan.rows.shape[1], seed)
            file.append(transform(normalize_rows(scan.rows, scale)))
            offsets.append(offsets[-1] + len(scan.rows))
            digests.append(_row_digests(scan.rows))
            progress("projection", len(file), len(scans))
        projected = file.mapped()
    taken = k_center_greedy(projected, num_samples, progress=partial(progress, "coreset"))
    progress("coreset", num_samples, num_samples)
    del projected
    file_name.unlink()
    rows = _gather(scans, taken, np.array(offsets, np.int64), scale)
    return BankRows(rows, _only_scans(digests)[taken])


def without_own(rows: NDArray, scans: NDArray[np.int64], scan: int) -> NDArray | None:
    """(M', C) the rows of a bank that are not a training scan's alone; None where none of them is
    another scan's.

    Args:
        rows: (M, C) of the bank, as it is stored.
        scans: (M,) int64 as in BankRows.
        scan: The training scan.
    """
    is_kept = scans != scan
    if not (is_kept & (scans != NO_SCAN)).any():
        return None
    return rows[is_kept]


def as_stored(rows: NDArray[np.float32], bank: str, dtype: str) -> NDArray:
    """The rows (M, C) of a bank as the artifact holds them.

    Args:
        rows: Normalised.
        bank: Its name, for the message.
        dtype: "float32" or "float16".

    Raises:
        MmadFastError: a number is too large for the type.
    """
    largest = float(np.abs(rows).max())
    if largest > float(np.finfo(dtype).max):
        raise MmadFastError(
            f"the {bank} bank has features up to {largest:.3g}, more than {dtype} can hold; fit "
            "with bank_dtype='float32', or where the method has it with bank_norm='own'"
        )
    return rows.astype(dtype, copy=False)


def _random_projection(
    num_rows: int, num_channels: int, seed: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The projection that scikit-learn draws for a matrix (num_rows, num_channels), which need not
    exist; the identity where it would have to widen the rows, as in the published code."""
    width = int(johnson_lindenstrauss_min_dim(num_rows, eps=PROJECTION_EPS))
    if not 0 < width <= num_channels:
        return lambda rows: np.ascontiguousarray(rows, np.float32)
    projection = SparseRandomProjection(n_components=width, random_state=seed)
    projection.fit(np.zeros((1, num_channels), np.float32))
    return lambda rows: np.ascontiguousarray(projection.transform(rows), np.float32)


def _gather(
    scans: PatchRows, taken: NDArray[np.int64], offsets: NDArray[np.int64], scale: Scale
) -> NDArray[np.float32]:
    """(M, C) normalised rows at these positions among the rows of all scans."""
    scan_of = np.searchsorted(offsets, taken, side="right") - 1
    bank: NDArray[np.float32] | None = None
    for scan in np.unique(scan_of):
        wanted = np.flatnonzero(scan_of == scan)
        rows = scans[int(scan)].rows
        if bank is None:
            bank = np.empty((len(taken), rows.shape[1]), rows.dtype)
        bank[wanted] = normalize_rows(rows[taken[wanted] - offsets[scan]], scale)
    assert bank is not None  # row 0 is always taken
    return bank


def _row_digests(rows: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(Q,) 64 bits of each row: the same of equal rows."""
    positive = rows + np.float32(0)  # -0 equals 0, its bytes do not
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in positive)
    return np.frombuffer(digests, np.uint64)


def _only_scans(digests: Sequence[NDArray[np.uint64]]) -> NDArray[np.int64]:
    """(R,) of all scans' rows in one: the only scan that has the row, or SHARED."""
    scan_of = np.repeat(np.arange(len(digests)), [len(of_scan) for of_scan in digests])
    everything = np.concatenate(digests)
    _, first, group = np.unique(everything, return_index=True, return_inverse=True)
    _, last = np.unique(everything[::-1], return_index=True)
    first_scan, last_scan = scan_of[first], scan_of[len(everything) - 1 - last]
    return np.where(first_scan == last_scan, first_scan, SHARED)[group]


def _each(scans: PatchRows) -> Iterator[ScanRows]:
    return (scans[index] for index in range(len(scans)))
