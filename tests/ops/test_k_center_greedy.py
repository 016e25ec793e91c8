from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ops.feature_cases import low_rank_queries_and_bank, queries_and_bank

from mmad_fast import _kernels, validation
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.measure.memory import peak_working_mib
from mmad_fast.ops.k_center_greedy import backends, k_center_greedy
from mmad_fast.ops.k_center_greedy import reference as definition
from mmad_fast.ops.nearest_neighbor_scoring.projection import choose_projection

GUARD = 64
BACKENDS = ["cpu", "reference"]


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    count = _kernels.num_threads()
    yield
    _kernels.set_num_threads(count)


def clusters(num_rows: int, num_channels: int, *, seed: int = 0) -> NDArray[np.float32]:
    return queries_and_bank(1, num_rows, num_channels, seed=seed)[1]


def low_rank(num_rows: int, num_channels: int, *, seed: int = 0) -> NDArray[np.float32]:
    return low_rank_queries_and_bank(1, num_rows, num_channels, seed=seed)[1]


def noise(num_rows: int, num_channels: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num_rows, num_channels), np.float32)


def integers(num_rows: int, num_channels: int, high: int) -> NDArray[np.float32]:
    """Rows of which many are at equal distances, and exactly so."""
    return np.random.default_rng(1).integers(0, high, (num_rows, num_channels)).astype(np.float32)


def assert_is_truth(rows: NDArray[np.float32], num_samples: int, start: int = 0) -> None:
    expected = definition.k_center_greedy(rows, num_samples, start)
    found = k_center_greedy(rows, num_samples, start=start, backend="cpu")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_case_by_hand(backend: str) -> None:
    rows = np.array([[0, 0], [1, 0], [9, 0], [0, 4], [9, 0]], np.float32)
    # From row 0: 9 (rows 2 and 4); then row 3 at 4; then row 1 at 1; row 4 equals row 2.
    assert k_center_greedy(rows, 5, backend=backend).tolist() == [0, 2, 3, 1]
    assert k_center_greedy(rows, 2, start=3, backend=backend).tolist() == [3, 2]


@pytest.mark.parametrize(
    ("size", "num_samples"),
    [((1, 1), 1), ((1, 7), 5), ((7, 3), 7), ((63, 1), 63), ((1025, 7), 300), ((300, 257), 150)],
    ids=str,
)
def test_features(size: tuple[int, int], num_samples: int) -> None:
    for rows in (clusters(*size), low_rank(*size), noise(*size)):
        assert_is_truth(rows, num_samples, start=size[0] // 2)


@pytest.mark.parametrize("high", [2, 4, 1000])
@pytest.mark.parametrize("width", [1, 3, 17])
def test_ties_go_to_the_lowest_index(width: int, high: int) -> None:
    rows = integers(700, width, high)
    assert_is_truth(rows, 700)
    assert_is_truth(np.concatenate([rows, rows[::-1]]), 1400, start=699)


@pytest.mark.parametrize("backend", BACKENDS)
def test_selection_ends_with_the_distinct_rows(backend: str) -> None:
    rows = np.repeat(clusters(40, 9), 5, axis=0)
    rows[7:9] = [0.0], [-0.0]  # equal
    num_distinct = len(np.unique(rows + 0, axis=0))
    found = k_center_greedy(rows, 1000, backend=backend)
    assert len(found) == num_distinct
    assert len(np.unique(rows[found] + 0, axis=0)) == num_distinct


def test_all_rows_equal() -> None:
    assert k_center_greedy(np.full((3000, 5), 7, np.float32), 10, start=4).tolist() == [4]


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-18, 1e15, 9e17])
def test_extreme_scales(scale: float) -> None:
    for rows in (clusters(200, 12), low_rank(200, 12), low_rank(2100, 100)):
        scaled = (rows.astype(np.float64) * (scale / np.abs(rows).max())).astype(np.float32)
        assert_is_truth(scaled, 60)


def test_a_common_offset_that_leaves_the_expanded_formula_no_digit() -> None:
    assert_is_truth(clusters(500, 20) + np.float32(1e5), 200)
    assert_is_truth(low_rank(2100, 100) + np.float32(1e5), 200)


def test_one_row_far_away() -> None:
    rows = clusters(500, 20)
    rows[77] = 1e17
    assert_is_truth(rows, 100)


def test_strided_read_only_float64_and_mapped_rows(tmp_path: Path) -> None:
    rows = clusters(300, 33)
    expected = k_center_greedy(rows, 100)
    wide = np.repeat(rows, 2, axis=1)[:, ::2]
    frozen = np.asfortranarray(rows)
    frozen.flags.writeable = False
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for other in (wide, frozen, rows.astype(np.float64), mapped):
        np.testing.assert_array_equal(k_center_greedy(other, 100), expected)


def test_kernel_writes_its_output_and_nothing_else() -> None:
    indices = np.full(30 + 2 * GUARD, -7, np.int64)
    inner = slice(GUARD, GUARD + 30)
    rows = np.repeat(clusters(20, 5), 3, axis=0)
    assert select_with_kernel(rows, indices[inner]).num_selected == 20
    assert (np.delete(indices, inner) == -7).all()
    assert (indices[inner][20:] == -7).all()


@pytest.mark.parametrize("rank", [1, 3, 31])
@pytest.mark.parametrize("size", [(63, 40), (1300, 40), (2500, 120), (1100, 400)], ids=str)
def test_any_projection_gives_the_truth(size: tuple[int, int], rank: int) -> None:
    for rows in (clusters(*size), low_rank(*size)):
        assert_projected_is_truth(rows, 150, *random_projection(size[1], rank))


def test_projection_of_features_excludes_nearly_all_pairs() -> None:
    rows = low_rank(4000, 192)
    mean, basis = choose_projection(rows)
    assert basis.shape[1] >= 31
    statistics = assert_projected_is_truth(rows, 600, mean, basis)
    assert statistics.phases > 1
    assert statistics.bounded_pairs > 0
    assert statistics.measured_pairs < 0.05 * len(rows) * 600


def test_rows_of_a_large_selection_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = low_rank(2100, 100)
    assert backends.projection_of(rows, 200).basis.shape[1] == 0
    monkeypatch.setattr(backends, "MIN_TERMS_TO_PROJECT", 0)
    assert backends.projection_of(rows, 200).basis.shape[1] > 0
    assert_is_truth(rows, 200, start=2099)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-18, 1e15, 9e17])
def test_projection_at_extreme_scales(scale: float) -> None:
    rows = low_rank(1500, 40)
    factor = scale / np.abs(rows).max()
    mean, basis = random_projection(40, 9)
    scaled = (rows.astype(np.float64) * factor).astype(np.float32)
    assert_projected_is_truth(scaled, 60, mean * factor, basis)


def test_projection_with_an_offset_ties_zeros_and_a_huge_row() -> None:
    rows = low_rank(1300, 128) + np.float32(1e5)
    assert_projected_is_truth(rows, 200, *choose_projection(np.tile(rows, (2, 1))))
    rows = np.concatenate([rows - np.float32(1e5), np.zeros((5, 128), np.float32), rows[:500]])
    assert_projected_is_truth(rows, 200, *random_projection(128, 31))
    rows[40] = 1e17
    assert_projected_is_truth(rows, 200, *random_projection(128, 31))


def test_more_rows_than_are_looked_at_in_a_phase() -> None:
    for rows in (noise(40_000, 3), clusters(40_000, 2), integers(40_000, 2, 250)):
        assert_is_truth(rows, 250)


def test_rows_that_are_equally_far_are_not_copied() -> None:
    rows = np.full((60_000, 300), 30, np.float32)
    rows[:50] = noise(50, 300)
    found: list[NDArray[np.int64]] = []
    peak_mib = peak_working_mib(lambda: found.append(k_center_greedy(rows, 100)))
    assert len(found[0]) == 51
    assert found[0][1] == 50
    if peak_mib is None:
        pytest.skip("this system does not tell the peak of memory")
    assert peak_mib < rows.nbytes / 2**20 / 4


def random_projection(num_channels: int, rank: int) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((num_channels, rank)))
    return rng.standard_normal(num_channels), basis


def assert_projected_is_truth(
    rows: NDArray[np.float32],
    num_samples: int,
    mean: NDArray[np.float64],
    basis: NDArray[np.float64],
) -> _kernels.SelectionStatistics:
    """Selects with this projection, however useless it is."""
    indices = np.full(num_samples, -1, np.int64)
    statistics = select_with_kernel(rows, indices, mean, basis)
    expected = definition.k_center_greedy(rows, num_samples)
    np.testing.assert_array_equal(indices[: statistics.num_selected], expected)
    return statistics


def select_with_kernel(
    rows: NDArray[np.float32],
    indices: NDArray[np.int64],
    mean: NDArray[np.float64] | None = None,
    basis: NDArray[np.float64] | None = None,
) -> _kernels.SelectionStatistics:
    width = rows.shape[1]
    mean = np.zeros(width) if mean is None else mean
    basis = np.zeros((width, 0)) if basis is None else basis
    return _kernels.k_center_greedy(rows, mean, basis, 0, indices, lambda num_selected: None)


@pytest.mark.usefixtures("_restore_threads")
def test_number_of_threads_changes_nothing() -> None:
    rows = low_rank(6000, 100)
    mean, basis = choose_projection(rows)
    results = []
    for count in (1, 2, 7):
        _kernels.set_num_threads(count)
        indices = np.full(700, -1, np.int64)
        select_with_kernel(rows, indices, mean, basis)
        results += [indices, k_center_greedy(rows, 700)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(1, 300), width=st.integers(1, 40))
def test_any_rows(seed: int, num_rows: int, width: int) -> None:
    assert_is_truth(clusters(num_rows, width, seed=seed), 1 + seed % 300, start=seed % num_rows)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_fewer_samples_are_the_beginning_of_more(seed: int) -> None:
    rows = low_rank(800, 30, seed=seed)
    np.testing.assert_array_equal(k_center_greedy(rows, 50), k_center_greedy(rows, 300)[:50])


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_counts_up_to_what_was_selected(backend: str) -> None:
    calls: list[tuple[int, int]] = []
    k_center_greedy(
        noise(2000, 32), 500, backend=backend, progress=lambda *call: calls.append(call)
    )
    counts = [done for done, _ in calls]
    assert counts == sorted(counts)
    assert counts[-1] == 500
    assert {wanted for _, wanted in calls} == {500}


def test_it_reports_while_rows_are_projected_and_then_measured() -> None:
    rows, indices = clusters(300, 40), np.empty(20, np.int64)
    for rank, first_count in ((0, 1), (3, 0)):
        counts: list[int] = []
        _kernels.k_center_greedy(rows, *random_projection(40, rank), 0, indices, counts.append)
        assert counts[0] == first_count
        assert counts[-1] == 20


def test_what_progress_raises_ends_the_selection() -> None:
    class Enough(Exception):
        pass

    def stop(done: int, wanted: int) -> None:
        raise Enough(done)

    with pytest.raises(Enough):
        k_center_greedy(noise(20_000, 32), 500, progress=stop)


def test_a_keyboard_interrupt_ends_a_long_selection() -> None:
    # A process that was started in the background ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    rows = noise(60_000, 200)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            k_center_greedy(rows, len(rows))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 10  # the selection takes minutes


def test_refusals_say_what_was_given_and_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clusters(7, 3)
    with pytest.raises(InvalidInputError, match="rows has 0 rows; at least 1 is needed"):
        k_center_greedy(rows[:0], 1)
    with pytest.raises(InvalidInputError, match=r"shape \(7, 0\); at least 1 column is needed"):
        k_center_greedy(rows[:, :0], 1)
    with pytest.raises(InvalidInputError, match="num_samples is 0; it must be at least 1"):
        k_center_greedy(rows, 0)
    with pytest.raises(InvalidInputError, match=r"start is 7; it must be in 0\.\.6"):
        k_center_greedy(rows, 1, start=7)
    with pytest.raises(InvalidInputError, match="rows has dtype float16; it must be float32"):
        k_center_greedy(rows.astype(np.float16), 1)
    rows[3, 1] = rows[6, 2] = np.nan
    for values_per_part in (validation.VALUES_PER_PART, 6, 1):
        monkeypatch.setattr(validation, "VALUES_PER_PART", values_per_part)
        with pytest.raises(InvalidInputError, match=r"rows has a NaN in 2 of 7 rows .* row 3"):
            k_center_greedy(rows, 1)
    with pytest.raises(BackendUnavailableError, match="backend 'cuda' cannot run here: no kernel"):
        k_center_greedy(clusters(7, 3), 1, backend="cuda")
