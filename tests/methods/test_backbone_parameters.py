"""The part of the manifest's parameters that all methods share, as a method extends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.backbone_parameters import BackboneParameters


@dataclass(frozen=True)
class Extended(BackboneParameters):
    KNOWN_VALUES: ClassVar = {**BackboneParameters.KNOWN_VALUES, "decision": ("sum", "svm")}

    names: tuple[str, ...] = ("point", "rgb")
    decision: str = "svm"
    offset: float = 0.0
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)


PARAMETERS = Extended(
    rgb_backbone="dino-vitb8",
    rgb_size=224,
    token_grid=28,
    rgb_layers=12,
    point_layers=(3, 7, 11),
    scales={"point": (0.5, 2.0), "rgb": (0.0, 1.0)},
)


def test_json_round_trip_of_a_methods_own_parameters():
    content = json.loads(json.dumps({**PARAMETERS.to_dict(), "training": {"epochs": 3}}))
    assert content["scales"] == {"point": [0.5, 2.0], "rgb": [0.0, 1.0]}
    found = Extended.from_dict(content)
    assert found == PARAMETERS
    assert type(found.point_layers) is type(found.scales["point"]) is tuple


def test_whole_numbers_become_floats_where_floats_are_meant():
    content = {**PARAMETERS.to_dict(), "offset": 1, "scales": {"rgb": [0, 1]}}
    found = Extended.from_dict(content)
    assert isinstance(found.offset, float)
    assert all(isinstance(value, float) for value in found.scales["rgb"])


def test_choices_of_both_are_checked():
    with pytest.raises(InvalidInputError, match=r"decision is 'mean'.*sum, svm"):
        replace(PARAMETERS, decision="mean")
    with pytest.raises(InvalidInputError, match=r"batch_norm is 'batch'.*cloud, calibrated"):
        replace(PARAMETERS, batch_norm="batch")
    with pytest.raises(InvalidInputError, match="num_groups is 0; it must be at least 1"):
        replace(PARAMETERS, num_groups=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("point_layers", 3),
        ("point_layers", ["a"]),
        ("rgb_size", "224"),
        ("rgb_size", 224.5),
        ("rgb_size", True),
        ("offset", None),
        ("scales", [1.0]),
        ("scales", {"rgb": "01"}),
    ],
)
def test_a_value_of_another_kind_is_named(name: str, value: object):
    with pytest.raises(ArtifactError, match=f"parameter that this version cannot run: {name} is"):
        Extended.from_dict({**PARAMETERS.to_dict(), name: value})


def test_missing_parameters_are_named():
    content = PARAMETERS.to_dict()
    del content["offset"], content["token_grid"]
    with pytest.raises(ArtifactError, match="lack token_grid, offset; fit the detector again"):
        Extended.from_dict(content)
