from __future__ import annotations

import json
from typing import Any

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.m3dm.parameters import M3dmParameters, reweighting_constants


def parameters(**changes: Any) -> M3dmParameters:
    values = {
        "rgb_backbone": "dinov2-vits14",
        "rgb_size": 56,
        "token_grid": 4,
        "rgb_layers": 1,
        "point_layers": (3, 7, 11),
    }
    return M3dmParameters(**{**values, **changes})


def test_they_survive_a_manifest() -> None:
    given = parameters(
        banks=("point", "rgb"),
        decision="svm",
        bank_scales={"point": (0.25, 1.5), "rgb": (0.25, 1.5)},
        score_weights={"point": -0.1, "rgb": 2.0},
        map_weights={"point": 1.0, "rgb": 0.1},
        score_offset=-3.5,
        distance_divisor=1000.0,
        uses_uff=False,
    )
    read = M3dmParameters.from_dict(json.loads(json.dumps(given.to_dict())))
    assert read == given
    assert read.bank_scales["rgb"] == (0.25, 1.5)
    assert read.point_layers == (3, 7, 11)


def test_what_is_left_out_neither_scales_nor_weighs() -> None:
    filled = parameters(banks=("point", "fusion"), score_weights={"fusion": 3.0})
    assert filled.bank_scales == {"point": (0.0, 1.0), "fusion": (0.0, 1.0)}
    assert filled.score_weights == {"point": 1.0, "fusion": 3.0}
    assert filled.map_weights == {"point": 1.0, "fusion": 1.0}


@pytest.mark.parametrize(
    ("banks", "rgb", "points", "fuses"),
    [
        (("rgb",), True, False, False),
        (("point",), False, True, False),
        (("fusion",), True, True, True),
        (("point", "rgb"), True, True, False),
    ],
)
def test_what_the_banks_read(banks: tuple[str, ...], rgb: bool, points: bool, fuses: bool) -> None:
    read = parameters(banks=banks)
    assert (read.reads_rgb, read.reads_points, read.fuses) == (rgb, points, fuses)


def test_only_the_exact_one_says_so() -> None:
    assert parameters().is_exact
    assert not parameters(bank_dtype="float16").is_exact
    assert not parameters(precision="int8").is_exact


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"banks": ()}, r"banks is \(\).*one or more of point, rgb, fusion"),
        ({"banks": ("rgb", "point")}, "in this order"),
        ({"banks": ("rgb", "depth")}, "one or more of point, rgb, fusion"),
        ({"decision": "single"}, "decision is 'single'.*one bank"),
        ({"decision": "vote"}, "decision is 'vote'.*single, sum, svm"),
        ({"point_patches": "14x14"}, "point_patches is '14x14'.*56x56, 28x28, groups"),
        ({"point_patches": "groups"}, "fusion bank.*point_patches='56x56'"),
        ({"token_grid": 24}, "56x56 patches are no multiple of the 24x24"),
        ({"reweighting": "eq6"}, "code, paper, none"),
        ({"blur": "gauss"}, "pil8bit, float"),
        ({"bank_dtype": "int8"}, "float32, float16"),
        ({"bank_scales": {"depth": (0.0, 1.0)}}, "bank_scales has 'depth'; the banks are point"),
        ({"bank_scales": {"rgb": (0.0, 0.0)}}, r"bank_scales\['rgb'\]\[1\] is 0.0.*above 0"),
        ({"score_weights": {"rgb": float("nan")}}, r"score_weights\['rgb'\] is nan.*finite"),
        ({"map_offset": float("inf")}, "map_offset is inf"),
        ({"distance_divisor": 0.0}, "distance_divisor is 0.0.*above 0"),
    ],
)
def test_refusals_say_what_is_needed(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        parameters(**changes)


def test_a_manifest_with_an_unknown_value_is_an_artifact_error() -> None:
    content = {**parameters().to_dict(), "blur": "box"}
    with pytest.raises(ArtifactError, match="blur is 'box'.*upgrade"):
        M3dmParameters.from_dict(content)


@pytest.mark.parametrize(
    ("banks", "reweighting", "constants"),
    [
        (("rgb",), "code", (1e-5, 1.0)),
        (("point",), "code", (1e-5, 1.0)),
        (("fusion",), "code", (0.0, 1.0)),
        (("point", "rgb"), "code", (0.0, 1000.0)),
        (("point", "rgb", "fusion"), "code", (0.0, 1.0)),
        (("point", "rgb"), "paper", (0.0, 1.0)),
        (("rgb",), "none", (0.0, 1.0)),
    ],
)
def test_constants_of_the_public_code(
    banks: tuple[str, ...], reweighting: str, constants: tuple[float, float]
) -> None:
    assert reweighting_constants(banks, reweighting) == constants
