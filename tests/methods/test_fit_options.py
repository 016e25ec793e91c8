"""Options of a family: text as values of their types, and names that are answered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.fit_options import options_of, own_options
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.methods.variants import VARIANTS

SPEEDS = {"exact": {}, "fast": {"dtype": "float16", "count": 3}}


@dataclass(frozen=True)
class Options:
    """Of a family that has neither epochs nor the other options of CFM."""

    method: str
    rgb_weights: str | Path = "auto"
    point_weights: str | Path = "auto"
    threshold_quantile: float = 0.99
    seed: int = 0
    unit: str = "m"
    num_groups: int = 1024
    dtype: Literal["float32", "float16"] = "float32"
    count: int = 1
    share: float | None = 0.5
    is_new: bool = False
    layers: tuple[int, ...] = (1,)
    source: str | Path = "train"
    num_threads: int | None = None


def of(**options: object) -> Options:
    return options_of(Options, FitRequest(options=options), SPEEDS)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("dtype", "float16", "float16"),
        ("count", "7", 7),
        ("count", 7, 7),
        ("count", 7.0, 7),
        ("share", "1e-3", 0.001),
        ("share", 1, 1.0),
        ("share", "none", None),
        ("is_new", "True", True),
        ("is_new", "no", False),
        ("is_new", True, True),
        ("layers", "3, 7,11", (3, 7, 11)),
        ("layers", [2], (2,)),
        ("source", "none", "none"),
        ("source", Path("uff.pth"), "uff.pth"),
    ],
)
def test_a_value_is_read_as_one_of_the_type(name: str, given: object, expected: object) -> None:
    found = getattr(of(**{name: given}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dtype", "int4", "one of float32, float16"),
        ("count", "many", "an integer"),
        ("count", "1.5", "an integer"),
        ("count", 1.5, "an integer"),
        ("count", True, "an integer"),
        ("count", float("inf"), "an integer"),
        ("count", None, "an integer"),
        ("share", "nan", "a number or none"),
        ("share", "much", "a number or none"),
        ("is_new", "perhaps", "true or false"),
        ("is_new", 1, "true or false"),
        ("layers", "1,x", "numbers with commas"),
        ("layers", "", "numbers with commas"),
        ("source", 3, "text"),
    ],
)
def test_a_value_of_another_type_is_answered(name: str, given: object, words: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is .*; it must be {words}"):
        of(**{name: given})


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="cfm-s has no option 'nonsense'") as caught:
        of(nonsense="1")
    assert "num_groups" in str(caught.value)
    assert "dtype, count, share, is_new, layers, source" in str(caught.value)
    for absent in ("epochs", "num_threads", "speed"):
        assert absent not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"epochs": 3}, {"aggregation": "sum"}, {"mapping": "crossmodal"}]
)
def test_an_option_of_another_family_is_refused(options: dict[str, object]) -> None:
    request = replace(FitRequest(), **options)
    with pytest.raises(InvalidInputError, match=f"has no option '{next(iter(options))}'; it has"):
        options_of(Options, request, SPEEDS)


@pytest.mark.parametrize(
    ("name", "flag"), [("num_groups", "--num-groups"), ("threshold_quantile", "--quantile")]
)
def test_an_option_of_every_method_has_a_flag_of_its_own(name: str, flag: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is an option of every method.* {flag},"):
        of(**{name: "1"})


@pytest.mark.parametrize("name", ["num_threads", "method", "shots", "options"])
def test_what_is_no_option_cannot_be_set(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"has no option '{name}'"):
        of(**{name: "1"})


def test_what_is_set_wins_over_the_speed() -> None:
    request = FitRequest(speed="fast", options={"count": "9"}, num_groups=784)
    found = options_of(Options, request, SPEEDS)
    assert (found.dtype, found.count, found.num_groups, found.share) == ("float16", 9, 784, 0.5)
    with pytest.raises(InvalidInputError, match="speed is 'warp'; it must be one of exact, fast"):
        options_of(Options, replace(request, speed="warp"), SPEEDS)


def test_the_options_of_cfm_that_no_flag_stands_for() -> None:
    fit_options = pytest.importorskip("mmad_fast.methods.cfm.fit_options")
    assert set(own_options(fit_options.CfmFitOptions)) == {
        *("skip_near_origin", "hidden", "score_norm", "smoothing", "pixels_per_step"),
        *("learning_rate", "schedule", "batch_scans", "patience"),
    }
    request = FitRequest(options={"hidden": "big", "patience": "none", "learning_rate": "1e-4"})
    options = fit_options.CfmFitOptions.of(request)
    assert (options.hidden, options.patience, options.learning_rate) == ("big", None, 1e-4)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("m3dm-rgb", {"point_layers": (0,)}, r"point_layers is \(0,\), but m3dm-rgb has no point"),
        ("m3dm-rgb", {"num_groups": 784}, "num_groups is 784, but m3dm-rgb has no point backbone"),
        ("m3dm-rgb", {"point_weights": "mae.pth"}, "point_weights is 'mae.pth', but m3dm-rgb has"),
        ("m3dm-rgb", {"options": {"skip_near_origin": "true"}}, "skip_near_origin is True, but"),
        ("m3dm-3d", {"rgb_backbone": "dinov2-vits14"}, "but m3dm-3d has no rgb backbone; leave it"),
        ("m3dm-3d", {"rgb_layers": 8}, "rgb_layers is 8, but m3dm-3d has no rgb backbone"),
        ("m3dm-rgb", {"options": {"point_patches": "28x28"}}, "point_patches changes nothing in"),
        ("m3dm-rgb+3d", {"options": {"uff": "none"}}, "uff changes nothing in m3dm-rgb\\+3d"),
        ("m3dm", {"options": {"uff": "none", "uff_schedule": "code"}}, "uff_schedule .*uff: none"),
        ("m3dm-rgb+3d-add", {"options": {"dlf_scores": "score_samples"}}, "decision: sum"),
        ("m3dm-3d", {"options": {"point_lambda": 2}}, r"point_lambda .*\(banks: point; decision"),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    method: str, given: dict[str, Any], words: str
) -> None:
    pytest.importorskip("torch", reason="the options of a fit come with it")
    from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions

    with pytest.raises(InvalidInputError, match=words):
        M3dmFitOptions.of(FitRequest(method=method, **given))


@pytest.mark.parametrize("method", [name for name in VARIANTS if name.startswith("m3dm")])
def test_random_weights_may_be_asked_of_every_method(method: str) -> None:
    pytest.importorskip("torch", reason="the options of a fit come with it")
    from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions

    M3dmFitOptions.of(FitRequest(method=method, rgb_weights="random", point_weights="random"))
