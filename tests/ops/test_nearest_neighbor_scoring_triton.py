from __future__ import annotations

from gpu_test_device import TEST_DEVICE  # isort: skip  (before any triton)

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.feature_cases import low_rank_queries_and_bank, queries_and_bank

from mmad_fast.gpu.architectures import ARCHITECTURES
from mmad_fast.ops.nearest_neighbor_scoring import reference

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from mmad_fast.ops.nearest_neighbor_scoring import triton_kernel  # noqa: E402

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SIZES = [  # (Q, M, C)
    (1, 1, 1),
    (1, 1025, 63),
    (7, 1, 3),
    (7, 63, 7),
    (5, 1025, 8),
    (7, 112, 48),
    (6, 113, 257),
]
GUARD = 64
SENTINEL = -7


@pytest.fixture(autouse=True)
def _bfloat16_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter holds bfloat16 as uint16, and its dot multiplies those integers."""
    if TEST_DEVICE == "cuda":
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def as_float(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    plain_dot = InterpreterBuilder.create_dot

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain_dot(self, as_float(a), as_float(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


def stored(bank: NDArray[np.float32], dtype: str) -> torch.Tensor:
    return torch.from_numpy(bank).to(TYPES[dtype]).to(TEST_DEVICE)


def score(
    queries: NDArray[np.float32], bank: torch.Tensor, *, num_splits: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """With outputs whose guard zones are checked."""
    num_queries = len(queries)
    distances = torch.full((num_queries + GUARD,), float("nan"), device=TEST_DEVICE)
    indices = torch.full((num_queries + GUARD,), SENTINEL, device=TEST_DEVICE)
    triton_kernel._launch_scoring(
        torch.from_numpy(queries).to(TEST_DEVICE),
        bank,
        triton_kernel.squared_norms(bank),
        distances[:num_queries],
        indices[:num_queries],
        num_splits,
    )
    assert distances[num_queries:].isnan().all()
    assert (indices[num_queries:] == SENTINEL).all()
    found = indices[:num_queries].cpu().numpy()
    assert ((found >= 0) & (found < len(bank))).all()
    return distances[:num_queries].cpu().numpy(), found


def exact_rows(bank: torch.Tensor) -> NDArray[np.float32]:
    return bank.float().cpu().numpy()


def plain_distances(
    queries: NDArray[np.float32], bank: torch.Tensor, dtype: str
) -> NDArray[np.float32]:
    """The expanded formula, with products of the bank's type summed in float32."""
    rows = exact_rows(bank)
    rounded = torch.from_numpy(queries).to(TYPES[dtype]).float().numpy()
    norms = (rounded**2).sum(1)[:, None] + (rows**2).sum(1)
    return np.sqrt(np.maximum(norms - 2 * rounded @ rows.T, 0).min(1))


def assert_is_as_good_as_plain_code(
    queries: NDArray[np.float32], bank: torch.Tensor, dtype: str, **options: int
) -> None:
    distances, indices = score(queries, bank, **options)
    rows = exact_rows(bank)
    truth, _ = reference.nearest_neighbor_scoring(queries, rows)
    error = np.abs(distances.astype(np.float64) - truth)
    plain_error = np.abs(plain_distances(queries, bank, dtype).astype(np.float64) - truth)
    assert error.max() <= 2 * plain_error.max() + 1e-6 * truth.max(), (error, plain_error)

    # The distance is that of the row that is named.
    exact_queries, exact_bank = queries.astype(np.float64), rows.astype(np.float64)
    reached = np.linalg.norm(exact_queries - exact_bank[indices], axis=1)
    roundoff = ROUNDOFF["float32"]
    np.testing.assert_allclose(distances, reached, rtol=(queries.shape[1] + 4) * roundoff)

    # That row is the nearest up to the bound of README.md.
    lengths, longest = np.linalg.norm(exact_queries, axis=1), np.linalg.norm(exact_bank, axis=1)
    products = roundoff * (queries.shape[1] + 4) * (longest.max() + 2 * lengths) * longest.max()
    query_error = 0.0 if dtype == "float32" else 1.001 * ROUNDOFF[dtype]
    exact_truth = truth.astype(np.float64)
    limit = query_error * lengths + np.sqrt(
        (exact_truth + query_error * lengths) ** 2 + 2 * products
    )
    assert (reached <= limit * (1 + 1e-7)).all()


def test_three_tf32_products_are_taken_where_they_were_measured() -> None:
    for kernel in triton_kernel.KERNELS:
        if ".candidates." in kernel.name:
            for sm in ARCHITECTURES:
                expected = sm == 90 and kernel.name.endswith(".fp32.c4")
                assert {c.constants["TF32X3"] for c in kernel.configs_for(sm)} == {expected}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features(size: tuple[int, int, int], dtype: str) -> None:
    queries, bank = queries_and_bank(*size)
    assert_is_as_good_as_plain_code(queries, stored(bank, dtype), dtype)


def test_more_queries_than_a_tile() -> None:
    queries, bank = queries_and_bank(130, 65, 9)
    assert_is_as_good_as_plain_code(queries, stored(bank, "float16"), "float16")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("num_splits", [1, 2, 1000])
def test_integers_are_exact_and_ties_go_to_the_lowest_index(num_splits: int, dtype: str) -> None:
    rng = np.random.default_rng(4)
    queries = rng.integers(-9, 10, (5, 3)).astype(np.float32)
    bank = rng.integers(-9, 10, (700, 3)).astype(np.float32)
    assert len(np.unique(bank, axis=0)) < 700
    truth, expected = reference.nearest_neighbor_scoring(queries, bank)
    distances, indices = score(queries, stored(bank, dtype), num_splits=num_splits)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(distances, truth)


@pytest.mark.parametrize("dtype", TYPES)
def test_tie_free_integers_with_whole_tiles_and_many_channels(dtype: str) -> None:
    rng = np.random.default_rng(5)
    bank = rng.integers(-9, 10, (384, 136)).astype(np.float32)
    chosen = rng.permutation(384)[:6]
    queries = bank[chosen] + rng.integers(-1, 2, (6, 136)).astype(np.float32)
    truth, expected = reference.nearest_neighbor_scoring(queries, bank)
    np.testing.assert_array_equal(expected, chosen)
    distances, indices = score(queries, stored(bank, dtype))
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, truth, rtol=1e-7)


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_rows_go_to_the_lowest_index(dtype: str) -> None:
    queries, bank = queries_and_bank(5, 63, 12)
    repeated = np.concatenate([bank + 100, bank, bank, bank, bank, bank])
    _, alone = score(queries, stored(bank, dtype))
    _, found = score(queries, stored(repeated, dtype))
    np.testing.assert_array_equal(found, alone + 63)
    _, same = score(queries, stored(np.tile(queries[:1], (300, 1)), dtype))
    np.testing.assert_array_equal(same, np.zeros(5))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_bank_row_as_query_has_distance_zero(dtype: str) -> None:
    _, bank = queries_and_bank(1, 140, 96)
    rows = stored(bank, dtype)
    queries = np.ascontiguousarray(exact_rows(rows)[::35])
    distances, indices = score(queries, rows)
    np.testing.assert_array_equal(indices, np.arange(0, 140, 35))
    np.testing.assert_array_equal(distances, np.zeros(len(queries)))


def test_where_the_expanded_formula_has_no_digit_left_the_distance_is_still_that_of_the_row() -> (
    None
):
    queries, bank = queries_and_bank(7, 300, 64, offset=1e3)
    assert_is_as_good_as_plain_code(queries, stored(bank, "float32"), "float32")
    assert_is_as_good_as_plain_code(queries, stored(bank, "bfloat16"), "bfloat16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1e-7, 3e5])
def test_queries_outside_the_range_of_the_type(scale: float, dtype: str) -> None:
    """Unscaled, half a query of 1e-7 would be lost in float16, and one of 3e5 infinite."""
    queries, bank = queries_and_bank(7, 130, 24)
    queries *= np.float32(scale / np.abs(queries).max())
    bank *= np.float32(min(scale, 1e4) / np.abs(bank).max())
    if scale < 1:
        bank *= 1000  # float16 has few digits below 1e-5; here only the queries are small
    truth, expected = reference.nearest_neighbor_scoring(queries, exact_rows(stored(bank, dtype)))
    distances, indices = score(queries, stored(bank, dtype))
    np.testing.assert_allclose(distances, truth, rtol=2 * ROUNDOFF[dtype])
    if dtype == "float16":
        np.testing.assert_array_equal(indices, expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered in add")
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_never_wins(dtype: str) -> None:
    queries, bank = queries_and_bank(5, 300, 16)
    bad = np.arange(0, 300, 4)
    bank[bad[0::3], 3] = np.nan
    bank[bad[1::3], 0] = np.inf
    bank[bad[2::3], 7] = -np.inf
    good = np.flatnonzero(np.isfinite(bank).all(axis=1))
    expected = score(queries, stored(bank[good], dtype))
    distances, indices = score(queries, stored(bank, dtype))
    np.testing.assert_array_equal(indices, good[expected[1]])
    np.testing.assert_array_equal(distances, expected[0])


@pytest.mark.parametrize("dtype", TYPES)
def test_without_a_finite_distance_index_0_at_infinity(dtype: str) -> None:
    queries, bank = queries_and_bank(4, 150, 16)
    whole = score(queries, stored(bank, dtype))
    queries[1, 3] = np.nan
    queries[2, 5] = -np.inf
    distances, indices = score(queries, stored(bank, dtype))
    assert distances[[1, 2]].tolist() == [np.inf, np.inf]
    assert indices[[1, 2]].tolist() == [0, 0]
    assert (distances[[0, 3]] == whole[0][[0, 3]]).all()
    distances, indices = score(queries, stored(np.full_like(bank, np.nan), dtype))
    assert (distances == np.inf).all()
    assert (indices == 0).all()


def test_wrong_norms_only_change_which_row_is_found() -> None:
    queries, bank = queries_and_bank(3, 200, 8)
    rows = stored(bank, "float32")
    distances, indices = triton_kernel.nearest_neighbor_scoring(
        torch.from_numpy(queries).to(TEST_DEVICE),
        rows,
        torch.full((200,), float("nan"), device=TEST_DEVICE),
    )
    assert distances.isinf().all()
    assert (indices == 0).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 63, 136])
def test_squared_norms(channels: int, dtype: str) -> None:
    bank = stored(queries_and_bank(1, 70, channels)[1], dtype)
    norms = torch.full((70 + GUARD,), float("nan"), device=TEST_DEVICE)
    triton_kernel._launch_squared_norms(bank, norms[:70])
    assert norms[70:].isnan().all()
    rows = exact_rows(bank)
    truth = (rows.astype(np.float64) ** 2).sum(1)
    error = np.abs(norms[:70].cpu().numpy() - truth)
    plain_error = np.abs((rows**2).sum(1) - truth)
    assert error.max() <= 2 * plain_error.max() + 1e-7 * truth.max()


@pytest.mark.parametrize("dtype", TYPES)
def test_no_queries_give_empty_results(dtype: str) -> None:
    bank = stored(queries_and_bank(1, 7, 3)[1], dtype)
    norms = triton_kernel.squared_norms(bank)
    distances, indices = triton_kernel.nearest_neighbor_scoring(
        torch.empty((0, 3), device=TEST_DEVICE), bank, norms
    )
    assert (distances.shape, distances.dtype) == ((0,), torch.float32)
    assert (indices.shape, indices.dtype) == ((0,), torch.int64)
    assert triton_kernel.squared_norms(bank[:0]).shape == (0,)


@pytest.mark.parametrize("num_splits", [1, 64])
def test_the_number_of_splits_changes_nothing(num_splits: int) -> None:
    queries, bank = low_rank_queries_and_bank(3, 1500, 24)
    rows = stored(bank, "float32")
    expected_distances, expected = score(queries, rows, num_splits=7)
    distances, indices = score(queries, rows, num_splits=num_splits)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(distances, expected_distances)


def test_splits_fill_the_device() -> None:
    bank = stored(queries_and_bank(1, 7, 3)[1], "float32")
    num_multiprocessors = triton_kernel.INTERPRETED_MULTIPROCESSORS
    if TEST_DEVICE == "cuda":
        num_multiprocessors = torch.cuda.get_device_properties(bank.device).multi_processor_count
    for num_queries, tiles in ((1, 1), (128, 1), (129, 2), (10**6, 7813)):
        queries = torch.empty((num_queries, 3), device=TEST_DEVICE)
        splits = triton_kernel._choose_num_splits(queries, bank)
        filling = triton_kernel.PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // tiles
        assert splits == max(triton_kernel.MIN_SPLITS, filling)


def distinct_configurations() -> list[Any]:
    cases = {}
    for (dtype, multiple), kernels in triton_kernel._KERNELS.items():
        if dtype == torch.bfloat16:
            continue  # has those of float16
        for part, kernel in kernels._asdict().items():
            for configs in kernel.configs.values():
                for config in configs:
                    name = f"{kernel.name}-{'x'.join(map(str, config.constants.values()))}"
                    cases[name] = pytest.param(dtype, multiple, part, config, id=name)
    return list(cases.values())


@pytest.mark.parametrize(("dtype", "multiple", "part", "config"), distinct_configurations())
def test_every_configuration_gives_the_same(
    dtype: torch.dtype, multiple: int, part: str, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if TEST_DEVICE == "cuda":
        pytest.skip("bench/on_gpu.py times them all, each against the reference")
    rng = np.random.default_rng(6)
    channels = 24 if multiple > 1 else 23
    queries = rng.integers(-9, 10, (3, channels)).astype(np.float32)
    bank = rng.integers(-9, 10, (300, channels)).astype(np.float32)
    kernels = triton_kernel._KERNELS[dtype, multiple]
    kernel = replace(getattr(kernels, part), configs={0: (config,)})
    monkeypatch.setitem(
        triton_kernel._KERNELS, (dtype, multiple), kernels._replace(**{part: kernel})
    )
    truth, expected = reference.nearest_neighbor_scoring(queries, bank)
    distances, indices = score(queries, torch.from_numpy(bank).to(dtype))
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, truth, rtol=1e-7)
