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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"columns": [3, 20]}, r"columns holds 20; it must be in 0\.\.19"),
        ({"columns": [3, -1]}, "columns holds -1"),
        ({"columns": [[3, 4]]}, r"columns has shape \(1, 2\)"),
        ({"columns": [3.0, 4.0]}, "columns has dtype float64"),
        ({"offsets": [0, 2, 1, 2]}, "never decrease"),
        ({"offsets": [1, 2]}, "begin with 0"),
        ({"offsets": [0, 1]}, "end with the number of entries"),
        ({"offsets": []}, "offsets are 0 for 2 entries"),
        ({"offsets": [0, 2**40]}, "offsets holds 1099511627776"),
        ({"offsets": [-5, 2]}, "offsets holds -5"),
        ({"values": [1.0]}, r"values has shape \(1,\); it must be one vector \(2,\)"),
        ({"values": [1.0, np.nan]}, "values has a NaN"),
        ({"values": [1.0, np.inf]}, "values has an infinite"),
        ({"num_columns": 2**31}, "num_columns is 2147483648"),
        ({"num_columns": 20.0}, "num_columns is 20.0; it must be an integer"),
    ],
)
def test_what_are_no_rows_is_refused_when_they_are_made(changes: dict, words: str) -> None:
    valid = {"offsets": [0, 2], "columns": [3, 4], "values": [1.0, 1.0], "num_columns": 20}
    arrays = {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in {**valid, **changes}.items()
    }
    with pytest.raises(InvalidInputError, match=words):
        SparseRows(**arrays)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("offsets", 2**40, "do not ascend"), ("columns", 10**6, "column of sparse rows out of range")],
)
def test_rows_that_were_changed_afterwards_are_refused(name: str, value: int, words: str) -> None:
    """They would be read out of bounds."""
    rows = sparse_rows(30, 11, max_entries=6)
    getattr(rows, name)[3] = value
    with pytest.raises(InvalidInputError, match=words):
        rows.apply(np.zeros((11, 3), np.float32))


def test_rows_are_selected_in_the_given_order() -> None:
    rows = sparse_rows(30, 11, max_entries=6, keep_empty=True)
    chosen = np.array([7, 0, 29, 7, 3])
    np.testing.assert_array_equal(dense_matrix(rows.select(chosen)), dense_matrix(rows)[chosen])
    assert rows.select(np.empty(0, np.int64)).num_rows == 0


@pytest.mark.parametrize("bad", [-1, 30])
def test_rows_that_there_are_not_are_refused(bad: int) -> None:
    with pytest.raises(InvalidInputError, match="rows"):
        sparse_rows(30, 11, max_entries=6).select(np.array([3, bad]))
