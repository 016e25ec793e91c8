"""The dense stages of the references, step by step, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmad_fast.backbones import build_point_backbone
from mmad_fast.methods.branches.point_groups import reference
from mmad_fast.methods.branches.point_groups.reference import DenseOptions
from mmad_fast.ops.knn_grouping import knn_grouping


def random_points(num_points: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(num_points, 3, generator=torch.Generator().manual_seed(seed))


def test_sampling_starts_at_zero_and_takes_the_farthest():
    points = torch.tensor([[0.0, 0, 1], [0.1, 0, 1], [1, 0, 1], [0.4, 0, 1]])
    indices = reference.farthest_points(points, 4, skip_near_origin=False)
    assert indices.tolist() == [0, 2, 3, 1]


def test_sampling_ties_go_to_the_lowest_index():
    points = torch.tensor([[0.0, 0, 1], [1, 0, 1], [-1, 0, 1], [0, 1, 1]])
    assert reference.farthest_points(points, 3, skip_near_origin=False).tolist() == [0, 1, 2]


def test_sampling_can_skip_points_near_the_origin():
    points = torch.tensor([[0.0, 0, 1], [0, 0, 0.01], [0, 0, 0.9]])
    assert reference.farthest_points(points, 2, skip_near_origin=True).tolist() == [0, 2]
    assert reference.farthest_points(points, 2, skip_near_origin=False).tolist() == [0, 1]


def test_groups_are_the_nearest_points_centred():
    points = random_points(50)
    centers = points[[3, 9]]
    groups = reference.nearest_groups(points, centers, 7)
    for group, center in zip(groups, centers, strict=True):
        distances = (points - center).norm(dim=1)
        expected = points[distances.argsort()[:7]] - center
        torch.testing.assert_close(group, expected)


def test_equally_near_points_are_taken_by_lowest_index_as_the_op_does():
    """A lattice, as sensors that quantise give: many points are equally far."""
    axis = torch.arange(6, dtype=torch.float32)
    points = torch.cartesian_prod(axis, axis, axis)[
        torch.randperm(216, generator=torch.Generator().manual_seed(0))
    ]
    centers = torch.tensor([0, 100, 215])
    groups = reference.nearest_groups(points, points[centers], 20)
    expected = knn_grouping(points.numpy(), centers.numpy(), 20).groups
    np.testing.assert_array_equal(groups.numpy(), expected)
    published = reference.nearest_groups(points, points[centers], 20, knn_ties="any")
    torch.testing.assert_close(published.norm(dim=-1), groups.norm(dim=-1))


@pytest.mark.parametrize("idw_distance", ["direct", "expanded"])
@pytest.mark.parametrize("idw_weights", ["squared", "linear"])
def test_interpolation_is_the_inverse_distance_mean_of_three(idw_distance: str, idw_weights: str):
    points, centers = random_points(30).double(), random_points(9, seed=1).double()
    features = random_points(9, seed=2).double()
    options = DenseOptions(idw_distance=idw_distance, idw_weights=idw_weights)
    interpolated = reference.interpolate(features, centers, points, options)
    for point, feature in zip(points, interpolated, strict=True):
        distances = (centers - point).norm(dim=1)
        nearest = distances.argsort()[:3]
        power = 2 if idw_weights == "squared" else 1
        weights = 1 / (distances[nearest] ** power + 1e-8)
        expected = (weights[:, None] * features[nearest]).sum(0) / weights.sum()
        torch.testing.assert_close(feature, expected)


@pytest.mark.parametrize("batch_norm", ["cloud", "checkpoint"])
def test_published_point_mae_equals_the_backbone(batch_norm: str):
    point = build_point_backbone(layers=(0, 1), weights="random", batch_norm=batch_norm)
    generator = torch.Generator().manual_seed(0)
    groups = 0.01 * torch.randn((40, 16, 3), generator=generator)
    centers = torch.randn((40, 3), generator=generator)
    features = reference.point_mae_features(point, groups, centers)
    assert features.shape == (40, 768)
    torch.testing.assert_close(
        features, point(groups[None], centers[None])[0], rtol=1e-4, atol=1e-4
    )


def test_a_smaller_map_averages_overlapping_windows():
    """12 -> 4: means 10 x 10 of 3 x 3 pixels, windows [0, 3), [2, 5), [5, 8), [7, 10) of them."""
    values = torch.rand(144, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = reference.point_feature_map(values, torch.arange(144), 12, 4).view(4, 4, 2)
    image = values.view(12, 12, 2)
    means = torch.stack(
        [image[i : i + 3, j : j + 3].mean(dim=(0, 1)) for i in range(10) for j in range(10)]
    ).view(10, 10, 2)
    windows = [slice(0, 3), slice(2, 5), slice(5, 8), slice(7, 10)]
    for i, rows in enumerate(windows):
        for j, columns in enumerate(windows):
            torch.testing.assert_close(found[i, j], means[rows, columns].mean(dim=(0, 1)))
