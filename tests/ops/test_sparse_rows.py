from __future__ import annotations

import numpy as np
import pytest
from ops.feature_cases import sparse_rows

from mmad_fast.errors import InvalidInputError
from mmad_fast.ops import sparse_rows as sparse_rows_module
from mmad_fast.ops.sparse_rows import SparseRows


def dense_matrix(rows: SparseRows) -> np.ndarray:
    matrix = np.zeros((rows.num_rows, rows.num_columns))
    for row in range(rows.num_rows):
        for k in range(rows.offsets[row], rows.offsets[row + 1]):
            matrix[row, rows.columns[k]] += float(rows.values[k])
    return matrix


@pytest.mark.parametrize(("num_rows", "num_channels"), [(1, 1), (7, 63), (100, 33), (0, 5), (9, 0)])
@pytest.mark.parametrize("with_kernels", [True, False])
def test_rows_are_weighted_sums(
    num_rows: int, num_channels: int, with_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_kernels:
        monkeypatch.setattr(sparse_rows_module, "kernels_refusal", lambda: "not here")
    rows = sparse_rows(num_rows, 11, max_entries=6, keep_empty=True)
    features = np.random.default_rng(0).normal(0, 1, (11, num_channels)).astype(np.float32)
    got = rows.apply(features)
    assert (got.dtype, got.shape) == (np.float32, (num_rows, num_channels))
    np.testing.assert_allclose(got, dense_matrix(rows) @ features, rtol=1e-5, atol=1e-6)


def test_with_and_without_kernels_no_bit_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = sparse_rows(50, 20, max_entries=12, keep_empty=True)
    features = np.random.default_rng(0).normal(0, 1, (20, 70)).astype(np.float32)
    got = rows.apply(features)
    monkeypatch.setattr(sparse_rows_module, "kernels_refusal", lambda: "not here")
    np.testing.assert_array_equal(got, rows.apply(features))


def test_strided_and_read_only_features() -> None:
    rows = sparse_rows(9, 20, max_entries=4)
    wide = np.random.default_rng(0).normal(0, 1, (40, 6)).astype(np.float32)
    wide.flags.writeable = False
    np.testing.assert_array_equal(rows.apply(wide[::2, ::3]), rows.apply(wide[::2, ::3].copy()))


def test_features_of_other_height_are_refused() -> None:
    rows = sparse_rows(9, 20, max_entries=4)
    with pytest.raises(InvalidInputError, match=r"\(19, 3\); it must be \(20, C\)"):
        rows.apply(np.zeros((19, 3), np.float32))


@pytest.mark.parametrize("bad", [20, -1])
def test_columns_out_of_range_are_refused(bad: int) -> None:
    rows = SparseRows(np.array([0, 2]), np.array([3, bad], np.int32), np.ones(2, np.float32), 20)
    with pytest.raises(InvalidInputError, match=f"column {bad}"):
        rows.apply(np.zeros((20, 3), np.float32))


def test_rows_are_selected_in_the_given_order() -> None:
    rows = sparse_rows(30, 11, max_entries=6, keep_empty=True)
    chosen = np.array([7, 0, 29, 7, 3])
    np.testing.assert_array_equal(dense_matrix(rows.select(chosen)), dense_matrix(rows)[chosen])
    assert rows.select(np.empty(0, np.int64)).num_rows == 0


@pytest.mark.parametrize("bad", [-1, 30])
def test_rows_that_there_are_not_are_refused(bad: int) -> None:
    with pytest.raises(InvalidInputError, match="rows"):
        sparse_rows(30, 11, max_entries=6).select(np.array([3, bad]))
