"""Memory banks from distinct rows, beside those from the dense matrix of all patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.random_projection import SparseRandomProjection

from mmad_fast.errors import MmadFastError
from mmad_fast.methods.memory_bank.bank_rows import (
    NO_SCAN,
    SHARED,
    ScanRows,
    as_stored,
    build_bank,
    in_order_of_occurrence,
    measure_rows,
    without_own,
)
from mmad_fast.methods.memory_bank.search import normalize_rows

SIDE = 56


def point_scan(
    rng: np.random.Generator, channels: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(distinct rows, row of each of 3136 patches): a disc of foreground around a background of
    zeros, which is the last row."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    is_foreground = np.hypot(rows - 28, columns - 28 - rng.integers(-3, 4)).ravel() < 15
    owner = np.full(SIDE**2, is_foreground.sum(), np.int64)
    owner[is_foreground] = np.arange(is_foreground.sum())
    features = rng.normal(0.4, 1, (is_foreground.sum() + 1, channels)).astype(np.float32)
    features[-1] = 0
    return features, owner


def fused_scan(
    rng: np.random.Generator, channels: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Likewise of fused rows: point rows beside tokens that each hold for 2 x 2 patches."""
    point_rows, point_owner = point_scan(rng, channels)
    tokens = rng.normal(0, 2, (SIDE**2 // 4, 40)).astype(np.float32)
    rows, columns = np.divmod(np.arange(SIDE**2), SIDE)
    token_owner = (rows // 2) * (SIDE // 2) + columns // 2
    dense = np.concatenate([point_rows[point_owner], tokens[token_owner]], axis=1)
    distinct, owner = np.unique(dense, axis=0, return_inverse=True)
    return distinct, owner.ravel()


def plain_bank(
    dense: NDArray[np.float32], num_samples: int, scale: tuple[float, float]
) -> NDArray[np.float32]:
    """What the published code does with the dense matrix, its greedy in float64."""
    normalized = (dense - np.float32(scale[0])) / np.float32(scale[1])
    projected = SparseRandomProjection(eps=0.9, random_state=0).fit_transform(normalized)
    nearest = np.full(len(projected), np.inf)
    taken: list[int] = []
    for _ in range(num_samples):
        taken.append(int(nearest.argmax()) if taken else 0)
        gap = projected.astype(np.float64) - projected[taken[-1]]
        distance = np.linalg.norm(gap, axis=1).astype(np.float32)
        nearest = np.minimum(nearest, distance)
    return normalized[taken]


@pytest.mark.parametrize("make_scan", [point_scan, fused_scan])
def test_bank_equals_that_of_the_dense_matrix(make_scan, tmp_path: Path):
    rng = np.random.default_rng(0)
    given = [make_scan(rng, 300) for _ in range(2)]
    dense = np.concatenate([rows[owner] for rows, owner in given])
    scans = [in_order_of_occurrence(rows, owner) for rows, owner in given]
    mean, std = scale = measure_rows(scans)
    assert mean == pytest.approx(dense.mean(dtype=np.float64), rel=1e-12)
    assert std == pytest.approx(dense.std(dtype=np.float64, ddof=1), rel=1e-12)

    calls: list[tuple[str, int, int]] = []
    bank = build_bank(
        scans,
        200,
        scale,
        num_rows=len(dense),
        seed=0,
        scratch=tmp_path,
        progress=lambda *call: calls.append(call),
    )
    np.testing.assert_array_equal(bank.rows, plain_bank(dense, 200, scale))
    assert bank.rows.flags.c_contiguous
    for row, scan in zip(bank.rows, bank.scans, strict=True):
        having = [
            (normalize_rows(rows[np.unique(owner)], scale) == row).all(axis=1).any()
            for rows, owner in given
        ]
        assert scan == (SHARED if all(having) else having.index(True))
    assert calls[:2] == [("projection", 1, 2), ("projection", 2, 2)]
    assert calls[-1] == ("coreset", 200, 200)
    assert not list(tmp_path.iterdir())


def test_rows_narrower_than_the_projection_are_taken_as_they_are(tmp_path: Path):
    rows = np.random.default_rng(1).normal(0, 1, (30, 4)).astype(np.float32)
    scans = [ScanRows(rows, np.ones(30, np.int64))]
    bank = build_bank(
        scans, 2, (0.0, 1.0), num_rows=30, seed=0, scratch=tmp_path, progress=lambda *_: None
    )
    farthest = np.linalg.norm(rows.astype(np.float64) - rows[0], axis=1).argmax()
    np.testing.assert_array_equal(bank.rows, rows[[0, farthest]])


def test_fewer_distinct_rows_than_wanted_give_a_smaller_bank(tmp_path: Path):
    rows = np.eye(3, 5, dtype=np.float32)
    scans = [ScanRows(rows, np.full(3, 10))] * 2
    bank = build_bank(
        scans, 6, (0.0, 1.0), num_rows=60, seed=0, scratch=tmp_path, progress=lambda *_: None
    )
    np.testing.assert_array_equal(bank.rows, rows)
    np.testing.assert_array_equal(bank.scans, [SHARED] * 3)


def test_a_row_of_several_scans_belongs_to_none_of_them(tmp_path: Path):
    rows = np.eye(6, dtype=np.float32)
    negative_zeros = np.where(rows == 0, np.float32(-0.0), rows)
    scans = [
        ScanRows(given, np.ones(len(given), np.int64))
        for given in (rows[:3], np.concatenate([rows[3:4], rows[3:4]]), negative_zeros[2:5])
    ]
    bank = build_bank(
        scans, 6, (0.0, 1.0), num_rows=8, seed=0, scratch=tmp_path, progress=lambda *_: None
    )
    found = {int(row.argmax()): int(scan) for row, scan in zip(*bank, strict=True)}
    assert found == {0: 0, 1: 0, 2: SHARED, 3: SHARED, 4: 2}


def test_a_bank_without_the_rows_of_a_scan():
    rows = np.arange(10, dtype=np.float16).reshape(5, 2)
    scans = np.array([0, SHARED, 1, 0, NO_SCAN])
    np.testing.assert_array_equal(without_own(rows, scans, 0), rows[[1, 2, 4]])
    np.testing.assert_array_equal(without_own(rows, scans, 1), rows[[0, 1, 3, 4]])
    np.testing.assert_array_equal(without_own(rows, scans, 2), rows)
    assert without_own(rows[[0, 3, 4]], scans[[0, 3, 4]], 0) is None  # zeros are no scan's


def test_rows_come_in_the_order_of_their_first_patch():
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    ordered = in_order_of_occurrence(rows, np.array([3, 1, 3, 3, 0, 1]))
    np.testing.assert_array_equal(ordered.rows, rows[[3, 1, 0]])  # row 2 has no patch
    np.testing.assert_array_equal(ordered.counts, [3, 2, 1])


def test_rows_are_stored_in_half_precision_if_they_fit():
    rows = np.array([[0.1, -3], [60000, 0]], np.float32)
    assert as_stored(rows, "point", "float32") is rows
    np.testing.assert_array_equal(as_stored(rows, "point", "float16"), rows.astype(np.float16))
    with pytest.raises(MmadFastError, match="point bank has features up to 1.2e.05, more than flo"):
        as_stored(2 * rows, "point", "float16")
