from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.m3dm.options import M3dmOptions, reweighting_constants


def parameters(**changes: Any) -> M3dmOptions:
    values = {
        "rgb_backbone": "dinov2-vits14",
        "rgb_size": 56,
        "token_grid": 4,
        "rgb_layers": 1,
        "point_layers": (3, 7, 11),
    }
    return M3dmOptions(**{**values, **changes})


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
    read = M3dmOptions.from_manifest(json.loads(json.dumps(given.to_manifest())))
    assert read == given
    assert read.bank_scales["rgb"] == (0.25, 1.5)
    assert read.point_layers == (3, 7, 11)


def test_a_manifest_has_what_the_detector_reads_and_no_more() -> None:
    content = parameters(coreset="paper", rgb_lambda=0.5, uff_updates=7).to_manifest()
    assert not {"coreset", "rgb_lambda", "uff", "uff_updates", "dlf_schedule"} & set(content)
    assert {"point_patches", "bank_dtype", "banks", "score_weights", "rgb_size"} <= set(content)
    lacking = {name: content[name] for name in content if name not in ("blur", "banks")}
    with pytest.raises(ArtifactError, match="parameters lack blur, banks; fit the detector again"):
        M3dmOptions.from_manifest(lacking)


def test_a_manifest_of_earlier_versions_is_read() -> None:
    content = {**parameters().to_manifest(), "precision": "float32"}
    assert M3dmOptions.from_manifest(content) == parameters(precision="fp32")


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
    ("speed", "precision", "bank_dtype"),
    [("exact", "fp32", "float32"), ("fast", "int8", "float32"), ("small", "int8", "float16")],
)
def test_speeds(speed: str, precision: str, bank_dtype: str) -> None:
    """Banks of float16 are smaller, not faster."""
    options = resolve_options(FitRequest(method="m3dm", speed=speed))
    assert isinstance(options, M3dmOptions)
    assert (options.precision, options.bank_dtype) == (precision, bank_dtype)
    assert options.is_exact == (speed == "exact")
    changed = FitRequest(method="m3dm", speed=speed, options={"bank_dtype": "float16"})
    assert resolve_options(changed) == replace(options, bank_dtype="float16")


@pytest.mark.parametrize(
    ("method", "asked", "idle"),
    [
        ("m3dm-rgb", {}, "rgb_lambda"),
        ("m3dm-rgb", {}, "point_patches"),
        ("m3dm-rgb", {}, "dlf_schedule"),
        ("m3dm-rgb+3d", {}, "fusion_lambda"),
        ("m3dm-rgb+3d", {}, "uff"),
        ("m3dm-rgb+3d", {}, "uff_updates"),
        ("m3dm-rgb+3d-add", {}, "dlf_scores"),
        ("m3dm", {"uff": "none"}, "uff_pairing"),
        ("m3dm", {"uff": "none"}, "uff_updates"),
    ],
)
def test_what_changes_nothing_is_refused(method: str, asked: dict[str, Any], idle: str) -> None:
    used = {
        **{"rgb_lambda": 0.5, "fusion_lambda": 0.5, "point_patches": "28x28"},
        **{"dlf_schedule": "paper", "dlf_scores": "decision_function"},
        **{"uff": "none", "uff_pairing": "published_dump", "uff_updates": 7},
    }
    words = f"{idle} changes nothing in {re.escape(method)} \\(banks: .*; uff: none\\); leave it"
    with pytest.raises(InvalidInputError, match=words):
        FitRequest(method=method, options={**asked, idle: used[idle]})
    FitRequest(method="m3dm", options={idle: used[idle]})


def test_constants_follow_from_the_options() -> None:
    options = parameters(banks=("point", "rgb"), rgb_lambda=0.5).with_constants()
    assert (options.rgb_size, options.token_grid, options.uses_uff) == (392, 28, False)
    assert options.score_weights == options.map_weights == {"point": 1.0, "rgb": 0.5}
    assert (options.weight_epsilon, options.distance_divisor) == (0.0, 1000.0)
    alone = parameters(banks=("rgb",), decision="single", rgb_lambda=0.5).with_constants()
    assert alone.score_weights == alone.map_weights == {"rgb": 1.0}
    assert alone.weight_epsilon == 1e-5
    assert parameters().with_constants().uses_uff
    assert not parameters(uff="none").with_constants().uses_uff


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
    content = {**parameters().to_manifest(), "blur": "box"}
    with pytest.raises(ArtifactError, match="blur is 'box'.*upgrade"):
        M3dmOptions.from_manifest(content)


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
