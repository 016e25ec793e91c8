"""The manifest's record of a CFM detector."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.cfm.parameters import CfmParameters

PARAMETERS = CfmParameters(
    rgb_backbone="dino-vitb8", rgb_size=224, token_grid=28, rgb_layers=4, point_layers=(1, 2, 3)
)


def test_json_round_trip_ignores_other_keys():
    content = json.loads(json.dumps({**PARAMETERS.to_dict(), "training": {"epochs": 3}}))
    assert CfmParameters.from_dict(content) == PARAMETERS


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
    assert replace(PARAMETERS, aggregation=aggregation, mapping=mapping).networks == networks


def test_unknown_value_is_named_with_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"smoothing is 'sigma5'.*boxes53, sigma4"):
        replace(PARAMETERS, smoothing="sigma5")
    with pytest.raises(InvalidInputError, match=r"group_size is 0; it must be at least 1"):
        replace(PARAMETERS, group_size=0)


def test_manifest_of_another_version():
    content = PARAMETERS.to_dict()
    with pytest.raises(ArtifactError, match=r"aggregation is 'mean'.*upgrade"):
        CfmParameters.from_dict({**content, "aggregation": "mean"})
    del content["token_grid"]
    with pytest.raises(ArtifactError, match=r"lack token_grid; fit the detector again"):
        CfmParameters.from_dict(content)
