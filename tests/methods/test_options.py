"""A family's options: values of their types, what rows, flags and manifests are derived from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.family import families
from mmad_fast.methods.options import (
    MethodOptions,
    chosen_options,
    constant,
    option,
    option_default,
    option_fields,
    option_type,
    read_option,
    todays_value,
)


@dataclass(frozen=True)
class Kinds(MethodOptions):
    """An option of every kind."""

    dtype: Literal["float32", "float16"] = option("float32", "Of the rows.", in_rows=True)
    stride: Literal[1, 2, 4] = option(1, "Of the pixels.")
    kind: str = option("a", "A choice of a table.", choices=("a", "b"))
    count: int = option(1, "How many.", minimum=1, maximum=9)
    share: float | None = option(0.5, "Which part.")
    is_new: bool = option(False, "Whether it is.")
    layers: tuple[int, ...] = option((1,), "Which layers.", minimum=0)
    source: str = option("train", "Where from.", fit_only=True)
    fitted: float = constant(0.0)


@dataclass(frozen=True)
class Extended(VitTokenOptions, PointGroupOptions):
    """Options of branches as a family extends them."""

    names: tuple[str, ...] = constant(("point", "rgb"))
    decision: Literal["sum", "svm"] = constant("svm")
    offset: float = constant(0.0)
    scales: Mapping[str, tuple[float, float]] = constant(default_factory=dict)
    steps: int | None = option(None, "Of the training.", minimum=1, fit_only=True)


OPTIONS = Extended(point_layers=(1, 2), scales={"point": (0.5, 2.0), "rgb": (0.0, 1.0)}, steps=3)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("dtype", "float16", "float16"),
        ("stride", "2", 2),
        ("stride", np.int64(4), 4),
        ("kind", "b", "b"),
        ("count", "7", 7),
        ("count", 7, 7),
        ("count", 7.0, 7),
        ("count", np.int64(7), 7),
        ("share", "1e-3", 0.001),
        ("share", 1, 1.0),
        ("share", np.float32(0.5), 0.5),
        ("share", "none", None),
        ("share", None, None),
        ("is_new", "True", True),
        ("is_new", "no", False),
        ("is_new", True, True),
        ("is_new", np.bool_(True), True),
        ("layers", "3, 7,11", (3, 7, 11)),
        ("layers", [2], (2,)),
        ("layers", range(2), (0, 1)),
        ("layers", (np.int64(3),), (3,)),
        ("source", "none", "none"),
        ("source", Path("uff.pth"), "uff.pth"),
    ],
)
def test_a_value_is_read_as_one_of_the_type(name: str, given: Any, expected: Any) -> None:
    found = read_option(Kinds, name, given)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, tuple):
        assert all(type(number) is int for number in found)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dtype", "int4", "one of float32, float16"),
        ("stride", "3", "one of 1, 2, 4"),
        ("stride", True, "one of 1, 2, 4"),
        ("kind", "c", "one of a, b"),
        ("kind", 5, "one of a, b"),
        ("kind", ["a"], "one of a, b"),
        ("count", "many", "an integer"),
        ("count", "1.5", "an integer"),
        ("count", 1.5, "an integer"),
        ("count", True, "an integer"),
        ("count", float("inf"), "an integer"),
        ("count", None, "an integer"),
        ("count", "0", "at least 1"),
        ("count", 10, "at most 9"),
        ("share", "nan", "a finite number or none"),
        ("share", "much", "a finite number or none"),
        ("is_new", "perhaps", "true or false"),
        ("is_new", 1, "true or false"),
        ("layers", "1,x", "one or more numbers with commas"),
        ("layers", "", "one or more numbers with commas"),
        ("layers", 3, "one or more numbers with commas"),
        ("layers", (), "one or more numbers with commas"),
        ("layers", (1.5,), "one or more numbers with commas"),
        ("layers", "1,-1", "at least 0"),
        ("source", 3, "text"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_answered(
    name: str, given: Any, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"{name} is .*; it must be {words}"):
        read_option(Kinds, name, given)


def test_options_say_what_they_take() -> None:
    assert {name: option_type(Kinds, name) for name in chosen_options(Kinds)} == {
        "dtype": "one of float32, float16",
        "stride": "one of 1, 2, 4",
        "kind": "one of a, b",
        "count": "an integer",
        "share": "a finite number or none",
        "is_new": "true or false",
        "layers": "one or more numbers with commas, e.g. 1,2,3",
        "source": "text",
    }
    assert (option_default(Kinds, "count"), option_default(Kinds, "layers")) == (1, (1,))
    facts = option_fields(Kinds)
    assert list(facts) == [one.name for one in fields(Kinds)]
    assert facts["stride"].choices == (1, 2, 4)
    assert (facts["count"].minimum, facts["count"].maximum) == (1, 9)
    assert [name for name, fact in facts.items() if fact.in_rows] == ["dtype"]
    assert [name for name, fact in facts.items() if fact.help is None] == [
        *("rgb_size", "grid_size", "fitted"),
    ]


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_defaults_are_of_the_options_own_type(family: Any) -> None:
    """So that a flag may show what it stands for."""
    for name in chosen_options(family.options):
        default = option_default(family.options, name)
        found = read_option(family.options, name, default)
        assert (found, type(found)) == (default, type(default)), name


def test_json_round_trip_of_what_a_detector_reads() -> None:
    content = json.loads(json.dumps({**OPTIONS.to_manifest(), "training": {"epochs": 3}}))
    assert content["scales"] == {"point": [0.5, 2.0], "rgb": [0.0, 1.0]}
    assert content["point_layers"] == [1, 2]
    assert "steps" not in content
    found = Extended.from_manifest(content)
    assert found == replace(OPTIONS, steps=None)
    assert type(found.point_layers) is type(found.scales["point"]) is tuple


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
@pytest.mark.parametrize(("written", "today"), [("float32", "fp32"), ("int8", "int8")])
def test_manifests_of_earlier_versions_are_read(family: Any, written: str, today: str) -> None:
    for options_class in (Extended, family.options):
        if today not in option_fields(options_class)["precision"].choices:
            continue
        content = {**options_class().to_manifest(), "precision": written}
        assert options_class.from_manifest(content) == options_class(precision=today)
    facts = option_fields(family.options)
    assert todays_value(written, facts["precision"]) == today
    assert todays_value(["float32"], facts["precision"]) == ["float32"]
    if family.name == "m3dm":  # an option whose value is still called so
        assert todays_value("float32", facts["bank_dtype"]) == "float32"


def test_the_earlier_name_of_a_value_cannot_be_chosen() -> None:
    with pytest.raises(InvalidInputError, match="'float32'; it must be one of fp32, int8"):
        read_option(Extended, "precision", "float32")


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    content = {**OPTIONS.to_manifest(), "offset": 1, "scales": {"rgb": [0, 1]}}
    found = Extended.from_manifest(content)
    assert isinstance(found.offset, float)
    assert all(isinstance(value, float) for value in found.scales["rgb"])


def test_choices_and_ranges_of_all_are_checked() -> None:
    for change, words in (
        ({"decision": "mean"}, r"decision is 'mean'.*sum, svm"),
        ({"batch_norm": "batch"}, r"batch_norm is 'batch'.*cloud, calibrated"),
        ({"rgb_backbone": "vit"}, r"rgb_backbone is 'vit'.*dino-vitb8"),
        ({"precision": "float32"}, r"precision is 'float32'.*fp32, int8"),
        ({"num_groups": 0}, "num_groups is 0; it must be at least 1"),
        ({"num_groups": 4097}, "num_groups is 4097; it must be at most 4096"),
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
        ({"rgb_layers": 0}, "rgb_layers is 0; it must be at least 1"),
        ({"point_layers": (0, -1)}, r"point_layers is \(0, -1\); it must be at least 0"),
        ({"rgb_size": 0}, "rgb_size is 0; it must be at least 1"),
        ({"grid_size": 0}, "grid_size is 0; it must be at least 1"),
        ({"token_grid": 0}, "token_grid is 0; it must be at least 1"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            replace(OPTIONS, **change)


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
        ("batch_norm", "batch"),
        ("group_size", 0),
    ],
)
def test_a_value_of_another_kind_in_a_manifest_is_named(name: str, value: object) -> None:
    words = f"parameter that this version cannot run: {name} is.*upgrade with: pip.*, or fit again"
    with pytest.raises(ArtifactError, match=words):
        Extended.from_manifest({**OPTIONS.to_manifest(), name: value})


def test_missing_parameters_are_named() -> None:
    content = OPTIONS.to_manifest()
    del content["offset"], content["token_grid"]
    with pytest.raises(ArtifactError, match="lack token_grid, offset; fit the detector again"):
        Extended.from_manifest(content)


def test_what_a_family_does_not_say_otherwise() -> None:
    options = Kinds()
    assert options.with_constants() is options
    assert (options.is_exact, options.score_offset, options.map_step) == (True, 0.0, 0.0)
    assert options.without_effect() == {}
