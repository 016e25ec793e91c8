"""What is asked of a fit: keywords as options of the method's family, and names that are
answered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.family import default_method, families, get_family, get_method, method_names
from mmad_fast.methods.fit_request import FitRequest, FitTask, resolve_options, silent
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.options import chosen_options
from mmad_fast.scan import Scan


def options_of(method: str | None = None, **chosen: Any) -> Any:
    return resolve_options(FitRequest.of(method, **chosen))


def test_keywords_go_where_they_belong() -> None:
    request = FitRequest.of(
        "cfm-t",
        rgb_weights="random",
        point_weights=Path("mae.pth"),
        seed=3,
        shots=5,
        unit="mm",
        recipe="none",
        epochs=7,
        num_groups=None,
        mapping=None,
    )
    assert request == FitRequest(
        "cfm-t",
        {"rgb": "random", "point": Path("mae.pth")},
        seed=3,
        shots=5,
        unit="mm",
        recipe="none",
        options={"epochs": 7},
    )
    assert (request.weights_of("rgb"), request.weights_of("point")) == ("random", Path("mae.pth"))
    assert FitRequest.of().weights_of("rgb") == "auto"


def test_what_is_left_open_is_the_methods_own() -> None:
    assert FitRequest.of() == FitRequest() == FitRequest("cfm-s")
    assert default_method() == "cfm-s"
    options = options_of("cfm-s")
    assert (options.rgb_backbone, options.rgb_layers) == ("dino-vitb8", 4)
    assert (options.point_layers, options.num_groups) == ((1, 2, 3), 1024)
    options = options_of("cfm-t", epochs=7, rgb_layers=2)
    assert (options.epochs, options.rgb_layers, options.point_layers) == (7, 2, (0,))


@pytest.mark.parametrize("method", method_names())
def test_every_method_has_options_of_its_family(method: str) -> None:
    family, variant = get_method(method)
    options = options_of(method)
    assert type(options) is family.options
    for name, value in variant.values.items():
        assert getattr(options, name) == value
    assert options.without_effect().keys() <= chosen_options(family.options).keys()
    assert family.options.from_manifest(options.to_manifest()).to_manifest() == (
        options.to_manifest()
    )


def test_text_is_read_as_a_value_of_the_options_type() -> None:
    options = options_of(
        "cfm",
        hidden="big",
        patience="none",
        learning_rate="1e-4",
        point_layers="1,2",
        pixel_stride="4",
        skip_near_origin="yes",
        group_size="32",
    )
    assert (options.hidden, options.patience, options.learning_rate) == ("big", None, 1e-4)
    assert (options.point_layers, options.pixel_stride) == ((1, 2), 4)
    assert (options.skip_near_origin, options.group_size) == (True, 32)


def test_numpy_numbers_and_paths_are_taken() -> None:
    request = FitRequest.of(
        "m3dm",
        rgb_layers=np.int64(4),
        point_layers=(np.int64(1), np.int32(2)),
        rgb_lambda=np.float32(0.5),
        uff=Path("uff.pth"),
        seed=np.uint32(3),
        shots=np.int64(5),
        threshold_quantile=np.float32(0.5),
        rgb_weights=Path("x.pth"),
    )
    options = resolve_options(request)
    numbers = (options.rgb_layers, options.point_layers, options.rgb_lambda, options.uff)
    assert json.dumps(numbers) == '[4, [1, 2], 0.5, "uff.pth"]'
    common = (request.seed, request.shots, request.threshold_quantile)
    assert json.dumps(common) == "[3, 5, 0.5]"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *(("method", value, "there is no method .*; known are cfm") for value in (["a"], "x")),
        *(
            ("threshold_quantile", value, "from 0 to 1")
            for value in ("a", math.nan, -0.1, 1.1, None, True)
        ),
        *(("seed", value, r"integer|in 0\.\.") for value in (-1, None, 2**32, "1")),
        *(("shots", value, "integer|at least 1") for value in (0, 2.5, "5")),
        *(("unit", value, "'m' or 'mm'") for value in (["m"], "inch", None)),
        ("recipe", ["cfm"], "a recipe's name"),
        ("recipe", "cfm3", "no preprocessing recipe 'cfm3'; known are cfm, .*none"),
        ("speed", 3, "one of 'exact', 'fast'"),
        ("speed", "warp", "speed is 'warp'; it must be one of exact, fast, small"),
        ("weights", "random", "a dictionary by branch: rgb, point"),
        ("weights", {"depth": "random"}, "weights of a branch 'depth'; cfm has: rgb, point"),
        *(
            ("weights", {"rgb": value}, "rgb_weights is .*; it must be 'auto', 'random' or a")
            for value in (None, 3, b"auto")
        ),
        *(("options", value, "values by option name") for value in (["blur"], {3: 4}, "a=b")),
    ],
)
def test_a_field_of_the_wrong_type_or_out_of_range_is_named(
    field: str, value: Any, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        FitRequest(**{field: value})
    assert field in str(caught.value)
    with pytest.raises(InvalidInputError, match=words):
        replace(FitRequest(), **{field: value})


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"pixel_stride": 3}, "pixel_stride is 3; it must be one of 1, 2, 4"),
        ({"precision": "int4"}, "precision is 'int4'; it must be one of fp32, int8"),
        ({"rgb_backbone": "vit"}, "rgb_backbone is 'vit'; it must be one of dino-vitb8"),
        ({"batch_norm": "batch"}, "batch_norm is 'batch'; it must be one of cloud, calibrated"),
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
        ({"num_groups": 5000}, "num_groups is 5000; it must be at most 4096"),
        ({"epochs": "all"}, "epochs is 'all'; it must be an integer or none"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"mapping": ["crossmodal"]}, "mapping is .*; it must be one of crossmodal, intramodal"),
    ],
)
def test_an_option_of_the_wrong_type_or_out_of_range_is_named(
    chosen: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        FitRequest.of(rgb_weights="missing.pth", point_weights="missing.pth", **chosen)


@pytest.mark.parametrize(
    "name", ["nonsense", "num_threads", "options", "weights", "banks", "point_patches"]
)
def test_an_unknown_name_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"cfm-s has no option '{name}'; it has") as caught:
        FitRequest.of("cfm-s", **{name: "1"})
    _, has = str(caught.value).split("it has: ")
    own, common = has.split("; and, as every method: ")
    assert own.split(", ") == list(chosen_options(CfmOptions))
    assert common.split(", ") == [
        *("method", "threshold_quantile", "seed", "unit", "missing", "recipe", "speed", "shots"),
        *("rgb_weights", "point_weights"),
    ]


@pytest.mark.parametrize("name", ["method", "shots", "options", "seed", "rgb_weights", "rgb_size"])
def test_what_is_no_option_is_none_by_its_name_either(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"has no option '{name}'"):
        FitRequest(options={name: "1"})


@pytest.mark.parametrize(
    "chosen", [{"epochs": 3}, {"aggregation": "sum"}, {"mapping": "crossmodal"}]
)
def test_an_option_of_another_family_is_refused(chosen: dict[str, Any]) -> None:
    (name,) = chosen
    with pytest.raises(InvalidInputError, match=f"m3dm has no option '{name}'; it has") as caught:
        FitRequest.of("m3dm", **chosen)
    assert "blur" in str(caught.value)
    for absent in ("epochs,", "mapping,", "num_threads"):
        assert absent not in str(caught.value)


def test_speed_is_a_bundle_that_single_options_override() -> None:
    options = options_of("cfm-s", speed="fast", pixel_stride=4)
    assert (options.pixel_stride, options.precision) == (4, "int8")
    options = options_of("cfm-s", speed="fast", precision="fp32")
    assert (options.pixel_stride, options.precision) == (2, "fp32")
    assert options_of("cfm-s", speed="exact") == options_of("cfm-s")
    assert options_of("cfm-s", speed="exact").is_exact


@pytest.mark.parametrize(
    ("method", "speed", "changes"),
    [
        ("cfm-s", "fast", {"pixel_stride": 2, "precision": "int8"}),
        ("cfm-s", "small", {"precision": "int8"}),
        ("m3dm-rgb", "fast", {"precision": "int8"}),
        ("m3dm", "small", {"precision": "int8", "bank_dtype": "float16"}),
    ],
)
def test_fast_is_what_is_faster_and_small_what_is_smaller(
    method: str, speed: str, changes: dict[str, Any]
) -> None:
    options = options_of(method, speed=speed)
    assert options == replace(options_of(method), **changes)
    assert not options.is_exact


def test_every_family_has_the_same_speeds_of_its_own_options() -> None:
    for family in families():
        assert list(family.speeds) == ["exact", "fast", "small"]
        for variant in family.variants:
            for speed in family.speeds:
                options_of(variant.name, speed=speed)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("m3dm-rgb", {"point_layers": (0,)}, r"point_layers is \(0,\), but m3dm-rgb uses no point"),
        ("m3dm-rgb", {"num_groups": 784}, "num_groups is 784, but m3dm-rgb uses no point features"),
        ("m3dm-rgb", {"point_weights": "mae.pth"}, "point_weights is 'mae.pth', but m3dm-rgb uses"),
        ("m3dm-rgb", {"point_weights": Path("a.pth")}, "point_weights is 'a.pth', but m3dm-rgb"),
        ("m3dm-rgb", {"skip_near_origin": True}, "skip_near_origin is True, but"),
        ("m3dm-rgb", {"skip_near_origin": "true"}, "skip_near_origin is 'true', but"),
        ("m3dm-3d", {"rgb_backbone": "dinov2-vits14"}, "but m3dm-3d uses no rgb features"),
        ("m3dm-3d", {"rgb_layers": 8}, "rgb_layers is 8, but m3dm-3d uses no rgb features"),
        ("m3dm-rgb", {"point_patches": "28x28"}, "point_patches changes nothing in m3dm-rgb"),
        ("m3dm-rgb+3d", {"uff": "none"}, "uff changes nothing in m3dm-rgb\\+3d"),
        ("m3dm", {"uff": "none", "uff_schedule": "code"}, "uff_schedule .*uff: none"),
        ("m3dm", {"uff": "none", "uff_updates": "3"}, "uff_updates .*uff: none"),
        ("m3dm-rgb+3d-add", {"dlf_scores": "score_samples"}, "decision: sum"),
        ("m3dm-3d", {"point_lambda": 2}, r"point_lambda .*\(banks: point; decision.*leave it out"),
        ("m3dm-rgb+3d", {"fusion_lambda": 2}, r"fusion_lambda .*\(banks: point, rgb; decision"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    method: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        FitRequest.of(method, **given)


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("weights", ["auto", "random"])
def test_automatic_and_random_weights_may_be_asked_of_every_method(
    method: str, weights: str
) -> None:
    keys = [branch.key for branch in get_method(method)[0].weighted_branches]
    request = FitRequest.of(method, **{f"{key}_weights": weights for key in keys})
    assert keys
    assert request.weights == dict.fromkeys(keys, weights)


@pytest.mark.parametrize("method", ["m3dm-rgb", "m3dm-3d"])
def test_what_several_branches_share_may_be_asked_of_either(method: str) -> None:
    assert options_of(method, precision="int8").precision == "int8"


def test_banks_of_a_method_are_known_before_it_is_fitted() -> None:
    options = options_of("m3dm-fusion", uff="none")
    assert isinstance(options, M3dmOptions)
    assert (options.banks, options.decision, options.uses_uff) == (("fusion",), "single", False)


def test_a_scan_is_prepared_for_the_networks_sizes(
    make_dome: Callable[..., Scan], tmp_path: Path
) -> None:
    request = FitRequest.of("cfm-t", rgb_backbone="dinov2-vits14", recipe="none")
    task = FitTask.of(request, [], tmp_path, silent)
    prepared = task.prepare(make_dome(0))
    assert prepared.rgb.shape == (3, 392, 392)
    assert prepared.grid_size == 224
    small = Scan.from_arrays(np.zeros((8, 96, 3), np.uint8), np.ones((8, 96, 3), np.float32))
    with pytest.raises(InvalidInputError, match="8x96 pixels; at least 32 a side"):
        task.prepare(small)


@pytest.mark.parametrize(("method", "family"), [("cfm-t", "cfm"), ("m3dm-rgb", "m3dm")])
def test_scans_are_prepared_as_the_family_or_the_request_says(
    method: str, family: str, tmp_path: Path
) -> None:
    for recipe, expected in ((None, family), ("none", "none"), ("m3dm", "m3dm")):
        task = FitTask.of(FitRequest.of(method, recipe=recipe), [], tmp_path, silent)
        assert task.recipe.name == expected
    assert FitTask.of(FitRequest(method), [], tmp_path, silent).recipe is get_family(family).recipe


def test_scans_of_files_are_read_as_the_request_says(
    make_dome: Callable[..., Scan], tmp_path: Path
) -> None:
    read = []

    class File:
        name = "dome"

        def load(self, *, unit: str, missing: float | None, with_normals: bool) -> Scan:
            assert not with_normals
            read.append((unit, missing))
            return make_dome(0)

    task = FitTask.of(FitRequest(unit="mm", missing=-1), [], tmp_path, silent)
    np.testing.assert_array_equal(task.load(File()).rgb, make_dome(0).rgb)  # type: ignore[arg-type]
    assert read == [("mm", -1.0)]


def test_a_mark_of_one_scan_is_missing_in_those_after_it(
    make_dome: Callable[..., Scan], tmp_path: Path
) -> None:
    """The second has it at 3 pixels, too few to be found there."""
    first, second = make_dome(0), make_dome(1)
    scans = []
    for scan, rows in ((first, 40), (second, 1)):
        xyz = scan.xyz.copy()
        xyz[50 : 50 + rows, 50:53] = -9.5
        scans.append(Scan.from_arrays(scan.rgb, xyz, name=scan.name))
    assert (scans[1].xyz == -9.5).sum() == 9
    task = FitTask.of(FitRequest(), scans, tmp_path, silent)
    for scan in (*scans, *scans):
        assert not (task.load(scan).xyz == -9.5).any()
    (value,) = task.missing.record().values
    assert value.point == (-9.5, -9.5, -9.5)
    assert value.num_scans == 1


@pytest.mark.parametrize("missing", ["-1", float("nan"), True])
def test_a_missing_value_must_be_a_number(missing: Any) -> None:
    with pytest.raises(InvalidInputError, match="missing is .*must be the number that stands"):
        FitRequest(missing=missing)
