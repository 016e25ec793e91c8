from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ops.feature_cases import QUERY_BANK_SIZES, queries_and_bank

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.ops.nearest_neighbor_scoring import reference as definition

GUARD = 64
BACKENDS = ["cpu", "reference"]


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    count = _kernels.num_threads()
    yield
    _kernels.set_num_threads(count)


def assert_is_truth(queries: NDArray, bank: NDArray) -> None:
    found = nearest_neighbor_scoring(queries, bank, backend="cpu")
    distances, indices = definition.nearest_neighbor_scoring(queries, bank)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=2e-7)


def test_reference_on_a_case_by_hand() -> None:
    found = nearest_neighbor_scoring(
        np.array([[0, 0], [3, 4], [9, 9]], np.float32),
        np.array([[3, 4], [0, 1], [0, -1]], np.float32),
        backend="reference",
    )
    assert found.indices.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.distances, [1, 0, np.sqrt(61)], rtol=1e-6)


@pytest.mark.parametrize("size", QUERY_BANK_SIZES, ids=str)
def test_float_features(size: tuple[int, int, int]) -> None:
    assert_is_truth(*queries_and_bank(*size))


@pytest.mark.parametrize("size", QUERY_BANK_SIZES, ids=str)
def test_tie_free_integers_are_exact(size: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(4)
    num_queries, num_bank_rows, num_channels = size
    # The first channel separates the rows by 4; each query is 1 away from its own row.
    bank = np.zeros((num_bank_rows, num_channels), np.float32)
    bank[:, 0] = 4 * rng.permutation(num_bank_rows)
    nearest = rng.integers(0, num_bank_rows, num_queries)
    queries = bank[nearest].copy()
    queries[:, -1] += 1
    found = nearest_neighbor_scoring(queries, bank, backend="cpu")
    np.testing.assert_array_equal(found.indices, nearest)
    np.testing.assert_array_equal(found.distances, np.ones(num_queries))


def test_more_queries_than_one_block() -> None:
    queries, bank = queries_and_bank(2500, 40, 5)
    assert_is_truth(queries, bank)


def test_result_is_right_where_the_expanded_formula_has_no_digit_left() -> None:
    queries, bank = queries_and_bank(63, 700, 64, offset=1e4)
    norms = (queries**2).sum(1)[:, None] + (bank**2).sum(1)
    plain = np.argmin(norms - 2 * queries @ bank.T, axis=1)
    _, truth = definition.nearest_neighbor_scoring(queries, bank)
    assert (plain != truth).any()
    assert_is_truth(queries, bank)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15, 9e17])
def test_extreme_scales(scale: float) -> None:
    queries, bank = queries_and_bank(7, 130, 9)
    factor = np.float32(scale / max(np.abs(queries).max(), np.abs(bank).max()))
    assert_is_truth(queries * factor, bank * factor)


def test_one_row_of_huge_length_does_not_hide_the_others() -> None:
    queries, bank = queries_and_bank(63, 500, 20)
    bank[77] = 1e17
    assert_is_truth(queries, bank)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    queries, bank = queries_and_bank(7, 63, 12)
    repeated = np.concatenate([bank + 100, bank, bank, bank])
    alone = nearest_neighbor_scoring(queries, bank, backend=backend)
    found = nearest_neighbor_scoring(queries, repeated, backend=backend)
    np.testing.assert_array_equal(found.indices, alone.indices + 63)
    same = nearest_neighbor_scoring(queries, np.tile(queries[:1], (1025, 1)), backend=backend)
    np.testing.assert_array_equal(same.indices, np.zeros(7))


def test_a_bank_row_as_query_has_distance_zero() -> None:
    _, bank = queries_and_bank(1, 300, 768)
    found = nearest_neighbor_scoring(bank, bank)
    np.testing.assert_array_equal(found.indices, np.arange(300))
    np.testing.assert_array_equal(found.distances, np.zeros(300))


def test_prepared_bank_gives_the_same_and_is_read_only() -> None:
    queries, bank = queries_and_bank(63, 300, 33)
    prepared = PreparedBank(bank)
    direct = nearest_neighbor_scoring(queries, bank)
    for _ in range(2):
        again = nearest_neighbor_scoring(queries, prepared)
        np.testing.assert_array_equal(again.indices, direct.indices)
        np.testing.assert_array_equal(again.distances, direct.distances)
    with pytest.raises(ValueError, match="read-only"):
        prepared.rows[0, 0] = 1


def test_prepared_bank_outlives_the_given_array() -> None:
    queries, bank = queries_and_bank(7, 63, 12)
    expected = nearest_neighbor_scoring(queries, bank)
    kernel_bank = PreparedBank(bank.copy()).kernel_bank
    distances, indices = np.empty(7, np.float32), np.empty(7, np.int64)
    del bank
    _kernels.nearest_neighbor_scoring(queries, kernel_bank, distances, indices)
    np.testing.assert_array_equal(indices, expected.indices)


def test_strided_read_only_and_float64_inputs() -> None:
    queries, bank = queries_and_bank(63, 300, 33)
    expected = nearest_neighbor_scoring(queries, bank)
    wide = np.repeat(queries, 2, axis=1)[:, ::2]
    frozen = np.asfortranarray(bank)
    frozen.flags.writeable = False
    for other_queries, other_bank in ((wide, frozen), (queries.astype(np.float64), bank)):
        found = nearest_neighbor_scoring(other_queries, other_bank)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.parametrize("size", QUERY_BANK_SIZES, ids=str)
def test_kernel_writes_its_outputs_and_nothing_else(size: tuple[int, int, int]) -> None:
    queries, bank = queries_and_bank(*size)
    distances = np.full(len(queries) + 2 * GUARD, np.nan, np.float32)
    indices = np.full(len(queries) + 2 * GUARD, -7, np.int64)
    inner = slice(GUARD, GUARD + len(queries))
    _kernels.nearest_neighbor_scoring(
        queries, PreparedBank(bank).kernel_bank, distances[inner], indices[inner]
    )
    assert np.isfinite(distances[inner]).all()
    assert np.isnan(np.delete(distances, inner)).all()
    assert ((indices[inner] >= 0) & (indices[inner] < len(bank))).all()
    assert (np.delete(indices, inner) == -7).all()


@pytest.mark.usefixtures("_restore_threads")
def test_number_of_threads_changes_no_bit() -> None:
    queries, bank = queries_and_bank(63, 1025, 33)
    results = []
    for count in (1, 2, 7):
        _kernels.set_num_threads(count)
        results.append(nearest_neighbor_scoring(queries, bank))
    for other in results[1:]:
        np.testing.assert_array_equal(other.indices, results[0].indices)
        np.testing.assert_array_equal(other.distances, results[0].distances)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_bank_rows=st.integers(1, 300))
def test_permuting_the_bank_permutes_the_indices(seed: int, num_bank_rows: int) -> None:
    queries, bank = queries_and_bank(9, num_bank_rows, 5, seed=seed)
    order = np.random.default_rng(seed).permutation(num_bank_rows)
    found = nearest_neighbor_scoring(queries, bank)
    permuted = nearest_neighbor_scoring(queries, bank[order])
    np.testing.assert_array_equal(order[permuted.indices], found.indices)
    np.testing.assert_array_equal(permuted.distances, found.distances)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_bank_rows=st.integers(1, 300))
def test_another_bank_row_never_increases_a_distance(seed: int, num_bank_rows: int) -> None:
    queries, bank = queries_and_bank(9, num_bank_rows + 1, 5, seed=seed)
    fewer = nearest_neighbor_scoring(queries, bank[:-1])
    more = nearest_neighbor_scoring(queries, bank)
    assert (more.distances <= fewer.distances).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_queries_give_empty_results(backend: str) -> None:
    _, bank = queries_and_bank(1, 7, 3)
    found = nearest_neighbor_scoring(np.empty((0, 3), np.float32), bank, backend=backend)
    assert found.distances.shape == (0,)
    assert found.distances.dtype == np.float32
    assert found.indices.shape == (0,)
    assert found.indices.dtype == np.int64


def test_refusals_say_what_was_given_and_what_is_needed() -> None:
    queries, bank = queries_and_bank(7, 63, 12)
    with pytest.raises(InvalidInputError, match="bank has 0 rows; at least 1 is needed"):
        nearest_neighbor_scoring(queries, bank[:0])
    with pytest.raises(InvalidInputError, match="at least 1 column is needed"):
        nearest_neighbor_scoring(queries[:, :0], bank[:, :0])
    with pytest.raises(InvalidInputError, match=r"\(7, 11\).*\(63, 12\).*same number of columns"):
        nearest_neighbor_scoring(queries[:, :11], bank)
    with pytest.raises(InvalidInputError, match=r"queries has shape \(12,\)"):
        nearest_neighbor_scoring(queries[0], bank)
    with pytest.raises(InvalidInputError, match="bank has dtype int64"):
        nearest_neighbor_scoring(queries, bank.astype(np.int64))
    with pytest.raises(BackendUnavailableError, match="known are auto, cpu, reference"):
        nearest_neighbor_scoring(queries, bank, backend="gpu")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_not_finite_are_refused(bad: float, which: int) -> None:
    arrays = queries_and_bank(7, 63, 12)
    arrays[which][3, 5] = bad
    with pytest.raises(InvalidInputError, match=f"{('queries', 'bank')[which]} has .* row 3"):
        nearest_neighbor_scoring(*arrays)
