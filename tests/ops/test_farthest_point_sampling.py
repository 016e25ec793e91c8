from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ops.cases import (
    CLOUDS,
    Cloud,
    by_name,
    depth_frame,
    integer_cloud,
    uniform_cloud,
)
from ops.plain_float32 import sample_in_float32

from mmad_fast import _kernels
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.ops.farthest_point_sampling import OP, farthest_point_sampling

FAST_BACKENDS = [backend.name for backend in OP.backends_of("cpu") if backend.name != "reference"]
law = settings(derandomize=True, deadline=None, max_examples=30)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize(
    "cloud", [cloud for cloud in CLOUDS if cloud.is_exact], ids=lambda cloud: cloud.name
)
def test_indices_equal_the_reference_on_integers(cloud: Cloud, backend: str) -> None:
    count = len(cloud.points)
    for num_samples in {1, min(7, count), count, count + 5}:
        for start_index in {0, count // 2, count - 1}:
            options = {"start_index": start_index}
            expected = farthest_point_sampling(
                cloud.points, num_samples, backend="reference", **options
            )
            got = farthest_point_sampling(cloud.points, num_samples, backend=backend, **options)
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("cloud", CLOUDS, ids=by_name)
def test_indices_equal_plain_float32(cloud: Cloud, backend: str) -> None:
    num_samples = min(150, len(cloud.points))
    got = farthest_point_sampling(cloud.points, num_samples, backend=backend)
    np.testing.assert_array_equal(got, sample_in_float32(cloud.points, num_samples, 0))


@pytest.mark.parametrize("backend", [backend.name for backend in OP.backends_of("cpu")])
@pytest.mark.parametrize("cloud", CLOUDS, ids=by_name)
def test_each_sample_is_as_far_as_any_point(cloud: Cloud, backend: str) -> None:
    exact = cloud.points.astype(np.float64)
    indices = farthest_point_sampling(cloud.points, 64, backend=backend)
    assert indices[0] == 0
    nearest = np.full(len(exact), np.inf)
    for before, chosen in pairwise(indices):
        nearest = np.minimum(nearest, np.linalg.norm(exact - exact[before], axis=1))
        assert nearest[chosen] >= nearest.max() * (1 - 1e-6)


def test_the_first_of_equals_is_taken_and_repeats_when_all_are_taken() -> None:
    square = np.float32([[0, 0, 9], [2, 0, 9], [0, 2, 9], [2, 2, 9]])
    for backend in [backend.name for backend in OP.backends_of("cpu")]:
        got = farthest_point_sampling(square, 7, backend=backend)
        assert got.tolist() == [0, 3, 1, 2, 0, 0, 0], backend


def test_large_clouds_are_shared_among_threads_and_stay_exact() -> None:
    points = integer_cloud(70_001, seed=9)
    got = farthest_point_sampling(points, 12, start_index=5)
    expected = farthest_point_sampling(points, 12, start_index=5, backend="reference")
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("backend", [backend.name for backend in OP.backends_of("cpu")])
def test_points_near_the_origin_are_skipped_on_request(backend: str) -> None:
    near, at_limit = [0.01, 0.0, 0.0], [0.0, 0.03, 0.0]  # squared norms 1e-4 and 9e-4
    points = np.float32([near, [1, 0, 0], at_limit, [0, 0.04, 0], [1, 0.1, 0]])
    everything = farthest_point_sampling(points, 5, backend=backend)
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]
    got = farthest_point_sampling(points, 6, skip_near_origin=True, backend=backend)
    assert got[0] == 0  # the start is taken whatever it is
    assert set(got[1:4].tolist()) == {1, 3, 4}
    assert got[4:].tolist() == [1, 1]  # the lowest index of those that may be chosen
    only_near = farthest_point_sampling(
        points[[0, 2]], 3, start_index=1, skip_near_origin=True, backend=backend
    )
    assert only_near.tolist() == [1, 0, 0]


@pytest.mark.parametrize("backend", [backend.name for backend in OP.backends_of("cpu")])
def test_strided_read_only_and_float64_input(backend: str) -> None:
    points = integer_cloud(120, seed=6)
    expected = farthest_point_sampling(points, 20, backend=backend)
    wide = np.full((240, 5), np.nan, np.float32)
    wide[::2, 1:4] = points
    frozen = points.copy()
    frozen.flags.writeable = False
    variants = (wide[::2, 1:4], frozen, points.astype(np.float64), np.asfortranarray(points))
    for variant in (*variants, points.tolist()):
        np.testing.assert_array_equal(
            farthest_point_sampling(variant, 20, backend=backend), expected
        )
    np.testing.assert_array_equal(frozen, points)


def test_the_kernel_writes_only_its_output() -> None:
    points = depth_frame(40).points
    buffer = np.full(16 + 33 + 16, -77, np.int64)
    _kernels.farthest_point_sampling(_kernels.PointIndex(points), 3, False, buffer[16:-16])
    np.testing.assert_array_equal(buffer[16:-16], sample_in_float32(points, 33, 3))
    assert (buffer[:16] == -77).all()
    assert (buffer[-16:] == -77).all()


@law
@given(seed=st.integers(0, 10**6), count=st.integers(2, 60))
def test_the_order_of_the_points_does_not_matter(seed: int, count: int) -> None:
    points = uniform_cloud(count, seed=seed)
    order = np.random.default_rng(seed + 1).permutation(count)
    num_samples = count // 2 + 1
    first = farthest_point_sampling(points, num_samples)
    start_index = int(np.flatnonzero(order == 0)[0])
    second = farthest_point_sampling(points[order], num_samples, start_index=start_index)
    np.testing.assert_array_equal(order[second], first)


@law
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    shift=st.tuples(*[st.integers(-1000, 1000)] * 3),
)
def test_the_position_of_the_cloud_does_not_matter(
    seed: int, count: int, shift: tuple[int, int, int]
) -> None:
    points = integer_cloud(count, high=50, seed=seed)
    np.testing.assert_array_equal(
        farthest_point_sampling(points + np.float32(shift), count),
        farthest_point_sampling(points, count),
    )


class NotAnArray:
    """Something with numbers in it that NumPy would gladly convert."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[np.float32]:
        return np.zeros((4, 3), np.float32)


CLOUD = integer_cloud(10)
WITH_NAN, WITH_INF = CLOUD.copy(), CLOUD.copy()
WITH_NAN[4, 1], WITH_INF[7, 2] = np.nan, -np.inf


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((5, 2), np.float32), r"points has shape \(5, 2\); it must be \(rows, 3\)"),
        (np.zeros(9, np.float32), r"shape \(9,\)"),
        (np.zeros((0, 3), np.float32), "points has 0 rows; at least 1 is needed"),
        (np.zeros((4, 3), np.int32), r"dtype int32; it must be float32 .*astype\(np.float32\)"),
        (np.zeros((4, 3), np.float16), "dtype float16"),
        (np.zeros((4, 3), np.complex64), "dtype complex64"),
        (np.full((4, 3), "x"), "must hold numbers"),
        (np.full((4, 3), None), "must hold numbers"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0]], "cannot be read as an array of numbers"),
        (np.ma.zeros((4, 3)), "MaskedArray; it must be a NumPy array"),
        (WITH_NAN, r"a NaN in 1 of 10 rows \(the first is row 4\).*remove those rows"),
        (WITH_INF, r"infinite or too large value in 1 of 10 rows \(the first is row 7\)"),
        (np.full((4, 3), 1e300), "too large value in 4 of 4 rows"),
        (NotAnArray(), "NotAnArray; it must be a NumPy array"),
        (None, "NoneType; it must be a NumPy array"),
        ("points.tiff", "builtins.str; it must be a NumPy array"),
    ],
)
def test_bad_points_are_refused(points: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        farthest_point_sampling(points, 2)


@pytest.mark.parametrize(
    ("num_samples", "start_index", "words"),
    [
        (0, 0, r"num_samples is 0; it must be in 1\.\.16777216"),
        (-3, 0, "num_samples is -3"),
        (2.0, 0, "num_samples is 2.0; it must be an integer"),
        (True, 0, "num_samples is True; it must be an integer"),
        (2, 10, r"start_index is 10; it must be in 0\.\.9"),
        (2, -1, "start_index is -1"),
        (2, None, "start_index is None; it must be an integer"),
    ],
)
def test_bad_numbers_are_refused(num_samples: Any, start_index: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        farthest_point_sampling(CLOUD, num_samples, start_index=start_index)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="no backend 'gpu'; known are auto, cpu"):
        farthest_point_sampling(CLOUD, 2, backend="gpu")
