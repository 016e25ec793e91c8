"""The dense reference, step by step, against definitions written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmad_fast.methods.branches.point_groups.reference import point_feature_map
from mmad_fast.methods.cfm import reference
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.cfm.reference import ReferenceOptions


def test_point_map_dilates_the_object_and_averages_zeros_in():
    pixels = torch.tensor([5 * 12 + 6])
    feature_map = point_feature_map(torch.tensor([[9.0, 18.0]]), pixels, 12, 12)
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


def test_normalisation_of_zeros_is_zeros():
    zeros = torch.zeros(4, 4)
    assert torch.equal(reference.normalize(zeros, "cfm"), zeros)


def test_options_of_a_detector():
    parameters = CfmOptions(
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
