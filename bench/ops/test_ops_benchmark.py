"""The ops alone, under pytest-benchmark, on the inputs that their tests share.

python -m pytest bench/ops --benchmark-only [--benchmark-autosave] [-k knn]

For a look at one's own change (--benchmark-compare); the rows that documents are made of come from
bench/peers.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from ops.cases import depth_frame, uniform_cloud
from ops.feature_cases import CFM_SIZES, mapping_case, queries_and_bank

from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.inverse_distance_interpolation import (
    inverse_distance_interpolation,
    inverse_distance_weights,
    pooled_interpolation_rows,
)
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.nearest_neighbor_scoring import PreparedBank, nearest_neighbor_scoring
from mmad_fast.ops.pixel_mapping import pixel_mapping

pytest.importorskip("pytest_benchmark", reason="pip install 'mmad-fast[bench]'")

NUM_CENTERS = 1024
CLOUDS = {
    "part-14k": lambda: depth_frame(224, coverage=0.28).points,
    "frame-184k": lambda: depth_frame(640, coverage=0.5).points,
    "uniform-50k": lambda: uniform_cloud(50_000),
}


@pytest.fixture(scope="module", params=CLOUDS)
def points(request) -> NDArray[np.float32]:
    return CLOUDS[request.param]()


@pytest.fixture(scope="module")
def centers(points) -> NDArray[np.int64]:
    return farthest_point_sampling(points, NUM_CENTERS)


@pytest.mark.parametrize("num_samples", [256, NUM_CENTERS])
def test_farthest_point_sampling(benchmark, points, num_samples) -> None:
    indices = benchmark(farthest_point_sampling, points, num_samples)
    assert len(np.unique(indices)) == num_samples


@pytest.mark.parametrize("num_neighbors", [32, 128])
def test_knn_grouping(benchmark, points, centers, num_neighbors) -> None:
    groups = benchmark(knn_grouping, points, centers, num_neighbors)
    assert (groups.indices[:, 0] == centers).mean() > 0.99  # but for points that coincide


def test_inverse_distance_weights(benchmark, points, centers) -> None:
    weights = benchmark(inverse_distance_weights, points, points[centers]).weights
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_inverse_distance_interpolation(benchmark, points, centers) -> None:
    features = np.ones((NUM_CENTERS, 64), np.float32)
    dense = benchmark(inverse_distance_interpolation, features, points[centers], points)
    np.testing.assert_allclose(dense, 1, atol=1e-5)


@pytest.mark.parametrize("output_size", [28, 56, 224])
def test_pooled_interpolation_rows(benchmark, output_size) -> None:
    frame = depth_frame()
    chosen = farthest_point_sampling(frame.points, NUM_CENTERS)
    weights = inverse_distance_weights(frame.points, frame.points[chosen])
    pooled = benchmark(
        pooled_interpolation_rows,
        weights,
        frame.pixel_indices,
        num_centers=NUM_CENTERS,
        output_size=output_size,
    )
    assert 0 < len(pooled.pixel_indices) <= output_size**2


@pytest.mark.parametrize("size", [(784, 7651, 768), (784, 19130, 1152)])
def test_nearest_neighbor_scoring(benchmark, size) -> None:
    queries, bank = queries_and_bank(*size)
    prepared = PreparedBank(bank)
    nearest = benchmark(nearest_neighbor_scoring, queries, prepared)
    some = np.linalg.norm(queries[:5] - bank[nearest.indices[:5]], axis=1)
    np.testing.assert_allclose(nearest.distances[:5], some, rtol=1e-5)


@pytest.mark.parametrize("variant", CFM_SIZES)
def test_pixel_mapping(benchmark, variant) -> None:
    sizes = CFM_SIZES[variant]
    case = mapping_case(14_000, sizes=sizes, token_grid=28, num_groups=NUM_CENTERS, max_entries=32)
    psi = benchmark(pixel_mapping, *case.arguments)
    assert ((psi > 0) & (psi < 2)).all()


@pytest.mark.parametrize("uses_cloud_statistics", [True, False], ids=["cloud", "frozen"])
@pytest.mark.parametrize("group_size", [32, 128])
def test_point_embedding(benchmark, group_size, uses_cloud_statistics) -> None:
    from ops.embedding_cases import embedder_weights, surface_groups

    from mmad_fast.ops.point_embedding import point_embedding

    embedder = embedder_weights(uses_cloud_statistics=uses_cloud_statistics)
    tokens = benchmark(point_embedding, surface_groups(NUM_CENTERS, group_size), embedder)
    assert np.isfinite(tokens).all()
