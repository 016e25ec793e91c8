"""Under which name the papers have a detector of this family, so that its figures stand beside."""

from __future__ import annotations

from typing import Any

import pytest

from mmad_fast.measure.configuration import (
    configuration_of,
    describe_configuration,
    published_name,
)
from mmad_fast.measure.published import EYECANDIES, published_beside, published_for
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.mmrd.family import _ABLATIONS


def own_of(method: str) -> dict[str, Any]:
    """What a row of the method holds where nothing was chosen."""
    return configuration_of(resolve_options(FitRequest(method=method)).to_manifest())


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("mmrd", {}, "MMRD (RGB + depth)"),
        ("mmrd", {"auxiliary": "normals"}, "MMRD (RGB + normals)"),
        ("mmrd", {"auxiliary": "both"}, "MMRD (RGB + depth + normals)"),
        ("mmrd", {"auxiliary": "normals", "fusion": "csa"}, "MMRD (channel self-attention)"),
        (
            "mmrd",
            {"auxiliary": "normals", "prototypes": [100, 50, 10]},
            "MMRD (100, 50, 10 prototypes)",
        ),
        ("mmrd-aux", {"auxiliary": "normals"}, "MMRD (normals only)"),
        ("trd", {"auxiliary": "depth"}, "TRD (RGB + depth)"),
    ],
)
def test_the_pictures_and_one_ablation_make_the_name(
    method: str, changes: dict[str, Any], expected: str
) -> None:
    assert published_name(method, own_of(method) | changes) == expected
    assert published_beside(expected, "mean")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("mmrd", {"fusion": "csa"}),  # the ablations are of normals
        ("mmrd", {"auxiliary": "normals", "fusion": "csa", "interaction": False}),
        ("mmrd", {"auxiliary": "normals", "prototypes": [7, 7, 7]}),
        ("mmrd", {"rgb_backbone": "dinov2-vits14"}),
        ("trd", {"adapts": "both"}),
        ("rd", {"student_width": 0.25}),
    ],
)
def test_what_no_paper_prints_has_no_name(method: str, changes: dict[str, Any]) -> None:
    assert published_name(method, own_of(method) | changes) is None


@pytest.mark.parametrize(("option", "values"), _ABLATIONS.items())
def test_every_ablation_is_printed(option: str, values: dict[Any, str]) -> None:
    for value, name in values.items():
        assert published_for(f"MMRD ({name})", dataset=EYECANDIES), name
        resolve_options(FitRequest(method="mmrd", options={option: value}))


def test_prototypes_as_json_holds_them() -> None:
    found = own_of("mmrd") | {"prototypes": [50, 50, 50]}
    assert describe_configuration("mmrd", found) == ""
    changed = describe_configuration("mmrd", found | {"prototypes": [10, 50, 100]})
    assert changed == "prototypes (10, 50, 100)"
