"""The CUDA kernels of farthest point sampling: emulated, or on the GPU where that is the device.

Which kernel runs depends on the number of points: in registers up to 4096, one block on pruned
leaves above, a cluster above 65536 where the chip has clusters (sm_90 and later).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.cases import (
    ADVERSARIAL_CLOUDS,
    Cloud,
    by_name,
    depth_frame,
    integer_cloud,
    uniform_cloud,
)
from ops.plain_float32 import sample_in_float32

from mmad_fast.ops.farthest_point_sampling import reference

IS_EMULATED = TEST_DEVICE == "cpu"
MOST_IN_REGISTERS, MOST_IN_A_BLOCK = 4096, 65536
LEAVES_PER_BLOCK = 32 * 1024  # points from which on a block has several leaves per lane
GUARD = 64
INDEX_SENTINEL, BYTE_SENTINEL = -77, 0xA5

Sample = Callable[..., NDArray[np.int64]]


@pytest.fixture
def kernels(cuda_kernels: ModuleType) -> Iterator[ModuleType]:
    """The module, with the emulation's settings as they were afterwards."""
    yield cuda_kernels
    if IS_EMULATED:
        cuda_kernels.set_compute_capability(80)
        cuda_kernels.set_cluster_limit(16)
        cuda_kernels.set_schedule(0)


def launch(
    kernels: ModuleType,
    points: NDArray[np.float32],
    num_samples: int,
    start_index: int = 0,
    *,
    skip_near_origin: bool = False,
    sm: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The indices, and what the workspace holds afterwards; both stood between guard zones."""
    if IS_EMULATED and sm is not None:
        kernels.set_compute_capability(sm)
    num_bytes = kernels.farthest_point_sampling_workspace(len(points))
    on_device = torch.from_numpy(points.copy()).to(TEST_DEVICE)
    indices = torch.full((num_samples + 2 * GUARD,), INDEX_SENTINEL, device=TEST_DEVICE)
    memory = torch.full((num_bytes + 1024,), BYTE_SENTINEL, dtype=torch.uint8, device=TEST_DEVICE)
    first = 256 + -memory.data_ptr() % 256
    kernels.farthest_point_sampling(
        0,
        on_device.data_ptr(),
        len(points),
        num_samples,
        start_index,
        skip_near_origin,
        indices[GUARD:].data_ptr(),
        memory[first:].data_ptr(),
        0,
    )
    result, bytes_after = indices.cpu().numpy(), memory.cpu().numpy()
    assert (result[:GUARD] == INDEX_SENTINEL).all()
    assert (result[-GUARD:] == INDEX_SENTINEL).all()
    assert (bytes_after[:first] == BYTE_SENTINEL).all()
    assert (bytes_after[first + num_bytes :] == BYTE_SENTINEL).all()
    np.testing.assert_array_equal(on_device.cpu().numpy(), points)
    return result[GUARD:-GUARD], bytes_after[first : first + num_bytes]


@pytest.fixture
def sample(kernels: ModuleType) -> Sample:
    """`launch`, the indices only."""

    def run(
        points: NDArray[np.float32], num_samples: int, start_index: int = 0, **options: Any
    ) -> NDArray[np.int64]:
        return launch(kernels, points, num_samples, start_index, **options)[0]

    return run


def enlarged(points: NDArray[np.float32], num_points: int) -> NDArray[np.float32]:
    """(num_points, 3) the points again and again, for the kernels that serve large clouds."""
    return np.ascontiguousarray(points[np.arange(num_points) % len(points)])


# As many points as each kernel can have, and the chip that it runs on.
KERNELS = {
    "registers": (MOST_IN_REGISTERS, 80),
    "block": (MOST_IN_REGISTERS + 33, 80),
    "cluster": (MOST_IN_A_BLOCK + 1, 90),
}
each_kernel = pytest.mark.parametrize(("num_points", "sm"), KERNELS.values(), ids=KERNELS)


@pytest.mark.parametrize(
    "cloud", [cloud for cloud in ADVERSARIAL_CLOUDS if cloud.is_exact], ids=by_name
)
def test_indices_equal_the_reference_on_integers(cloud: Cloud, sample: Sample) -> None:
    count = len(cloud.points)
    for start_index in {0, count // 2, count - 1}:
        num_samples = min(count + 5, 400 if start_index == 0 else 20, 200_000 // count)
        expected = reference.farthest_point_sampling(cloud.points, num_samples, start_index, False)
        got = sample(cloud.points, num_samples, start_index)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(sample(cloud.points, 1, start_index), [start_index])


@pytest.mark.parametrize(
    "cloud", [cloud for cloud in ADVERSARIAL_CLOUDS if not cloud.is_exact], ids=by_name
)
def test_indices_equal_plain_float32(cloud: Cloud, sample: Sample) -> None:
    num_samples = min(100, len(cloud.points), 400_000 // len(cloud.points))
    got = sample(cloud.points, num_samples, 3)
    np.testing.assert_array_equal(got, sample_in_float32(cloud.points, num_samples, 3))


@pytest.mark.parametrize(
    "cloud", [cloud for cloud in ADVERSARIAL_CLOUDS if len(cloud.points) < 3500], ids=by_name
)
def test_pruning_changes_nothing_on_small_clouds_repeated(cloud: Cloud, sample: Sample) -> None:
    points = enlarged(cloud.points, MOST_IN_REGISTERS + 1)
    start_index = len(points) - 1
    got = sample(points, 20, start_index)
    np.testing.assert_array_equal(got, sample_in_float32(points, 20, start_index))


def test_a_depth_frame_is_sampled_down_to_its_details(sample: Sample) -> None:
    points = depth_frame(110, coverage=0.6).points
    assert len(points) > MOST_IN_REGISTERS
    np.testing.assert_array_equal(sample(points, 250), sample_in_float32(points, 250))


SIZES = [
    *(1, 2, 7, 31, 32, 33, 63, 64, 65, 127, 512, 513, 1023, 1025, 2048, 2049),
    *(MOST_IN_REGISTERS - 1, MOST_IN_REGISTERS, MOST_IN_REGISTERS + 1, 4128, 4129, 5119),
    *(LEAVES_PER_BLOCK, LEAVES_PER_BLOCK + 1, MOST_IN_A_BLOCK),
]


@pytest.mark.parametrize("num_points", SIZES)
def test_any_number_of_points(num_points: int, sample: Sample) -> None:
    points = integer_cloud(num_points, seed=num_points)
    num_samples = 5 if num_points > 10_000 else 11
    for start_index in {0, num_points - 1} if num_points < 10_000 else {num_points - 1}:
        expected = reference.farthest_point_sampling(points, num_samples, start_index, False)
        np.testing.assert_array_equal(sample(points, num_samples, start_index), expected)


@pytest.mark.parametrize("num_points", [LEAVES_PER_BLOCK - 2500, MOST_IN_A_BLOCK + 40])
@pytest.mark.parametrize("sm", [75, 90] if IS_EMULATED else [None])
def test_state_in_shared_memory_or_in_the_workspace(
    num_points: int, sm: int | None, sample: Sample
) -> None:
    """sm_75 has 64 KiB of shared memory: not enough for the distances, nor for many boxes."""
    points = depth_frame(280, coverage=1.2).points[:num_points]
    assert len(points) == num_points
    got = sample(points, 8, sm=sm)
    np.testing.assert_array_equal(got, sample_in_float32(points, 8))


@pytest.mark.parametrize(
    ("num_points", "sm"),
    # A cluster whose state does not fit; on a GPU also groups of more than 32 leaves.
    [(163_000, 120)] if IS_EMULATED else [(500_000, None), (1_100_000, None)],
)
def test_clouds_larger_than_shared_memory(num_points: int, sm: int | None, sample: Sample) -> None:
    points = uniform_cloud(num_points)
    np.testing.assert_array_equal(sample(points, 3, sm=sm), sample_in_float32(points, 3))


@pytest.mark.skipif(not IS_EMULATED, reason="a GPU has one compute capability")
def test_a_cluster_serves_large_clouds_where_there_are_clusters(kernels: ModuleType) -> None:
    """Its blocks have room for all distances, one block of 99 KiB has not."""
    most, more = MOST_IN_A_BLOCK, MOST_IN_A_BLOCK + 1
    points = integer_cloud(more, seed=1)
    for num_points, sm, is_cluster in ((most, 120, False), (more, 89, False), (more, 120, True)):
        indices, workspace = launch(kernels, points[:num_points], 2, sm=sm)
        np.testing.assert_array_equal(indices, sample_in_float32(points[:num_points], 2))
        assert bool((workspace == BYTE_SENTINEL).all()) == is_cluster


@pytest.mark.skipif(not IS_EMULATED, reason="a GPU has room for clusters or not")
def test_one_block_serves_large_clouds_where_no_cluster_has_room(kernels: ModuleType) -> None:
    points = integer_cloud(MOST_IN_A_BLOCK + 1, seed=1)
    kernels.set_cluster_limit(4)
    indices, workspace = launch(kernels, points, 2, sm=120)
    np.testing.assert_array_equal(indices, sample_in_float32(points, 2))
    assert (workspace != BYTE_SENTINEL).any()


@each_kernel
def test_more_samples_than_places(num_points: int, sm: int, sample: Sample) -> None:
    """Once all distances are 0 the lowest index repeats, whatever the start."""
    points = enlarged(integer_cloud(6, seed=3), num_points)
    for start_index in (0, num_points - 1) if num_points < MOST_IN_A_BLOCK else (1,):
        got = sample(points, num_points + 9 if num_points < 5000 else 300, start_index, sm=sm)
        expected = sample_in_float32(points, 10, start_index)
        np.testing.assert_array_equal(got[:10], expected)
        assert (expected[6:] == 0).all()
        assert (got[6:] == 0).all()


def test_all_points_in_order_and_then_the_first_again(sample: Sample) -> None:
    points = integer_cloud(300, seed=8)
    for num_samples in (300, 311):
        got = sample(points, num_samples, 7)
        np.testing.assert_array_equal(got, sample_in_float32(points, num_samples, 7))
        assert sorted(got[:300].tolist()) == list(range(300))


@each_kernel
def test_points_near_the_origin_are_skipped_on_request(
    num_points: int, sm: int, sample: Sample
) -> None:
    # In float32 the squared norm of `at_limit` is just above 1e-3, that of `below` just below.
    near, below, at_limit = [0.01, 0, 0], [0.006, 0.03, 0.008], [0.008, 0.03, 0.006]
    small = np.float32([near, [1, 0, 0], at_limit, below, [0, 0.0317, 0], [1, 0.1, 0]])
    points = enlarged(small, num_points)
    for start_index in (0, 3) if num_points < MOST_IN_A_BLOCK else (2,):
        got = sample(points, 9, start_index, skip_near_origin=True, sm=sm)
        expected = sample_in_float32(points, 9, start_index, skip_near_origin=True)
        np.testing.assert_array_equal(got, expected)
    only_near = enlarged(small[[0, 3]], num_points)
    got = sample(only_near, 40, num_points - 1, skip_near_origin=True, sm=sm)
    assert got.tolist() == [num_points - 1, *[0] * 39]


@each_kernel
def test_points_that_are_not_finite_are_no_candidates(
    num_points: int, sm: int, sample: Sample
) -> None:
    points = uniform_cloud(num_points, seed=2)
    rng = np.random.default_rng(0)
    bad = rng.choice(np.arange(num_points - 1), num_points // 3, replace=False)
    values = np.float32([np.nan, -np.nan, np.inf, -np.inf])
    points[bad, rng.integers(0, 3, len(bad))] = rng.choice(values, len(bad))
    points[0], points[64:96] = np.nan, np.inf
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    last = len(finite) - 1  # of the points, too
    expected = finite[sample_in_float32(points[finite], 4, last)]
    np.testing.assert_array_equal(sample(points, 4, num_points - 1, sm=sm), expected)
    # From a start without a place nothing is near: the lowest candidate is next.
    expected = np.r_[0, finite[sample_in_float32(points[finite], 2, 0)]]
    np.testing.assert_array_equal(sample(points, 3, 0, sm=sm), expected)


@each_kernel
def test_hopeless_clouds_end_with_valid_indices(num_points: int, sm: int, sample: Sample) -> None:
    nothing = np.full((num_points, 3), np.nan, np.float32)
    assert sample(nothing, 50, 5, sm=sm).tolist() == [5, *[0] * 49]
    nothing[[9, 70]] = [[1, 2, 3], [4, 5, 6]]
    assert sample(nothing, 6, 9, sm=sm).tolist() == [9, 70, 9, 9, 9, 9]
    # Squared distances that overflow: as far as can be, and never lowered.
    huge = enlarged(np.float32([[3e38, 0, 0], [-3e38, 0, 0]]), num_points)
    with np.errstate(over="ignore"):
        expected = sample_in_float32(huge, 3)
    np.testing.assert_array_equal(sample(huge, 3, sm=sm), expected)


@pytest.mark.parametrize("num_points", [40, MOST_IN_REGISTERS + 7])
def test_the_start_is_clamped(num_points: int, sample: Sample) -> None:
    points = integer_cloud(num_points, seed=4)
    for asked, taken in ((-1, 0), (-(2**40), 0), (num_points, num_points - 1)):
        got = sample(points, 2, asked)
        np.testing.assert_array_equal(got, sample_in_float32(points, 2, taken))


@pytest.mark.skipif(not IS_EMULATED, reason="a GPU draws its own schedule")
@pytest.mark.parametrize("seed", range(1, 5))
@each_kernel
def test_the_order_in_which_threads_run_does_not_matter(
    num_points: int, sm: int, seed: int, kernels: ModuleType, sample: Sample
) -> None:
    points = depth_frame(370, coverage=0.6, seed=1).points[:num_points]
    assert len(points) == num_points
    kernels.set_schedule(seed)
    num_samples = 3 if num_points > MOST_IN_A_BLOCK else 14
    got = sample(points, num_samples, 1, sm=sm)
    np.testing.assert_array_equal(got, sample_in_float32(points, num_samples, 1))


def test_few_points_need_no_workspace(kernels: ModuleType) -> None:
    assert kernels.farthest_point_sampling_workspace(MOST_IN_REGISTERS) == 0
    for num_points in (MOST_IN_REGISTERS + 1, 50_000, 10**6):
        num_bytes = kernels.farthest_point_sampling_workspace(num_points)
        assert 4 * num_points < num_bytes < 8 * num_points + 100_000


@pytest.mark.skipif(TEST_DEVICE == "cuda", reason="a device does not count warp operations")
def test_pruning_saves_work(kernels: ModuleType) -> None:
    """On a scan, row by row, most leaves are out of question; in the same points shuffled hardly
    any is. Counted in warp operations (votes, shuffles, barriers)."""
    points = depth_frame(136, seed=2).points
    assert len(points) > MOST_IN_REGISTERS
    shuffled = np.random.default_rng(0).permutation(points)
    operations = []
    for cloud in (points, shuffled):
        before = kernels.num_switches()
        launch(kernels, cloud, 60)
        operations.append(kernels.num_switches() - before)
    assert operations[0] < 0.8 * operations[1], operations
