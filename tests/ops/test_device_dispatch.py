"""Arrays on a CUDA device, from the public functions to the kernels and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gpu_test_device import TEST_DEVICE
from numpy.typing import NDArray
from ops.cases import depth_frame, integer_cloud, uniform_cloud
from ops.embedding_cases import (
    assert_no_worse_than_plain,
    embedder_weights,
    random_groups,
    surface_groups,
)
from ops.feature_cases import MappingCase, mapping_case, queries_and_bank
from ops.map_cases import CASES, make_levels, torch_map
from ops.plain_float32 import nearest_in_float32, sample_in_float32, weights_in_float32

from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.gpu import cuda_kernels as found_kernels
from mmad_fast.ops import all_tables
from mmad_fast.ops.cosine_maps import cosine_maps
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.fpfh import fpfh
from mmad_fast.ops.inverse_distance_interpolation import (
    InterpolationWeights,
    inverse_distance_interpolation,
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.inverse_distance_interpolation import reference as interpolation_reference
from mmad_fast.ops.k_center_greedy import k_center_greedy
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.ops.nearest_neighbor_scoring import reference as scoring_reference
from mmad_fast.ops.pixel_mapping import pixel_mapping
from mmad_fast.ops.pixel_mapping import reference as mapping_reference
from mmad_fast.ops.point_embedding import EmbedderWeights, point_embedding
from mmad_fast.ops.point_index import PointIndex
from mmad_fast.ops.point_neighbors import find_neighbors
from mmad_fast.ops.registry import Op
from mmad_fast.ops.sparse_rows import SparseRows
from mmad_fast.ops.surface_normals import surface_normals

on_device = pytest.mark.usefixtures("pretend_device")
POINTS = uniform_cloud(130)
CENTERS = POINTS[::9].copy()
CLOUD = embedder_weights(uses_cloud_statistics=True)
FROZEN = embedder_weights(uses_cloud_statistics=False)


def to_device(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(TEST_DEVICE)


def to_host(tensor: Any) -> NDArray[Any]:
    assert isinstance(tensor, torch.Tensor)
    assert tensor.device.type == TEST_DEVICE
    return tensor.cpu().numpy()


def rows_to_device(rows: SparseRows) -> SparseRows:
    arrays = (to_device(array) for array in (rows.offsets, rows.columns, rows.values))
    return SparseRows(*arrays, rows.num_columns)


def dense_matrix(rows: SparseRows) -> NDArray[np.float64]:
    """(P, T): what the rows say, entries of one column added up."""
    offsets, columns, values = (to_host(a) for a in (rows.offsets, rows.columns, rows.values))
    matrix = np.zeros((rows.num_rows, rows.num_columns))
    row = np.repeat(np.arange(rows.num_rows), np.diff(offsets))
    np.add.at(matrix, (row, columns), values.astype(np.float64))
    return matrix


@on_device
@pytest.mark.parametrize("num_samples", [1, 9, 70])
def test_sampling(num_samples: int) -> None:
    points = integer_cloud(63)
    found = farthest_point_sampling(to_device(points), num_samples, start_index=3)
    np.testing.assert_array_equal(to_host(found), sample_in_float32(points, num_samples, 3))


@on_device
def test_sampling_passes_its_options_on() -> None:
    points = np.concatenate([np.float32([[0.9, 0, 0]]), uniform_cloud(40) * np.float32(0.04)])
    found = farthest_point_sampling(to_device(points), 5, skip_near_origin=True, backend="cuda")
    expected = sample_in_float32(points, 5, skip_near_origin=True)
    np.testing.assert_array_equal(to_host(found), expected)
    assert not np.array_equal(expected, sample_in_float32(points, 5))


@on_device
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_grouping(dtype: type) -> None:
    centers = np.array([5, 129, 5, 0], dtype)
    indices, groups = knn_grouping(to_device(POINTS), to_device(centers), 7)
    expected = nearest_in_float32(POINTS, centers, 7)
    np.testing.assert_array_equal(to_host(indices), expected)
    np.testing.assert_array_equal(to_host(groups), POINTS[expected] - POINTS[centers][:, None])


NEIGHBORHOODS = {
    "usual": {},
    "few": {"max_neighbors": 7},
    "more than there are points": {"max_neighbors": 140},
    "radius": {"radius": 0.05},
}
"""Of a cloud of 130 points in a cube of 0.2."""


@on_device
@pytest.mark.parametrize("orientation", ["camera", "open3d"])
@pytest.mark.parametrize("options", NEIGHBORHOODS.values(), ids=NEIGHBORHOODS)
def test_normals(options: dict[str, Any], orientation: str) -> None:
    found = surface_normals(to_device(POINTS), orientation=orientation, **options)
    expected = surface_normals(POINTS, orientation=orientation, backend="reference", **options)
    np.testing.assert_allclose(to_host(found), expected, atol=1e-6)
    # The same source, and nothing in it that devices round differently.
    on_host = surface_normals(POINTS, orientation=orientation, backend="cpu", **options)
    np.testing.assert_array_equal(to_host(found), on_host)


@on_device
@pytest.mark.parametrize("options", NEIGHBORHOODS.values(), ids=NEIGHBORHOODS)
@pytest.mark.parametrize(
    "of_normals",
    [
        {"orientation": "open3d"},
        {"normal_neighbors": 120, "normal_radius": 0.07},
        {"normal_radius": 0.01},
        {"normals": np.float32},
        {"normals": np.float64},
    ],
    ids=["open3d", "radius", "no-normals", "float32", "float64"],
)
def test_features(options: dict[str, Any], of_normals: dict[str, Any]) -> None:
    """No pair is counted in another bin: that were 0.8 of 200 and more."""
    on_host, on_device = dict(of_normals), dict(of_normals)
    if "normals" in of_normals:
        given = surface_normals(POINTS).astype(of_normals["normals"])
        on_host["normals"], on_device["normals"] = given, to_device(given)
    found = fpfh(to_device(POINTS), **options, **on_device)
    for backend in ("cpu", "reference"):
        expected = fpfh(POINTS, backend=backend, **options, **on_host)
        np.testing.assert_allclose(to_host(found), expected, atol=200 * 1e-5)


@on_device
@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
def test_interpolation_weights(backend: str) -> None:
    found = inverse_distance_weights(to_device(POINTS), to_device(CENTERS), backend=backend)
    indices, weights = weights_in_float32(POINTS, CENTERS)
    np.testing.assert_array_equal(to_host(found.indices), indices)
    np.testing.assert_array_equal(to_host(found.weights), weights)


@on_device
def test_dense_interpolation() -> None:
    features = np.random.default_rng(0).standard_normal((len(CENTERS), 20)).astype(np.float32)
    found = inverse_distance_interpolation(
        to_device(features), to_device(CENTERS), to_device(POINTS)
    )
    expected = interpolation_reference.inverse_distance_interpolation(features, CENTERS, POINTS)
    indices, weights = weights_in_float32(POINTS, CENTERS)
    plain = (weights[:, :, None] * features[indices]).sum(axis=1)
    bound = 2 * np.abs(plain - expected).max() + 1e-7
    assert np.abs(to_host(found) - expected).max() <= bound


@on_device
@pytest.mark.parametrize(
    ("grid_size", "output_size"), [(3, 1), (3, 4), (17, 5), (17, 15), (20, 20), (20, 31)]
)
def test_pooled_rows_are_the_matrix_of_the_reference(grid_size: int, output_size: int) -> None:
    frame = depth_frame(grid_size, coverage=0.5)
    points = frame.points if len(frame.points) else uniform_cloud(1)
    pixels = frame.pixel_indices if len(frame.points) else np.array([4])
    centers = uniform_cloud(11, seed=1)
    weights = inverse_distance_weights(points, centers)
    sizes = {"num_centers": 11, "grid_size": grid_size, "output_size": output_size}
    found, found_pixels = pooled_interpolation_rows(
        InterpolationWeights(*map(to_device, weights)), pixels, **sizes
    )
    expected, expected_pixels = pooled_interpolation_rows(
        weights, pixels, backend="reference", **sizes
    )
    np.testing.assert_array_equal(found_pixels, expected_pixels)
    exact = expected.apply(np.eye(11, dtype=np.float32))
    np.testing.assert_allclose(dense_matrix(found), exact, rtol=3e-7, atol=1e-12)
    assert len(set(np.diff(to_host(found.offsets)))) == 1


@on_device
@pytest.mark.parametrize("output_size", [224, 56])
def test_pooled_rows_of_whole_frames(output_size: int) -> None:
    frame = depth_frame(224, coverage=0.02)
    centers = frame.points[::37].copy()
    weights = inverse_distance_weights(frame.points, centers)
    sizes = {"num_centers": len(centers), "output_size": output_size}
    found, found_pixels = pooled_interpolation_rows(
        InterpolationWeights(*map(to_device, weights)), frame.pixel_indices, **sizes
    )
    expected, expected_pixels = pooled_interpolation_rows(weights, frame.pixel_indices, **sizes)
    np.testing.assert_array_equal(found_pixels, expected_pixels)
    exact = expected.apply(np.eye(len(centers), dtype=np.float32))
    np.testing.assert_allclose(dense_matrix(found), exact, rtol=3e-7, atol=1e-12)


@on_device
@pytest.mark.parametrize(
    # Triton's interpreter cannot multiply bfloat16: of one row only the exact distance is left.
    ("dtype", "num_rows"),
    [("float32", 130), ("float16", 130), ("bfloat16", 1)],
)
def test_scoring(dtype: str, num_rows: int) -> None:
    queries, bank = queries_and_bank(33, num_rows, 48)
    rows = to_device(bank).to(getattr(torch, dtype))
    rounded = rows.float().cpu().numpy()
    queries = rounded[np.arange(33) % num_rows] + np.float32(0.01) * queries
    expected, expected_indices = scoring_reference.nearest_neighbor_scoring(queries, rounded)
    prepared = PreparedBank(rows)
    for given in (rows, prepared):
        distances, indices = nearest_neighbor_scoring(to_device(queries), given)
        np.testing.assert_allclose(to_host(distances), expected, rtol=48 * 2.0**-24)
        np.testing.assert_array_equal(to_host(indices), expected_indices)
    assert prepared.rows is rows


@on_device
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_coreset(dtype: str) -> None:
    rows = to_device(queries_and_bank(1, 20, 5)[1]).to(getattr(torch, dtype))
    reported = []
    found = k_center_greedy(rows, 4, start=3, progress=lambda *counts: reported.append(counts))
    assert found.dtype == torch.int64
    expected = k_center_greedy(rows.float().cpu().numpy(), 4, start=3, backend="reference")
    np.testing.assert_array_equal(to_host(found), expected)
    assert reported == [(4, 4)]


@on_device
def test_mapping_uploads_a_network_once() -> None:
    case = mapping_case(70, keep_empty=True)
    arguments = mapping_arguments(case)
    psi = to_host(pixel_mapping(*arguments))
    expected = mapping_reference.pixel_mapping(
        *case.arguments[:4], case.network.weights, case.network.biases
    )
    # What is tested here is the way to the kernel; its own tests hold it to plain float32.
    np.testing.assert_allclose(psi, expected, atol=1e-5)
    (network,) = case.network.on_devices.values()
    np.testing.assert_array_equal(to_host(pixel_mapping(*arguments[:4], network)), psi)
    np.testing.assert_array_equal(to_host(pixel_mapping(*arguments)), psi)
    assert list(case.network.on_devices.values()) == [network]


def mapping_arguments(case: MappingCase) -> tuple[Any, ...]:
    return (
        to_device(case.source_features),
        rows_to_device(case.source_rows),
        to_device(case.target_features),
        rows_to_device(case.target_rows),
        case.network,
    )


@on_device
@pytest.mark.parametrize("embedder", [CLOUD, FROZEN], ids=["cloud", "frozen"])
@pytest.mark.parametrize(
    "groups",
    [
        surface_groups(40, 16),
        random_groups(13, 7),
        random_groups(1, 1),
        random_groups(3, 50),
        np.full((5, 4, 3), 0.01, np.float32),
        random_groups(20, 16) * np.float32(0.3) + np.float32(0.5),
        np.concatenate([random_groups(20, 16), np.full((1, 16, 3), 0.4, np.float32)]),
    ],
    ids=["surface", "ragged", "one-point", "large", "all-equal", "far-from-zero", "outlier"],
)
def test_embedding(
    groups: NDArray[np.float32], embedder: EmbedderWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmad_fast.ops.point_embedding import torch_kernel

    whole = to_host(point_embedding(to_device(groups), embedder))
    assert_no_worse_than_plain(whole, groups, embedder)
    monkeypatch.setattr(torch_kernel, "PIECE", 40)
    pieces = to_host(point_embedding(to_device(groups), embedder))
    assert_no_worse_than_plain(pieces, groups, embedder)


@on_device
def test_geometry_of_a_scan_of_full_size(cuda_kernels: ModuleType) -> None:
    """1024 groups of 128 of a 224 x 224 depth frame, by the CUDA kernels: indices to the bit."""
    points = depth_frame(224, seed=1).points
    if TEST_DEVICE != "cuda":
        cuda_kernels.set_race_detection(False)  # the kernels' own tests have it
    try:
        chosen = farthest_point_sampling(to_device(points), 1024)
        groups = knn_grouping(to_device(points), chosen, 128)
        weights = inverse_distance_weights(
            to_device(points), to_device(points[to_host(chosen)]), backend="cuda"
        )
    finally:
        if TEST_DEVICE != "cuda":
            cuda_kernels.set_race_detection(True)
    host_chosen = sample_in_float32(points, 1024)
    np.testing.assert_array_equal(to_host(chosen), host_chosen)
    nearest = nearest_in_float32(points, host_chosen, 128)
    np.testing.assert_array_equal(to_host(groups.indices), nearest)
    centers = points[host_chosen]
    np.testing.assert_array_equal(to_host(groups.groups), points[nearest] - centers[:, None])
    indices, shares = weights_in_float32(points, centers)
    np.testing.assert_array_equal(to_host(weights.indices), indices)
    np.testing.assert_allclose(to_host(weights.weights), shares, rtol=1e-6, atol=0)


@on_device
def test_a_scan_stays_on_the_device_from_points_to_psi() -> None:
    frame = depth_frame(32, coverage=0.4)
    points = to_device(frame.points)
    chosen = farthest_point_sampling(points, 24)
    groups = knn_grouping(points, chosen, 8).groups
    tokens = point_embedding(groups, CLOUD)
    weights = inverse_distance_weights(points, points[chosen])
    rows, pixels = pooled_interpolation_rows(
        weights, frame.pixel_indices, num_centers=24, grid_size=32, output_size=32
    )
    case = mapping_case(len(pixels), sizes=(20, 24, 384), num_groups=24)
    psi = pixel_mapping(
        to_device(case.source_features),
        rows_to_device(case.source_rows),
        tokens,
        rows,
        case.network,
    )
    host_chosen = farthest_point_sampling(frame.points, 24)
    host_centers = frame.points[host_chosen]
    host_rows, host_pixels = pooled_interpolation_rows(
        inverse_distance_weights(frame.points, host_centers),
        frame.pixel_indices,
        num_centers=24,
        grid_size=32,
        output_size=32,
    )
    np.testing.assert_array_equal(pixels, host_pixels)
    host_tokens = point_embedding(knn_grouping(frame.points, host_chosen, 8).groups, CLOUD)
    expected = pixel_mapping(
        case.source_features, case.source_rows, host_tokens, host_rows, case.network
    )
    np.testing.assert_allclose(to_host(psi), expected, atol=1e-5)


@on_device
@pytest.mark.parametrize("options", [{}, {"sigma": 0, "align_corners": False}], ids=str)
def test_cosine_maps(options: dict[str, Any]) -> None:
    levels = make_levels(CASES[0])
    found = cosine_maps(*([to_device(one) for one in maps] for maps in levels), size=64, **options)
    np.testing.assert_allclose(to_host(found), torch_map(*levels, size=64, **options), atol=1e-6)


@on_device
def test_empty_inputs_give_empty_results() -> None:
    nothing = to_device(np.empty((0, 3), np.float32))
    indices, weights = inverse_distance_weights(nothing, to_device(CENTERS))
    assert (indices.shape, weights.shape) == ((0, 3), (0, 3))
    features = to_device(np.ones((len(CENTERS), 4), np.float32))
    dense = inverse_distance_interpolation(features, to_device(CENTERS), nothing)
    assert dense.shape == (0, 4)
    rows, pixels = pooled_interpolation_rows(
        InterpolationWeights(indices, weights), np.empty(0, np.int64), num_centers=5
    )
    assert rows.num_rows == len(pixels) == 0
    assert to_host(rows.offsets).tolist() == [0]
    bank = np.eye(6, dtype=np.float32)
    found = nearest_neighbor_scoring(to_device(bank[:0]), to_device(bank))
    assert [len(part) for part in found] == [0, 0]
    assert surface_normals(nothing).shape == (0, 3)
    assert fpfh(nothing).shape == (0, 33)
    assert pixel_mapping(*mapping_arguments(mapping_case(0))).shape == (0,)
    assert point_embedding(to_device(np.empty((0, 5, 3), np.float32)), CLOUD).shape == (0, 384)


CASE = mapping_case(4)
D = to_device
MAP = np.ones((2, 3, 4), np.float32)


def map_pixels(**changes: Any) -> Any:
    return pixel_mapping(*mapping_arguments(replace(CASE, **changes)))


@on_device
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: farthest_point_sampling(D(POINTS).double(), 2), "points has dtype float64; it m"),
        (lambda: farthest_point_sampling(D(POINTS).T, 2), r"strides \(1, 3\) .*contiguous\(\)"),
        (lambda: farthest_point_sampling(D(CENTERS[:, :2]), 2), r"\(15, 2\); it must be \(any, 3"),
        (lambda: farthest_point_sampling(D(POINTS).requires_grad_(), 2), r"pass points.detach\(\)"),
        (lambda: farthest_point_sampling(D(POINTS[:0]), 2), "points has 0 rows; at least 1 is"),
        (lambda: farthest_point_sampling(D(POINTS), 2, start_index=130), r"is 130; .* 0..129"),
        (lambda: farthest_point_sampling(D(POINTS), 0), "num_samples is 0"),
        (
            lambda: farthest_point_sampling(D(POINTS), 1, index=PointIndex(POINTS)),
            "index= serves NumPy arrays only",
        ),
        (
            lambda: knn_grouping(D(POINTS), np.array([1]), 2),
            "center_indices is a numpy.ndarray and points is on CUDA device 0; all arrays",
        ),
        (lambda: knn_grouping(D(POINTS), D(np.float32([1])), 2), "must be int64 or int32"),
        (lambda: knn_grouping(D(POINTS), D(np.empty(0, int)), 2), "center_indices is empty"),
        (lambda: knn_grouping(D(POINTS), D(np.array([1])), 131), "130 points for groups of 131"),
        (
            lambda: knn_grouping(D(uniform_cloud(1100)), D(np.array([1])), 1025),
            "num_neighbors is 1025; on a CUDA device it must be at most 1024",
        ),
        (lambda: surface_normals(D(POINTS).double()), "points has dtype float64; it must be"),
        (lambda: surface_normals(D(POINTS), max_neighbors=1025), "max_neighbors is 1025; it mu"),
        (lambda: surface_normals(D(POINTS), radius=-1.0), "radius is -1.0; it must be a positive"),
        (
            lambda: surface_normals(D(POINTS), index=PointIndex(POINTS)),
            "index= serves NumPy arrays only",
        ),
        (
            lambda: surface_normals(D(POINTS), neighbors=find_neighbors(POINTS, 30)),
            "neighbors= serves NumPy arrays only and points are on a CUDA device: leave it",
        ),
        (
            lambda: fpfh(D(POINTS), neighbors=find_neighbors(POINTS, 100)),
            "neighbors= serves NumPy arrays only",
        ),
        (lambda: fpfh(D(POINTS), normals=POINTS), "normals is a numpy.ndarray and points is on"),
        (lambda: fpfh(D(POINTS), normals=D(CENTERS)), r"\(15, 3\); it must be \(130, 3\)"),
        (lambda: fpfh(D(POINTS), normals=D(POINTS).half()), "must be float32 or float64"),
        (lambda: find_neighbors(D(POINTS), 3), "use no PointIndex"),
        (lambda: inverse_distance_weights(D(POINTS), CENTERS), "centers is a numpy.ndarray and"),
        (lambda: inverse_distance_weights(D(POINTS), D(CENTERS[:2])), "centers has 2 rows"),
        (
            lambda: inverse_distance_interpolation(D(POINTS), D(CENTERS), D(POINTS)),
            "features has 130 rows and there are 15 centers",
        ),
        (
            lambda: nearest_neighbor_scoring(D(POINTS), D(np.eye(4, dtype=np.float32))),
            r"queries have shape \(130, 3\) and the bank has shape \(4, 4\)",
        ),
        (lambda: nearest_neighbor_scoring(D(POINTS), CENTERS), "bank is a numpy.ndarray and"),
        (
            lambda: nearest_neighbor_scoring(D(POINTS), PreparedBank(CENTERS)),
            "the bank is in host memory; prepare a bank on device 0",
        ),
        (
            lambda: nearest_neighbor_scoring(POINTS, PreparedBank(D(CENTERS))),
            "the bank is on CUDA device 0 and queries are a ndarray",
        ),
        (lambda: PreparedBank(D(CENTERS[:0])), "at least 1 row and 1 column"),
        (lambda: PreparedBank(D(CENTERS).double()), "must be float32 or float16 or bfloat16"),
        (lambda: map_pixels(network=CASE.network.packed), "network is a PackedMappingNetwork; on"),
        (
            lambda: map_pixels(target_rows=mapping_case(5).target_rows),
            "source_rows has 4 pixels and target_rows has 5",
        ),
        (
            lambda: map_pixels(target_features=CASE.target_features[:, :5]),
            "the network maps 20 channels to 17",
        ),
        (
            lambda: pixel_mapping(D(CASE.source_features), *CASE.arguments[1:]),
            "target_features is a numpy.ndarray and source_features is on CUDA device 0",
        ),
        (
            lambda: pixel_mapping(
                CASE.source_features, rows_to_device(CASE.source_rows), *CASE.arguments[2:]
            ),
            "source_rows is on a CUDA device and its features are a NumPy array",
        ),
        (
            lambda: cosine_maps([D(MAP)], [MAP], size=4),
            r"restored\[0\] is a numpy.ndarray and targets",
        ),
        (lambda: cosine_maps([MAP], [D(MAP)], size=4), r"restored\[0\] is a torch.Tensor"),
        (lambda: cosine_maps([D(MAP)], [D(MAP).double()], size=4), "has dtype float64; it must be"),
        (lambda: cosine_maps([D(MAP)], [D(MAP[:1])], size=4), r"\(1, 3, 4\) and targets\[0\] has"),
        (lambda: cosine_maps([D(MAP[:0])], [D(MAP[:0])], size=4), "not empty"),
        (lambda: k_center_greedy(D(POINTS).double(), 2), "must be float32 or float16"),
        (lambda: k_center_greedy(D(POINTS), 2, start=130), r"start is 130; .* 0..129"),
        (lambda: k_center_greedy(D(POINTS), 0), "num_samples is 0"),
        (lambda: k_center_greedy(D(POINTS[:, :0].copy()), 2), "at least 1 column"),
        (lambda: point_embedding(D(POINTS), CLOUD), r"\(130, 3\); it must be \(any, any, any\)"),
        (lambda: point_embedding(D(np.ones((2, 0, 3), np.float32)), CLOUD), "at least 1 point"),
        (lambda: PointIndex(D(POINTS)), "use no PointIndex"),
    ],
)
def test_a_mistake_is_explained(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        call()


@on_device
def test_backends_of_the_other_device_are_refused_by_name() -> None:
    words = (
        "'cpu' takes NumPy arrays and was given arrays on a CUDA device; those go to auto, cuda$"
    )
    with pytest.raises(BackendUnavailableError, match=words):
        farthest_point_sampling(to_device(POINTS), 2, backend="cpu")
    words = (
        "'cuda' takes arrays on a CUDA device and was given NumPy arrays; those go to auto, cpu,"
    )
    with pytest.raises(BackendUnavailableError, match=words):
        farthest_point_sampling(POINTS, 2, backend="cuda")


class OnCuda:
    """Says that it is on a CUDA device; nobody may touch its memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


@pytest.mark.parametrize("op", all_tables(), ids=lambda op: op.name)
def test_device_arrays_never_fall_back_to_the_cpu(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    for problem in ("_cuda_problem", "_torch_problem"):
        monkeypatch.setattr(found_kernels, problem, lambda: "none in this test")
    with pytest.raises(
        BackendUnavailableError, match="no backend can run on arrays on a CUDA device: "
    ) as refused:
        op.resolve("auto", device="cuda")
    for name in ("cuda", "triton"):
        assert f"{name}: n" in str(refused.value)
    assert op.resolve("auto").name == "cpu"


def test_a_device_array_without_a_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_kernels, "_cuda_problem", lambda: "no driver; install one")
    with pytest.raises(BackendUnavailableError, match="cuda: no driver; install one; triton: no k"):
        farthest_point_sampling(OnCuda(), 3)


def test_a_torch_tensor_in_host_memory_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"must be a NumPy array \(a torch tensor: pass"):
        farthest_point_sampling(torch.ones(4, 3), 2)


def test_numpy_arrays_import_neither_torch_nor_triton() -> None:
    program = """
import sys
import numpy as np
sys.modules["torch"] = sys.modules["triton"] = sys.modules["cuda"] = None
from mmad_fast.errors import BackendUnavailableError
from mmad_fast.ops import all_ops
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
points = np.eye(3, dtype=np.float32)
print(knn_grouping(points, farthest_point_sampling(points, 2), 2).indices.tolist())
for op in all_ops():
    try:
        op.resolve("triton")
    except BackendUnavailableError:
        pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "[[0, 1], [1, 0]]"
