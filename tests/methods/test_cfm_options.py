"""What a CFM detector is fitted with, and the manifest's record of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.cfm.options import CfmOptions

OPTIONS = CfmOptions(rgb_backbone="dino-vitb8", rgb_layers=4, point_layers=(1, 2, 3))


def test_json_round_trip_ignores_other_keys():
    content = json.loads(json.dumps({**OPTIONS.to_manifest(), "training": {"epochs": 3}}))
    assert CfmOptions.from_manifest(content) == OPTIONS


@pytest.mark.parametrize(
    ("aggregation", "mapping", "networks"),
    [
        ("product", "crossmodal", {"psi_2d": "point_to_rgb", "psi_3d": "rgb_to_point"}),
        ("psi_3d", "crossmodal", {"psi_3d": "rgb_to_point"}),
        ("max", "intramodal", {"psi_2d": "rgb_to_rgb", "psi_3d": "point_to_point"}),
        ("psi_2d", "intramodal", {"psi_2d": "rgb_to_rgb"}),
    ],
)
def test_only_the_networks_that_are_read(aggregation: str, mapping: str, networks: dict[str, str]):
    assert replace(OPTIONS, aggregation=aggregation, mapping=mapping).networks == networks


def test_unknown_value_is_named_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"smoothing is 'sigma5'.*boxes53, sigma4"):
        replace(OPTIONS, smoothing="sigma5")
    with pytest.raises(InvalidInputError, match=r"group_size is 0; it must be at least 1"):
        replace(OPTIONS, group_size=0)


def test_manifest_of_another_version():
    content = OPTIONS.to_manifest()
    with pytest.raises(ArtifactError, match=r"aggregation is 'mean'.*upgrade"):
        CfmOptions.from_manifest({**content, "aggregation": "mean"})
    del content["token_grid"]
    with pytest.raises(ArtifactError, match=r"lack token_grid; fit the detector again"):
        CfmOptions.from_manifest(content)


def test_a_manifest_has_what_the_detector_reads():
    """In the form of earlier versions: what trained it stands elsewhere."""
    assert OPTIONS.to_manifest() == {
        "rgb_backbone": "dino-vitb8",
        "rgb_size": 224,
        "token_grid": 28,
        "rgb_layers": 4,
        "point_layers": [1, 2, 3],
        "grid_size": 224,
        "num_groups": 1024,
        "group_size": 128,
        "batch_norm": "cloud",
        "skip_near_origin": False,
        "precision": "fp32",
        "aggregation": "product",
        "mapping": "crossmodal",
        "hidden": "published",
        "score_norm": "cfm",
        "smoothing": "boxes53",
        "pixel_stride": 1,
    }


@pytest.mark.parametrize(
    ("changes", "is_exact"),
    [
        ({}, True),
        ({"aggregation": "sum", "smoothing": "sigma4", "batch_norm": "calibrated"}, True),
        ({"pixel_stride": 2}, False),
        ({"precision": "int8"}, False),
    ],
)
def test_what_approximates_says_so(changes: dict[str, Any], is_exact: bool):
    options = replace(OPTIONS, **changes)
    assert options.is_exact == is_exact
    assert (options.map_step, options.score_offset, options.without_effect()) == (0.0, 0.0, {})
