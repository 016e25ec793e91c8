"""bench/sweep.py: what a file of settings and the command line ask for, and what is resumed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sweep
from detectors import MovedScan, RepeatedSet, fit_request
from settings import read_toml

from mmad_fast.data.dataset import open_dataset
from mmad_fast.data.synthetic import CATEGORIES, write_synthetic
from mmad_fast.methods.fit_request import resolve_options


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "set"
    counts = dict.fromkeys(("num_train", "num_validation", "num_good", "num_per_defect"), 1)
    write_synthetic(folder, categories=CATEGORIES[:1], **counts, size=96, seed=0)
    return folder


def opened(data, *arguments):
    return sweep.open_sweep(sweep.parse_arguments([*arguments, "--data", str(data)]))


@pytest.mark.parametrize("name", sorted(path.stem for path in sweep.SWEEPS.glob("*.toml")))
def test_every_setting_is_a_request_and_has_its_own_key(data, name):
    """What a file asks for is checked before an hour of work."""
    if "kind" not in read_toml(sweep.SWEEPS / f"{name}.toml"):
        return
    asked = opened(data, name)
    seen = {}
    for setting in asked.settings():
        methods = setting.fit.get("methods", [setting.fit.get("method")])
        fit = {k: v for k, v in setting.fit.items() if k != "methods"}
        for method in filter(None, methods):
            request = fit_request({**fit, "method": method})
            assert request.method == method
            resolve_options(request)
        key = asked.results.key_of({**setting.row, "method": methods[0]})
        assert seen.setdefault(key, fit) == fit


def test_the_command_line_wins_and_few_shots_are_settings_of_their_own(data):
    asked = opened(
        *(data, "m3dm_configurations", "--group", "few-shot"),
        *("--set", "rgb_layers=8", "--set", "rgb_weights=file.pth", "--set", "seed=3"),
    )
    found = [(setting.row["setting"], setting.row["shots"]) for setting in asked.settings()]
    assert found == [(name, shots) for name in ("m3dm", "cfm-s") for shots in (5, 10, None)]
    first = next(iter(asked.settings()))
    assert (first.fit["rgb_layers"], first.fit["rgb_weights"]) == (8, "file.pth")
    assert (first.row["seed"], first.fit["shots"], first.more["is_shared"]) == (3, 5, True)


def test_what_a_setting_does_not_take_and_what_tells_its_rows_apart(data):
    """--set names an option for all settings but those that it would mean nothing to."""
    asked = opened(
        *(data, "mmrd_ablations", "--group", "2d"),
        *("--set", "normals_from=images", "--set", "schedule=published", "--set", "depth_axis=y"),
    )
    fits = {one.row["setting"]: dict(one.fit) for one in asked.settings()}
    assert fits["mmrd"]["normals_from"] == fits["mmrd-aux"]["normals_from"] == "images"
    assert "normals_from" not in fits["mmrd auxiliary=depth"]
    assert {name for name, fit in fits.items() if "depth_axis" in fit} == {
        *("mmrd-aux auxiliary=depth", "mmrd auxiliary=depth", "mmrd auxiliary=both"),
    }
    assert not {"auxiliary", "normals_from"} & fits["mmrd-rgb"].keys()
    (row,) = (one.row for one in asked.settings() if one.row["setting"] == "mmrd")
    assert (row["rgb_backbone"], row["schedule"]) == ("wide-resnet50-2", "published")
    for fit in fits.values():
        resolve_options(fit_request(fit))


def test_the_rows_of_mmrds_tables(data):
    """Per table of the paper its rows, in order, as settings."""
    count = {"2a": 4, "2b": 4, "2c": 4, "2d": 6, "2e": 6, "2f": 6}
    for group, number in count.items():
        asked = opened(data, "mmrd_ablations", "--group", group)
        assert len(list(asked.settings())) == number, group


def test_settings_of_an_absent_backbone_are_left_out_and_others_are_options():
    settings = {"rgb_layers": 1, "point_layers": [0], "blur": "float", "epochs": None}
    request = fit_request({"method": "m3dm-rgb", **settings})
    assert request.options == {"rgb_layers": 1, "blur": "float"}


def test_rows_that_are_there_are_not_measured_again(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = sweep.Results(file, ["what", "sm"])
    assert not rows.has({"what": "engine"})
    rows.add({"what": "engine", "value": 1})
    assert '["engine", null]' in capsys.readouterr().out
    again = sweep.Results(file, ["what", "sm"])
    assert again.has({"what": "engine", "value": 2})
    assert not again.has({"what": "engine", "sm": 89})
    (line,) = file.read_text().splitlines()
    assert "versions" in json.loads(line)["environment"]


def test_repeated_scans_are_other_scans_of_the_same_kind(data):
    dataset = open_dataset(data)
    repeated = RepeatedSet(**vars(dataset), num_train=3)
    (category,) = dataset.categories()
    scans = repeated.scans(category, "train")
    assert len({scan.name for scan in scans}) == 3
    assert repeated.scans(category, "test") == dataset.scans(category, "test")
    first, second = (scan.load() for scan in scans[:2])
    assert first.xyz.shape == second.xyz.shape
    assert (first.xyz != second.xyz).any()
    again = replace(scans[0])
    assert isinstance(again, MovedScan)
    assert (again.load().rgb == first.rgb).all()


def test_a_setting_is_fitted_for_each_of_its_seeds(data):
    asked = opened(data, "m3dm_configurations")
    entry = {"row": {"setting": "m3dm-rgb"}, "fit": {"method": "m3dm-rgb"}, "seeds": [0, 1, 2]}
    found = list(replace(asked, content={"settings": [entry]}).settings())
    assert [(one.row["seed"], one.fit["seed"]) for one in found] == [(0, 0), (1, 1), (2, 2)]
    assert len({asked.results.key_of({**one.row, "category": "a"}) for one in found}) == 3


def test_weights_of_a_branch_that_the_family_does_not_have_are_left_out():
    weights = {"rgb_weights": "random", "point_weights": "random"}
    assert fit_request({"method": "m3dm-rgb", **weights}).weights == {"rgb": "random"}
    assert fit_request({"method": "btf", **weights}).weights == {"rgb": "random"}
    assert fit_request({"method": "btf-fpfh", **weights}).weights == {}
