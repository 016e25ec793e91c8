"""The Triton backend of k_center_greedy against the definition: interpreted, or on a CUDA device.

What is selected is compared index by index on any rows: the kernel keeps what float64 arithmetic
gives, rounded to float32, as the definition does.
"""

from __future__ import annotations

from gpu_test_device import TEST_DEVICE  # isort: skip  (before any triton)

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.feature_cases import low_rank_queries_and_bank, queries_and_bank

from mmad_fast.errors import InvalidInputError
from mmad_fast.gpu.triton_kernels import DEFAULT_SM, LaunchConfig
from mmad_fast.ops.k_center_greedy import reference

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from mmad_fast.ops.k_center_greedy import triton_kernel  # noqa: E402

TYPES = ["float32", "float16"]
SIZES = [  # (N, C, n)
    (1, 1, 1),
    (1, 5, 3),
    (7, 3, 7),
    (63, 7, 9),
    (40, 24, 12),
    (70, 257, 6),
    (5, 520, 5),
]
GUARD = 64
SENTINEL = -7


@pytest.fixture(autouse=True)
def _few_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, every tile takes milliseconds: larger ones, two programs. The configurations
    that a device compiles have a test of their own."""
    if TEST_DEVICE == "cuda":
        return
    config = LaunchConfig(10, 1, {"BLOCK_N": 16, "BLOCK_C": 128})
    for key, kernel in triton_kernel._KERNELS.items():
        few = replace(kernel, configs={DEFAULT_SM: (config,)})
        monkeypatch.setitem(triton_kernel._KERNELS, key, few)
    monkeypatch.setattr(triton_kernel, "RESIDENT_WARPS", dict.fromkeys(RESIDENT_WARPS, 20))


RESIDENT_WARPS = triton_kernel.RESIDENT_WARPS
KERNELS = dict(triton_kernel._KERNELS)


def stored(rows: NDArray[np.float32], dtype: str = "float32") -> torch.Tensor:
    return torch.from_numpy(rows).to(getattr(torch, dtype)).to(TEST_DEVICE)


def exact_rows(rows: torch.Tensor) -> NDArray[np.float32]:
    return rows.float().cpu().numpy()


def select(rows: torch.Tensor, num_samples: int, start: int = 0) -> NDArray[np.int64]:
    """With buffers whose guard zones are checked, and distances that must be the definition's."""
    num_samples = min(num_samples, len(rows))
    selected = torch.full((num_samples + GUARD,), SENTINEL, device=TEST_DEVICE)
    nearest = torch.full((len(rows) + GUARD,), torch.nan, device=TEST_DEVICE)
    nearest[: len(rows)] = torch.inf
    triton_kernel._launch_steps(
        rows, nearest[: len(rows)], selected[:num_samples], start, lambda num_selected: None
    )
    assert (selected[num_samples:] == SENTINEL).all()
    assert nearest[len(rows) :].isnan().all()
    found = selected[:num_samples].cpu().numpy()
    count = int((found >= 0).sum())
    assert (found[count:] == -1).all()
    # The last row is selected, and no distance is measured to it.
    measured = found[:count] if count < num_samples else found[: count - 1]
    kept = nearest[: len(rows)].cpu().numpy()
    np.testing.assert_array_equal(kept, nearest_distances(exact_rows(rows), measured))
    return found[:count]


def nearest_distances(
    rows: NDArray[np.float32], selected: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(N,) as the definition keeps it: to the nearest selected row; 0 for rows not finite."""
    exact = rows.astype(np.float64)
    nearest = np.full(len(rows), np.inf, np.float32)
    is_finite = np.isfinite(rows).all(axis=1)
    for index in selected:
        with np.errstate(invalid="ignore", over="ignore"):
            distances = np.sqrt(((exact - exact[index]) ** 2).sum(axis=1)).astype(np.float32)
        nearest = np.minimum(nearest, np.where(is_finite & is_finite[index], distances, 0))
    return nearest


def select_in_float32(rows: NDArray[np.float32], num_samples: int) -> list[int]:
    """The loop that one writes in float32, with direct differences."""
    nearest = np.full(len(rows), np.inf, np.float32)
    selected = [0]
    while len(selected) < num_samples:
        nearest = np.minimum(nearest, np.linalg.norm(rows - rows[selected[-1]], axis=1))
        selected.append(int(nearest.argmax()))
    return selected


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features(size: tuple[int, int, int], dtype: str) -> None:
    num_rows, num_channels, num_samples = size
    rows = stored(low_rank_queries_and_bank(1, num_rows, num_channels)[1], dtype)
    expected = reference.k_center_greedy(exact_rows(rows), num_samples)
    np.testing.assert_array_equal(select(rows, num_samples), expected)


@pytest.mark.parametrize("start", [0, 17, 39])
def test_any_start(start: int) -> None:
    rows = stored(queries_and_bank(1, 40, 8)[1])
    expected = reference.k_center_greedy(exact_rows(rows), 5, start)
    found = select(rows, 5, start)
    assert found[0] == start
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_ties_go_to_the_lowest_index_and_duplicates_end_the_selection(dtype: str) -> None:
    rows = np.random.default_rng(1).integers(-1, 2, (50, 3)).astype(np.float32)
    num_distinct = len(np.unique(rows, axis=0))
    assert num_distinct < 27
    expected = reference.k_center_greedy(rows, 50)
    assert len(expected) == num_distinct
    np.testing.assert_array_equal(select(stored(rows, dtype), 50), expected)


def test_equal_rows_give_the_start_alone() -> None:
    rows = np.full((20, 5), 0.1, np.float32)
    assert select(stored(rows), 20, start=3).tolist() == [3]


def test_near_ties_that_float32_sums_confuse_are_told_apart() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((60, 200))
    lengths = 1.5 + 5e-7 * rng.random((60, 1))  # a few steps of float32 from each other
    rows = (rows * lengths / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows[0] = 0
    expected = reference.k_center_greedy(rows, 4)
    assert select_in_float32(rows, 4) != expected.tolist()
    np.testing.assert_array_equal(select(stored(rows), 4), expected)


def test_rows_far_from_zero() -> None:
    rows = queries_and_bank(1, 50, 33, offset=1e4)[1]
    expected = reference.k_center_greedy(rows, 8)
    np.testing.assert_array_equal(select(stored(rows), 8), expected)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_squares_outside_the_range_of_float32(scale: float) -> None:
    rows = queries_and_bank(1, 40, 9)[1] * np.float32(scale)
    expected = reference.k_center_greedy(rows, 8)
    np.testing.assert_array_equal(select(stored(rows), 8), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:overflow encountered")
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_that_are_not_finite_are_never_selected(dtype: str) -> None:
    rows = queries_and_bank(1, 40, 9)[1]
    bad = np.arange(1, 40, 3)
    rows[bad[0::3], 3] = np.nan
    rows[bad[1::3], 0] = np.inf
    rows[bad[2::3], 7] = -np.inf
    good = np.flatnonzero(np.isfinite(rows).all(axis=1))
    tensor = stored(rows, dtype)
    expected = good[reference.k_center_greedy(exact_rows(tensor)[good], 40)]
    assert len(expected) == len(good)
    np.testing.assert_array_equal(select(tensor, 40), expected)
    assert select(tensor, 40, start=int(bad[0])).tolist() == [bad[0]]


def test_more_rows_than_32_bits_count_are_refused() -> None:
    rows = torch.empty((2**30 + 1, 0), device=TEST_DEVICE)
    with pytest.raises(InvalidInputError, match="1073741825 rows; on a device at most 1073741824"):
        triton_kernel.k_center_greedy(rows, 1)


@pytest.mark.parametrize("num_multiprocessors", [2, 100])
def test_the_number_of_programs_changes_nothing(
    num_multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(3).integers(-3, 4, (90, 4)).astype(np.float32)
    expected = reference.k_center_greedy(rows, 7)
    monkeypatch.setattr(triton_kernel, "INTERPRETED_MULTIPROCESSORS", num_multiprocessors)
    np.testing.assert_array_equal(select(stored(rows), 7), expected)


def test_there_are_at_most_as_many_programs_as_one_block_reads() -> None:
    for dtype, warps in RESIDENT_WARPS.items():
        rows = torch.empty((10**7, 0), dtype=dtype)
        for num_multiprocessors in (1, 16, 10**6):
            expected = min(1024, warps // 2 * num_multiprocessors)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(triton_kernel, "RESIDENT_WARPS", RESIDENT_WARPS)
                patch.setattr(triton_kernel, "INTERPRETED_MULTIPROCESSORS", num_multiprocessors)
                assert triton_kernel._max_programs(rows, 2) == expected
    for kernel in triton_kernel.KERNELS:
        assert kernel.constants["BLOCK_P"] == triton_kernel.MAX_PROGRAMS == 1024


def test_it_reports_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "REPORT_STEPS", 3)
    rows = stored(queries_and_bank(1, 10, 4)[1])
    for num_samples, expected in ((7, [3, 6, 7]), (6, [3, 6]), (1, [1])):
        reported: list[int] = []
        found = triton_kernel.k_center_greedy(rows, num_samples, 0, reported.append)
        assert (found.dtype, found.shape) == (torch.int64, (num_samples,))
        assert reported == expected


def test_what_a_report_raises_ends_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(num_selected: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(triton_kernel, "REPORT_STEPS", 2)
    with pytest.raises(KeyboardInterrupt):
        triton_kernel.k_center_greedy(stored(queries_and_bank(1, 9, 4)[1]), 9, 0, stop)


def distinct_configurations() -> list[pytest.param]:
    return [
        pytest.param(key, config, id=f"{kernel.name}-{config.label}")
        for key, kernel in KERNELS.items()
        for configs in kernel.configs.values()
        for config in configs
    ]


@pytest.mark.parametrize(("key", "config"), distinct_configurations())
def test_every_configuration_gives_the_same(
    key: tuple[torch.dtype, int], config: LaunchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    if TEST_DEVICE == "cuda":
        pytest.skip("bench/on_gpu.py times them all, each against the reference")
    dtype, multiple = key
    rows = low_rank_queries_and_bank(1, 21, 24 if multiple > 1 else 23)[1]
    kernel = replace(KERNELS[key], configs={DEFAULT_SM: (config,)})
    monkeypatch.setitem(triton_kernel._KERNELS, key, kernel)
    monkeypatch.setattr(triton_kernel, "RESIDENT_WARPS", RESIDENT_WARPS)
    tensor = torch.from_numpy(rows).to(dtype)
    expected = reference.k_center_greedy(exact_rows(tensor), 5)
    np.testing.assert_array_equal(select(tensor, 5), expected)
