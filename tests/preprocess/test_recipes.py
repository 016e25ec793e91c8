from __future__ import annotations

import dataclasses
import json

import pytest

from mmad_fast.errors import ArtifactError, InvalidInputError
from mmad_fast.methods.family import families, get_recipe
from mmad_fast.preprocess.recipes import NO_CLEAN_UP, Recipe


def test_the_published_flavours_differ_as_published() -> None:
    cfm, m3dm, none = get_recipe("cfm"), get_recipe("m3dm"), get_recipe("none")
    assert (cfm.rgb_background, cfm.rgb_padding) == ("keep", "edge")
    assert (m3dm.rgb_background, m3dm.rgb_padding) == ("black", "zero")
    assert cfm.remove_background
    assert m3dm.remove_background
    assert not none.remove_background


@pytest.mark.parametrize("name", [*(family.recipe.name for family in families()), "none"])
def test_a_recipe_survives_the_manifest(name: str) -> None:
    recipe = get_recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_missing_and_an_unknown_key_are_named() -> None:
    record = get_recipe("cfm").to_dict()
    record["colour"] = record.pop("rgb_padding")
    with pytest.raises(ArtifactError, match=r"missing keys \['rgb_padding'\].*\['colour'\]"):
        Recipe.from_dict(record)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rgb_background", "white"),
        ("rgb_padding", ["edge"]),
        ("rim_width_px", 0),
        ("rim_width_px", 2.5),
        ("min_rim_points", True),
        ("plane_removal_m", -0.005),
        ("plane_inlier_m", float("nan")),
        ("cluster_radius_m", 1e-9),
        ("min_inlier_fraction", 1.5),
        ("std", [0.2, 0.0, 0.2]),
        ("mean", [0.5, 0.5]),
        ("mean", ["a", "b", "c"]),
        ("seed", -1),
        ("seed", 2**63),
        ("remove_background", 1),
        ("auxiliary", "depth"),
        ("auxiliary", ["normals", "depth"]),
        ("auxiliary", ["depth", "depth"]),
        ("auxiliary", ["heights"]),
        ("auxiliary", None),
        ("normals_from", "guess"),
        ("sobel_size", 4),
        ("sobel_size", 5.0),
        ("depth_axis", "x"),
        ("name", None),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: object) -> None:
    record = {**get_recipe("cfm").to_dict(), key: value}
    with pytest.raises(ArtifactError, match=rf"{key} is .*must be"):
        Recipe.from_dict(record)


def test_a_recipe_that_is_no_object_is_refused() -> None:
    with pytest.raises(ArtifactError, match="must be an object"):
        Recipe.from_dict(["cfm"])  # type: ignore[arg-type]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="cfm, m3dm, .*none"):
        get_recipe("nope")


def test_a_familys_recipe_is_found_by_its_name() -> None:
    for family in families():
        assert get_recipe(family.recipe.name) is family.recipe
    assert get_recipe("none") is NO_CLEAN_UP


def test_a_wrong_value_in_code_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidInputError, match="rgb_background is 'grey'"):
        dataclasses.replace(get_recipe("cfm"), rgb_background="grey")
