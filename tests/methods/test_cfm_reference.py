"""The dense reference, step by step, against definitions written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmad_fast.backbones import build_point_backbone
from mmad_fast.methods.cfm import reference
from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.cfm.reference import ReferenceOptions
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
    options = ReferenceOptions(idw_distance=idw_distance, idw_weights=idw_weights)
    interpolated = reference.interpolate(features, centers, points, options)
    for point, feature in zip(points, interpolated, strict=True):
        distances = (centers - point).norm(dim=1)
        nearest = distances.argsort()[:3]
        power = 2 if idw_weights == "squared" else 1
        weights = 1 / (distances[nearest] ** power + 1e-8)
        expected = (weights[:, None] * features[nearest]).sum(0) / weights.sum()
        torch.testing.assert_close(feature, expected)


def test_point_map_dilates_the_object_and_averages_zeros_in():
    pixels = torch.tensor([5 * 12 + 6])
    feature_map = reference.point_feature_map(torch.tensor([[9.0, 18.0]]), pixels, 12)
    image = feature_map.view(12, 12, 2)
    touched = (image != 0).all(dim=-1)
    background = reference.background_mask(feature_map, "all_zero").view(12, 12)
    assert torch.equal(touched, ~background)
    rows, columns = torch.nonzero(touched, as_tuple=True)
    # Means 3-5 of the 10 rows hold the point; output row k averages means floor(10 k / 12) to
    # ceil(10 (k + 1) / 12) - 1. Columns likewise from means 4-6.
    assert (int(rows.min()), int(rows.max())) == (3, 7)
    assert (int(columns.min()), int(columns.max())) == (4, 8)
    torch.testing.assert_close(image[..., 1], 2 * image[..., 0])
    assert image[..., 0].max() == pytest.approx(1.0)  # 9 spread over a 3 x 3 window


def test_published_mask_drops_pixels_whose_channels_cancel():
    features = torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 2.0]])
    assert reference.background_mask(features, "all_zero").tolist() == [False, True, False]
    assert reference.background_mask(features, "sum").tolist() == [True, True, False]


def test_rgb_map_of_a_linear_ramp_is_the_ramp():
    token_grid = 7
    ramp = (torch.arange(token_grid) + 0.5) / token_grid
    tokens = ramp.repeat(token_grid)[:, None]  # grows along the columns
    image = reference.rgb_feature_map(tokens, 56).view(56, 56)
    inner = (torch.arange(56) + 0.5)[4:-4] / 56
    torch.testing.assert_close(image[:, 4:-4], inner.expand(56, -1))


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


def test_normalisation_of_zeros_is_zeros():
    zeros = torch.zeros(4, 4)
    assert torch.equal(reference.normalize(zeros, "cfm"), zeros)


def test_options_of_a_detector():
    parameters = CfmParameters(
        rgb_backbone="dino-vitb8",
        rgb_size=224,
        token_grid=28,
        rgb_layers=4,
        point_layers=(1, 2, 3),
        group_size=32,
        smoothing="sigma4",
    )
    options = ReferenceOptions.of(parameters, dtype="float64")
    assert options == replace(
        ReferenceOptions(), group_size=32, smoothing="sigma4", dtype="float64"
    )


def test_smoothings_keep_the_mass_of_an_inner_pixel():
    impulse = torch.zeros(101, 101, dtype=torch.float64)
    impulse[50, 50] = 1
    offsets = torch.arange(101) - 50.0
    for smoothing, variance in (("boxes53", 22.0), ("sigma4", 16.0)):
        profile = reference.smooth(impulse, smoothing).sum(dim=0)
        assert float(profile.sum()) == pytest.approx(1)
        assert float((profile * offsets**2).sum()) == pytest.approx(variance, rel=0.01)
    assert np.count_nonzero(reference.smooth(impulse, "boxes53").numpy()) == 39**2
