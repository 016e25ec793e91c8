from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ops.feature_cases import QUERY_BANK_SIZES, low_rank_queries_and_bank, queries_and_bank

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.nearest_neighbor_scoring import (
    ROWS_PER_CHECK,
    PreparedBank,
    nearest_neighbor_scoring,
    nearest_rows,
)
from mmad_fast.ops.nearest_neighbor_scoring import reference as definition
from mmad_fast.ops.nearest_neighbor_scoring.projection import choose_projection, orthonormal

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


def assert_projected_is_truth(
    queries: NDArray, bank: NDArray, mean: NDArray, basis: NDArray
) -> _kernels.ScoringStatistics:
    """Scores with this projection, however useless it is."""
    distances, indices = np.empty(len(queries), np.float32), np.empty(len(queries), np.int64)
    kernel_bank = _kernels.Bank(bank, mean, basis)
    statistics = _kernels.nearest_neighbor_scoring(queries, kernel_bank, distances, indices)
    expected_distances, expected_indices = definition.nearest_neighbor_scoring(queries, bank)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(distances, expected_distances, rtol=2e-7)
    return statistics


def random_projection(num_channels: int, rank: int, *, seed: int = 0) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((num_channels, rank)))
    return rng.standard_normal(num_channels), basis


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
    queries, bank = low_rank_queries_and_bank(63, 2500, 100)
    prepared = PreparedBank(bank)
    results = []
    for count in (1, 2, 7):
        _kernels.set_num_threads(count)
        results.append(nearest_neighbor_scoring(queries, bank))
        results.append(nearest_neighbor_scoring(queries, prepared))
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


def test_projection_of_features_excludes_nearly_all_rows() -> None:
    queries, bank = low_rank_queries_and_bank(40, 3000, 192)
    mean, basis = choose_projection(bank)
    assert basis.shape[1] >= 31
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    statistics = assert_projected_is_truth(queries, bank, mean, basis)
    assert statistics.plain_queries == 0
    assert statistics.measured_rows < 0.01 * len(queries) * len(bank)
    found = nearest_neighbor_scoring(queries, PreparedBank(bank))
    np.testing.assert_array_equal(
        found.indices, nearest_neighbor_scoring(queries, PreparedBank(bank, prune=False)).indices
    )


def test_no_projection_where_it_does_not_help() -> None:
    noise = np.random.default_rng(0).standard_normal((4000, 128)).astype(np.float32)
    assert choose_projection(noise).basis.shape == (128, 0)
    assert choose_projection(np.ones((4000, 128), np.float32)).basis.shape == (128, 0)
    assert choose_projection(noise[:100]).basis.shape == (128, 0)


def test_queries_that_the_projection_does_not_help_go_through_the_plain_rows() -> None:
    noise = np.random.default_rng(0).standard_normal((600, 128)).astype(np.float32)
    queries, bank = noise[:100].copy(), noise[100:]
    queries[::2] = bank[50:100]  # nothing is as near as the row itself, however rough the bound
    statistics = assert_projected_is_truth(queries, bank, *random_projection(128, 31))
    assert 40 <= statistics.plain_queries <= 50


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize(
    "size", [(7, 63, 7), (63, 1025, 7), (65, 112, 48), (130, 113, 257)], ids=str
)
def test_any_projection_gives_the_truth(size: tuple[int, int, int], rank: int) -> None:
    queries, bank = queries_and_bank(*size)
    assert_projected_is_truth(queries, bank, *random_projection(size[2], rank))
    centred = bank.mean(0, dtype=np.float64), random_projection(size[2], rank)[1]
    assert_projected_is_truth(queries, bank, *centred)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-18, 1e15, 9e17])
def test_projection_at_extreme_scales(scale: float) -> None:
    queries, bank = low_rank_queries_and_bank(20, 300, 40)
    factor = scale / max(np.abs(queries).max(), np.abs(bank).max())
    queries, bank = (queries * factor).astype(np.float32), (bank * factor).astype(np.float32)
    mean, basis = random_projection(40, 9)
    assert_projected_is_truth(queries, bank, mean * factor, basis)


def test_projection_with_an_offset_that_leaves_the_expanded_formula_no_digit() -> None:
    queries, bank = low_rank_queries_and_bank(63, 2500, 128)
    queries, bank = queries + np.float32(1e5), bank + np.float32(1e5)
    mean, basis = choose_projection(bank)
    assert basis.shape[1] > 0
    assert_projected_is_truth(queries, bank, mean, basis)


def test_projection_with_ties_zeros_and_a_huge_row() -> None:
    queries, bank = low_rank_queries_and_bank(20, 100, 24)
    bank = np.concatenate([bank, np.zeros((5, 24), np.float32), bank, bank])
    bank[40] = 1e17
    queries = np.concatenate([queries, np.zeros((2, 24), np.float32), bank[:60]])
    assert_projected_is_truth(queries, bank, *random_projection(24, 11))
    assert_projected_is_truth(queries[:1], queries[:1], *random_projection(24, 11))


def test_half_precision_bank_is_searched_as_its_float32_values() -> None:
    for queries, bank in (
        queries_and_bank(63, 300, 33),
        low_rank_queries_and_bank(30, 2100, 128),
        queries_and_bank(130, 113, 257),
    ):
        half = bank.astype(np.float16)
        prepared = PreparedBank(half)
        assert prepared.rows.dtype == np.float16
        expected = nearest_neighbor_scoring(queries, half.astype(np.float32))
        for given_bank in (half, prepared):
            found = nearest_neighbor_scoring(queries, given_bank)
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.distances, expected.distances)
        assert_is_truth(queries, half)


def test_every_half_precision_number_is_read_right() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half = every[np.isfinite(every)].reshape(-1, 64)
    found = nearest_neighbor_scoring(half.astype(np.float32), half)
    np.testing.assert_array_equal(found.distances, np.zeros(len(half)))
    np.testing.assert_array_equal(found.indices, np.arange(len(half)))


def test_half_precision_bank_is_checked() -> None:
    _, bank = queries_and_bank(7, 63, 12)
    half = bank.astype(np.float16)
    half[3, 5] = np.inf
    with pytest.raises(InvalidInputError, match=r"bank has .* row 3"):
        PreparedBank(half)
    with pytest.raises(InvalidInputError, match=r"bank has shape \(12,\)"):
        PreparedBank(half[0])
    with pytest.raises(InvalidInputError, match="bank has 0 rows"):
        PreparedBank(half[:0])


def test_long_bank_is_searched_in_small_blocks_of_queries() -> None:
    queries, bank = queries_and_bank(170, 300_000, 1)
    assert_is_truth(queries, bank)


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
    with pytest.raises(BackendUnavailableError, match="known are auto, cpu, triton, reference"):
        nearest_neighbor_scoring(queries, bank, backend="gpu")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_that_are_not_finite_are_refused(bad: float, which: int) -> None:
    arrays = queries_and_bank(7, 63, 12)
    arrays[which][3, 5] = bad
    with pytest.raises(InvalidInputError, match=f"{('queries', 'bank')[which]} has .* row 3"):
        nearest_neighbor_scoring(*arrays)


def assert_nearest_rows_are_truth(
    query: NDArray, bank: NDArray, *, count: int, exclude: int | None = None
) -> None:
    found = nearest_rows(query, PreparedBank(bank), count=count, exclude=exclude, backend="cpu")
    distances, indices = definition.nearest_rows(
        query.astype(np.float32), bank, count=count, exclude=-1 if exclude is None else exclude
    )
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=2e-7)
    assert (found.distances.dtype, found.indices.dtype) == (np.float32, np.int64)


def test_nearest_rows_by_hand() -> None:
    bank = PreparedBank(np.array([[0, 3], [0, 0], [0, 3], [4, 0], [0, 0]], np.float32))
    for backend in BACKENDS:
        found = nearest_rows(bank.rows[1], bank, count=3, exclude=1, backend=backend)
        assert found.indices.tolist() == [4, 0, 2]
        np.testing.assert_array_equal(found.distances, [0, 3, 3])
        everything = nearest_rows(bank.rows[1], bank, count=9, backend=backend)
        assert everything.indices.tolist() == [1, 4, 0, 2, 3]


@pytest.mark.parametrize("size", QUERY_BANK_SIZES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_nearest_rows_of_clustered_features(size: tuple[int, int, int], count: int) -> None:
    queries, bank = queries_and_bank(*size)
    assert_nearest_rows_are_truth(queries[0], bank, count=count)
    row = len(bank) // 2
    assert_nearest_rows_are_truth(bank[row], bank, count=count, exclude=row)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_nearest_rows_through_the_projection(dtype: type, scale: float) -> None:
    _, features = low_rank_queries_and_bank(1, 3000, 128)
    bank = (features * scale).astype(dtype)
    bank[[40, 2000]] = bank[700]
    assert choose_projection(bank).basis.shape[1] > 0
    for row in (0, 700, 2999):
        assert_nearest_rows_are_truth(bank[row], bank, count=3, exclude=row)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e17])
def test_nearest_rows_at_extreme_scales(scale: float) -> None:
    queries, bank = queries_and_bank(1, 300, 20)
    assert_nearest_rows_are_truth(
        queries[0] * np.float32(scale), bank * np.float32(scale), count=3, exclude=7
    )


def test_nearest_rows_where_the_expanded_formula_has_no_digit_left() -> None:
    queries, bank = queries_and_bank(1, 500, 40, offset=1e4)
    assert_nearest_rows_are_truth(queries[0], bank, count=4)


def test_nearest_rows_of_a_bank_of_one_row() -> None:
    bank = PreparedBank(np.ones((1, 4), np.float32))
    for backend in BACKENDS:
        assert (
            len(nearest_rows(bank.rows[0], bank, count=2, exclude=0, backend=backend).indices) == 0
        )
        assert nearest_rows(bank.rows[0], bank, count=2, backend=backend).indices.tolist() == [0]


def test_nearest_rows_refuses_what_it_cannot_search() -> None:
    bank = PreparedBank(np.ones((3, 4), np.float32))
    row = np.ones(4, np.float32)
    for query, options, words in (
        (row[None], {}, r"query has shape \(1, 4\).*one vector"),
        (np.ones(5, np.float32), {}, "same number of columns"),
        (np.full(4, np.nan, np.float32), {}, "query has a NaN"),
        (row, {"count": 0}, "count is 0.*at least 1"),
        (row, {"exclude": 3}, r"exclude is 3.*0\.\.2"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            nearest_rows(query, bank, **{"count": 2, **options})
    with pytest.raises(BackendUnavailableError, match="triton.*torch's own products"):
        nearest_rows(row, bank, count=2, backend="triton")


def test_half_precision_bank_is_checked_block_by_block() -> None:
    bank = np.ones((ROWS_PER_CHECK + 3, 4), np.float16)
    bank[-1, 2] = np.inf
    with pytest.raises(InvalidInputError, match="bank"):
        PreparedBank(bank)


@pytest.mark.parametrize("kind", ["well apart", "of very different length", "dependent", "zero"])
def test_directions_are_orthonormal_whatever_they_are_made_of(kind: str) -> None:
    columns = np.random.default_rng(0).standard_normal((300, 31))
    if kind == "of very different length":
        columns *= np.logspace(0, -12, 31)
    elif kind == "dependent":
        columns[:, 20:] = columns[:, :11]
    elif kind == "zero":
        columns[:] = 0
    basis = orthonormal(columns)
    np.testing.assert_allclose(basis.T @ basis, np.eye(31), rtol=0, atol=1e-12)
    if kind != "dependent":
        np.testing.assert_allclose(basis[:, :3] @ (basis[:, :3].T @ columns[:, :3]), columns[:, :3])
