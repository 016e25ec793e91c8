"""Which detector a row is about: what differs from the method's own, and where it is published."""

from __future__ import annotations

from typing import Any

import pytest

from mmad_fast.measure.configuration import (
    configuration_of,
    describe_configuration,
    describe_method,
    is_variants_own,
    published_name,
)
from mmad_fast.measure.published import published_for
from mmad_fast.methods.family import get_family, get_method, method_names
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.options import option_default, option_fields

SWITCHES: dict[str, dict[str, Any]] = {
    "cfm": {
        **{"num_groups": 1024, "group_size": 128, "batch_norm": "cloud", "precision": "fp32"},
        **{"aggregation": "product", "mapping": "crossmodal", "pixel_stride": 1},
        **{"normals_sigma": 1.2, "fpfh_normal_neighbors": 30, "fpfh_neighbors": 100},
        **{"fpfh_normal_radius": 0.10, "fpfh_radius": 0.25, "fpfh_orientation": "open3d"},
    },
    "m3dm": {
        **{"num_groups": 1024, "group_size": 128, "batch_norm": "cloud", "precision": "fp32"},
        **{"point_patches": "56x56", "uses_uff": True, "bank_norm": "published"},
        **{"uff_pairing": "aligned", "uff_schedule": "quick", "coreset": "code"},
        **{"reweighting": "code", "blur": "pil8bit", "bank_dtype": "float32"},
        **{"dlf_scores": "score_samples", "dlf_schedule": "code"},
        **{"point_lambda": 1.0, "rgb_lambda": 0.1, "fusion_lambda": 1.0},
    },
    "mmrd": {
        **{
            "auxiliary": "depth",
            "normals_from": "points",
            "sobel_size": 5,
            "depth_axis": "z",
            "precision": "fp32",
        },
        **{"adapts": "both", "adaptation_passes": 3, "fusion": "sum"},
        **{"prototypes": (50, 50, 50), "prototype_init": "samples", "interaction": True},
        **{"attention_reduction": 16, "bottleneck_input": "fused", "prior_weight": 0.1},
        **{"student_width": 1.0, "smoothing_sigma": 4.0, "schedule": "quick", "epochs": None},
    },
}
"""Per family the options that change accuracy or speed, each with the method's own value."""
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


def own_of(method: str) -> dict[str, Any]:
    """What a row of the method holds where its name says all."""
    _, variant = get_method(method)
    return OWN | {"uses_uff": "fusion" in variant.values["banks"]}


@pytest.mark.parametrize("name", SWITCHES)
def test_rows_hold_what_changes_accuracy_or_speed(name: str) -> None:
    family = get_family(name)
    options = family.options
    networks = {option for branch in family.weighted_branches for option in branch.identity}
    held = [option for option, facts in option_fields(options).items() if facts.in_rows]
    own = {option: option_default(options, option) for option in held if option not in networks}
    assert own == SWITCHES[name]
    assert set(held) == {*SWITCHES[name], *networks}


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("precision", ["fp32", "float32"])
def test_what_a_fit_takes_unasked_is_the_methods_own(method: str, precision: str) -> None:
    """Rows of earlier versions say float32."""
    options = resolve_options(FitRequest(method=method))
    found = configuration_of({**options.to_manifest(), "precision": precision})
    assert found["precision"] == precision
    assert is_variants_own(method, found)
    assert describe_configuration(method, found) == ""
    family, variant = get_method(method)
    has_precision = any(
        "precision" in option_fields(b.options) for b in family.branches_of(variant)
    )
    told = describe_method(method, found | {"precision": "int8"})
    assert told == (f"{method} (precision int8)" if has_precision else method)
    name = published_name(method, found)
    assert name == variant.published
    assert published_name(method, found, 5) == (None if name is None else f"{name} (5-shot)")
    assert any(one.published and published_for(one.published) for one in family.variants)


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
            "bank_dtype float16; coreset paper",
        ),
        ("m3dm-rgb+3d", {"dlf_scores": "decision_function"}, "dlf_scores decision_function"),
        ("m3dm-rgb+3d-add", {"dlf_scores": "decision_function"}, ""),
    ],
)
def test_what_differs_from_the_methods_own(
    method: str, changes: dict[str, Any], expected: str
) -> None:
    assert describe_configuration(method, own_of(method) | changes) == expected
    assert describe_method(method, own_of(method) | changes, 5).endswith(", 5-shot")


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
    assert published_name(method, own_of(method) | changes, shots) == expected
    assert published_for(expected)


def test_other_backbones_are_not_published() -> None:
    assert published_name("m3dm", OWN | {"rgb_backbone": "dinov2-vits14"}) is None
    assert published_name("unheard-of", OWN) is None
    for name in method_names():
        assert is_variants_own(name, None) is False
