"""The emulation of CUDA runs what is right, under every schedule, and finds what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from cuda_emulation import build as emulation
from gpu_test_device import TEST_DEVICE

pytestmark = pytest.mark.skipif(
    TEST_DEVICE == "cuda", reason="the GPU is there: nothing to emulate"
)
SEEDS = range(16)


@pytest.fixture(scope="module")
def doubles() -> ModuleType:
    reason = emulation.refusal()
    if reason is not None:
        pytest.skip(reason)
    return emulation.load(emulation.build(emulation.DOUBLES_MODULE, emulation.DOUBLES))


@pytest.fixture(autouse=True)
def plain_schedule(doubles: ModuleType) -> None:
    doubles.set_schedule(0)
    doubles.set_compute_capability(80)
    doubles.set_cluster_limit(16)
    doubles.set_race_detection(True)


def under_all_schedules(module: ModuleType, call: Callable[[], float]) -> list[float]:
    found = []
    for seed in SEEDS:
        module.set_schedule(seed)
        found.append(call())
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_is_a_race(doubles: ModuleType, seed: int) -> None:
    values = np.arange(256, dtype=np.float32)
    doubles.set_schedule(seed)
    assert doubles.block_sum(values) == values.sum()
    place = r"in block_sum\.h:14"
    with pytest.raises(
        RuntimeError, match=rf"race: .* static shared memory {place}.* {place}, and"
    ):
        doubles.block_sum_without_barrier(values)


def test_a_missing_barrier_shows_in_the_results(doubles: ModuleType) -> None:
    values = np.arange(256, dtype=np.float32)
    doubles.set_race_detection(False)
    right = under_all_schedules(doubles, lambda: doubles.block_sum(values))
    assert right == [values.sum()] * len(SEEDS)
    faulty = under_all_schedules(doubles, lambda: doubles.block_sum_without_barrier(values))
    assert len(set(faulty)) > len(SEEDS) / 2, faulty
    assert np.mean(np.array(faulty) != values.sum()) > 0.8
    again = under_all_schedules(doubles, lambda: doubles.block_sum_without_barrier(values))
    assert again == faulty  # a schedule can be repeated


@pytest.mark.parametrize("seed", SEEDS)
def test_a_divergent_barrier_is_an_error(doubles: ModuleType, seed: int) -> None:
    doubles.set_schedule(seed)
    doubles.meet(doubles.Barriers.met)
    with pytest.raises(RuntimeError, match=r"divergent barrier: thread .* ended"):
        doubles.meet(doubles.Barriers.left)
    with pytest.raises(RuntimeError, match=r"divergent barrier: thread .* others in line \d+"):
        doubles.meet(doubles.Barriers.other)
    doubles.meet(doubles.Barriers.met)


def test_a_write_outside_of_dynamic_shared_memory_is_an_error(doubles: ModuleType) -> None:
    assert doubles.write_shared(5, 4, 4) == 1
    with pytest.raises(RuntimeError, match=r"behind the end .* of 20 bytes, at byte 2\d"):
        doubles.write_shared(5, 5, 4)
    with pytest.raises(RuntimeError, match=r"before the begin .* at byte -\d"):
        doubles.write_shared(5, -1, 4)
    assert doubles.write_shared(5, 4, 4) == 1


def test_shared_memory_begins_as_nan(doubles: ModuleType) -> None:
    assert doubles.write_shared(5, 4, 4) == 1
    assert np.isnan(doubles.write_shared(5, 3, 4))
    assert doubles.write_static_shared(4, 4) == 1
    assert np.isnan(doubles.write_static_shared(3, 4))  # not what the block before left


@pytest.mark.parametrize("seed", range(4))
def test_a_lane_that_never_arrives_is_an_error(doubles: ModuleType, seed: int) -> None:
    doubles.set_schedule(seed)
    doubles.shuffle_among(0x00FF, 0x00FF)
    doubles.shuffle_among(0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(
        RuntimeError, match="a lane never arrives: .* in a shuffle .* lane 8 has ended"
    ):
        doubles.shuffle_among(0x01FF, 0x00FF)
    with pytest.raises(RuntimeError, match="wrong mask: thread .* is not in the mask of a shuffle"):
        doubles.shuffle_among(0x00FF, 0x01FF)


@pytest.mark.parametrize("seed", range(4))
def test_warp_operations(doubles: ModuleType, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 9, 64).astype(np.int32)
    values[40] = 9
    doubles.set_schedule(seed)
    got = doubles.warp_operations(values)
    lane, warps = np.arange(32), values.reshape(2, 32)
    bits = np.int64(1) << lane
    expected = [
        warps[:, (lane + 3) % 32],
        np.where(lane + 5 < 32, warps[:, np.minimum(lane + 5, 31)], warps),
        np.where(lane % 8 > 0, warps[:, lane - 1], warps),
        warps[:, lane ^ 16],
        np.repeat(((warps > 2) @ bits)[:, None], 32, axis=1),
        (warps[:, :, None] == warps[:, None, :]) @ bits,
        np.repeat([[2], [3]], 32, axis=1),
        np.full((2, 32), (values > 2).sum() + 11_000),
    ]
    for row, wanted in zip(got, expected, strict=True):
        np.testing.assert_array_equal(row.reshape(2, 32), np.asarray(wanted).astype(np.int32))


def test_threads_are_switched_at_atomics_where_the_schedule_says_so(doubles: ModuleType) -> None:
    careless = []
    for seed in range(1, 5):
        doubles.set_schedule(seed, switches_at_atomics=True)
        assert doubles.count_up(True) == 64
        careless.append(doubles.count_up(False))
        doubles.set_schedule(seed)
        assert doubles.count_up(False) == 64
    assert max(careless) < 64


@pytest.mark.parametrize("seed", range(4))
def test_a_race_whose_result_is_right_is_found(doubles: ModuleType, seed: int) -> None:
    doubles.set_schedule(seed)
    assert doubles.count_in_shared(True) == 64
    with pytest.raises(RuntimeError, match=r"race: .* doubles.cu:\d+"):
        doubles.count_in_shared(False)
    assert doubles.pass_around(True).tolist() == [*range(2, 33), 1]
    with pytest.raises(RuntimeError, match="race: thread .* (reads|writes) byte"):
        doubles.pass_around(False)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_of_a_cluster_read_each_other(doubles: ModuleType, seed: int) -> None:
    doubles.set_compute_capability(90)
    doubles.set_schedule(seed)
    np.testing.assert_array_equal(doubles.sum_over_cluster(8, True), [36] * 8)
    with pytest.raises(
        RuntimeError, match="race: .* of block .* dynamic shared memory .* of block"
    ):
        doubles.sum_over_cluster(8, False)
    doubles.set_race_detection(False)
    assert (doubles.sum_over_cluster(8, False) != 36).any()


def test_clusters_have_limits(doubles: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"cudaLaunchKernelEx.*operation not supported"):
        doubles.sum_over_cluster(2, True)
    doubles.set_compute_capability(90)
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        doubles.sum_over_cluster(16, True)
    doubles.set_cluster_limit(4)
    np.testing.assert_array_equal(doubles.sum_over_cluster(4, True), [10] * 4)
    with pytest.raises(RuntimeError, match="cluster misconfiguration"):
        doubles.sum_over_cluster(8, True)


def test_blocks_run_in_a_drawn_order(doubles: ModuleType) -> None:
    assert doubles.order_of_blocks(50).tolist() == list(range(50))
    doubles.set_schedule(1)
    order = doubles.order_of_blocks(50).tolist()
    assert order != list(range(50))
    assert sorted(order) == list(range(50))


def test_launches_have_the_limits_of_the_chip(doubles: ModuleType) -> None:
    doubles.launch_with(1024, 48 * 1024, 0)
    with pytest.raises(RuntimeError, match="invalid configuration argument"):
        doubles.launch_with(1025, 0, 0)
    with pytest.raises(RuntimeError, match="invalid argument"):
        doubles.launch_with(32, 48 * 1024 + 1, 0)
    doubles.launch_with(32, 163 * 1024, 163 * 1024)
    doubles.set_compute_capability(89)
    with pytest.raises(RuntimeError, match=r"cuda_emulation/doubles.cu:\d+: cudaFuncSetAttribute"):
        doubles.launch_with(32, 100 * 1024, 100 * 1024)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_barriers_are_cheap_enough_for_tests(doubles: ModuleType, seed: int) -> None:
    doubles.set_schedule(seed)
    begin = time.process_time()
    assert doubles.many_barriers(500) == 500 * 499 // 2
    # Half a million switches: an eighth of a second on a slow core, hours if threads were threads.
    assert time.process_time() - begin < 5
