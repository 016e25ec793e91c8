"""Which detector a row is about: what differs from the method's own, and where it is published."""

from __future__ import annotations

from typing import Any

import pytest

from mmad_fast.measure.configuration import (
    _OF_FAMILY,
    configuration_of,
    describe_configuration,
    describe_method,
    is_variants_own,
    published_name,
)
from mmad_fast.measure.published import published_for
from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.variants import FAMILY_DETECTORS, VARIANTS

OWN: dict[str, Any] = {
    "rgb_backbone": "dino-vitb8",
    "rgb_layers": 12,
    "point_layers": [3, 7, 11],
    "num_groups": 1024,
    "group_size": 128,
    "point_patches": "56x56",
    "uses_uff": True,
    "bank_dtype": "float32",
}


def test_every_family_has_its_switches() -> None:
    assert set(_OF_FAMILY) == set(FAMILY_DETECTORS)
    defaults = {name: getattr(CfmParameters, name) for name in _OF_FAMILY["cfm"]}
    assert defaults == _OF_FAMILY["cfm"]


def test_the_own_values_of_m3dm_are_what_a_fit_takes_unasked() -> None:
    pytest.importorskip("torch", reason="the options of a fit come with it")
    from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions

    own = {name: value for name, value in _OF_FAMILY["m3dm"].items() if name != "uses_uff"}
    assert {name: getattr(M3dmFitOptions, name) for name in own} == own


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("m3dm", {}, ""),
        ("m3dm", {"rgb_layers": 8}, "dino-vitb8 8 layers, blocks 3, 7, 11"),
        ("m3dm-rgb", {"rgb_layers": 8, "point_layers": [0]}, "dino-vitb8 8 layers"),
        ("m3dm-rgb", {"point_layers": [0], "uses_uff": False}, ""),
        ("m3dm-3d", {"rgb_backbone": "dinov2-vits14"}, ""),
        ("m3dm-3d", {"point_layers": [0]}, "blocks 0"),
        ("m3dm-fusion", {"uses_uff": False}, "uses_uff False"),
        (
            "m3dm",
            {"bank_dtype": "float16", "coreset": "paper"},
            "coreset paper; bank_dtype float16",
        ),
        ("m3dm-rgb+3d", {"dlf_scores": "decision_function"}, "dlf_scores decision_function"),
        ("m3dm-rgb+3d-add", {"dlf_scores": "decision_function"}, ""),
    ],
)
def test_what_differs_from_the_methods_own(
    method: str, changes: dict[str, Any], expected: str
) -> None:
    assert describe_configuration(method, OWN | changes) == expected
    assert describe_method(method, OWN | changes, 5).endswith(", 5-shot")


def test_a_row_holds_what_the_fit_recorded_too() -> None:
    found = configuration_of({**OWN, "rgb_size": 224, "training": {"coreset": "paper", "loss": 1}})
    assert found == OWN | {"coreset": "paper"}


@pytest.mark.parametrize(
    ("method", "changes", "shots", "expected"),
    [
        ("m3dm", {}, None, "M3DM"),
        ("m3dm", {}, 5, "M3DM (5-shot)"),
        ("m3dm-rgb", {"point_layers": [0]}, None, "M3DM (RGB only)"),
        ("m3dm-3d", {}, None, "M3DM (3D only)"),
        ("m3dm-3d", {"group_size": 64, "num_groups": 784, "point_patches": "groups"}, None,
         "M3DM (3D only, 64 points/784 groups, point groups)"),
        ("m3dm-3d", {"point_patches": "28x28"}, None,
         "M3DM (3D only, 128 points/1024 groups, 28x28 patches)"),
        ("m3dm-fusion", {"uses_uff": False}, None, "M3DM (one fused bank, without UFF)"),
    ],
)  # fmt: skip
def test_where_it_is_published(
    method: str, changes: dict[str, Any], shots: int | None, expected: str
) -> None:
    assert published_name(method, OWN | changes, shots) == expected
    assert published_for(expected)


def test_other_backbones_are_not_published() -> None:
    assert published_name("m3dm", OWN | {"rgb_backbone": "dinov2-vits14"}) is None
    assert published_name("unheard-of", OWN) is None
    for name in VARIANTS:
        assert is_variants_own(name, None) is False
