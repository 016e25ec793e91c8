"""The front door of fitting: what it refuses before any work, and what it hands to the family."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mmad_fast
from mmad_fast.data.dataset import open_dataset
from mmad_fast.errors import DataError, EmptyScanError, InvalidInputError
from mmad_fast.methods import fit_run
from mmad_fast.methods.family import Trained, get_method
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitRequest, FitTask, resolve_options
from mmad_fast.scan import PreparedScan, Scan
from mmad_fast.stage_clock import StageClock

RAW_FILES = ("image_4.png", "depth.png", "info_depth.yaml", "pose.txt")

BAD_OPTIONS = [
    *(("method", value, "there is no method .*; known are cfm") for value in (["a"], "x")),
    *(
        ("threshold_quantile", value, "from 0 to 1")
        for value in ("a", math.nan, math.inf, True, -0.1, 1.1)
    ),
    *(("rgb_layers", value, "integer|at least 1") for value in ("four", 0, 1.5, True)),
    *(("epochs", value, "integer|at least 1") for value in (0, -3, "all")),
    *(("group_size", value, "integer|at least 1") for value in (0, [32])),
    *(("num_groups", value, "integer|at (least 1|most 4096)") for value in (0, 4097, "many")),
    *(("shots", value, "integer|at least 1") for value in (0, 2.5, "5")),
    *(("options", value, "has no option 'options'") for value in (["blur"], {"blur": "float"})),
    *(("weights", value, "has no option 'weights'") for value in ("random", {"rgb": "random"})),
    *(("seed", value, r"integer|in 0\.\.") for value in (-1, 2**32)),
    *(("point_layers", value, "numbers with commas|at least 0") for value in (3, (), "a", (-1,))),
    ("rgb_weights", 3, "'auto', 'random' or a"),
    *(("recipe", value, "recipe") for value in (["cfm"], "bake")),
    ("point_weights", b"auto", "'auto', 'random' or a"),
    ("rgb_backbone", 5, "one of dino-vitb8"),
    ("mapping", ["crossmodal"], "one of crossmodal"),
    ("unit", ["m"], "'m' or 'mm'"),
    ("speed", "ludicrous", "one of exact, fast, small"),
    ("point_patches", "28x28", "cfm-s has no option 'point_patches'"),
]


@pytest.mark.parametrize(("option", "value", "words"), BAD_OPTIONS)
def test_a_bad_option_is_named_before_any_work(tmp_path: Path, option, value, words) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        mmad_fast.fit(tmp_path / "no data", tmp_path / "new" / "artifact", **{option: value})
    assert option in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [None, 3])
def test_data_and_output_must_be_paths(tmp_path: Path, value) -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    with pytest.raises(InvalidInputError, match="data is .*path of a data set"):
        mmad_fast.fit(value, tmp_path / "artifact")
    with pytest.raises(InvalidInputError, match="artifact's path is"):
        mmad_fast.fit(tmp_path, value)


class Captured(Exception):
    """Ends a fit at the family's door."""


def asked_of_the_family(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **chosen: Any
) -> tuple[int, int, FitRequest]:
    """(training scans, validation scans, request) of a fit on a data set."""
    pytest.importorskip("torch", reason="fitting needs torch")

    def capture(train, validation, output, request, *, checkpoint, progress):
        assert checkpoint == chosen.get("checkpoint")
        raise Captured(len(train), len(validation), request)

    monkeypatch.setattr(fit_run, "fit_scans", capture)
    with pytest.raises(Captured) as caught:
        mmad_fast.fit(folder, folder / "artifact", **chosen)
    return caught.value.args


@pytest.fixture
def raw_eyecandies(tmp_path: Path) -> Path:
    folder = tmp_path / "Confetto" / "train" / "data"
    folder.mkdir(parents=True)
    for name in RAW_FILES:
        (folder / f"000_{name}").touch()
    return tmp_path


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A category of five training scans and two that are held out, all empty files."""
    for split, count in (("train", 5), ("validation", 2)):
        for kind, suffix in (("rgb", "png"), ("xyz", "tiff")):
            folder = tmp_path / "part" / split / "good" / kind
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03}.{suffix}").touch()
    return tmp_path


@pytest.mark.parametrize(("given", "expected"), [(None, "none"), ("cfm", "cfm")])
def test_raw_eyecandies_is_fitted_without_background_removal(
    raw_eyecandies: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    _, _, request = asked_of_the_family(raw_eyecandies, monkeypatch, recipe=given)
    assert request.recipe == expected


def test_keywords_reach_the_family(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"rgb_weights": "random", "epochs": 7, "seed": 3, "threshold_quantile": 0.9}
    asked = asked_of_the_family(
        folders, monkeypatch, method="cfm-t", unit="mm", checkpoint="a.safetensors", **chosen
    )
    assert asked == (5, 2, FitRequest.of("cfm-t", unit="mm", **chosen))
    _, _, request = asked_of_the_family(folders, monkeypatch, rgb_backbone=None, recipe=None)
    assert request == FitRequest()


def test_few_shots_are_those_of_the_seed(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of_the_family(folders, monkeypatch, shots=2)[:2] == (2, 2)
    dataset = open_dataset(folders)

    def names(shots: int | None, seed: int) -> list[str]:
        scans = fit_run.training_scans(dataset, "part", shots=shots, seed=seed)
        return [scan.name for scan in scans]

    everything = names(None, 0)
    assert len(everything) == 5
    by_seed = {tuple(names(3, seed)) for seed in range(8)}
    assert len(by_seed) > 1
    for seed in range(8):
        assert set(names(2, seed)) < set(names(3, seed)) < set(everything)
        assert names(3, seed) == sorted(names(3, seed))
    with pytest.raises(InvalidInputError, match="shots is 6, but category 'part' has 5 training"):
        names(6, 0)


def test_a_category_without_training_scans(folders: Path) -> None:
    (folders / "part" / "train").rename(folders / "part" / "test")
    dataset = open_dataset(folders)
    with pytest.raises(DataError, match="'part' has no training scans; put nominal scans into"):
        fit_run.training_scans(dataset, "part")
    assert len(fit_run.validation_scans(dataset, "part")) == 2


@dataclass(frozen=True)
class Mean:
    """The features of a fit that needs no network."""

    of_points: NDArray[np.float32]


class PointMeans:
    """The fit half of a family whose features are the mean point."""

    memory_limit_mib = 0.0

    def extract(self, prepared: PreparedScan) -> Mean:
        if not len(prepared.points):
            raise EmptyScanError("has 0 foreground points")
        return Mean(prepared.points.mean(axis=0))

    def train(self, train: Any, held_out: Any) -> Any:
        raise NotImplementedError


def extracted(
    folder: Path, train: list[Scan], validation: list[Scan]
) -> tuple[FeatureStore[Any], FeatureStore[Any], list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    request = FitRequest.of("cfm-t", recipe="none")
    task = FitTask.of(request, train, folder, lambda *step: told.append(step))
    stores = (FeatureStore[Any](folder / "train"), FeatureStore[Any](folder / "held-out"))
    fit_run.extract_features(train, validation, stores, PointMeans(), task)
    return (*stores, told)


def empty(scan: Scan, name: str) -> Scan:
    return replace(scan, xyz=np.zeros_like(scan.xyz), name=name)


def test_scans_without_foreground_are_skipped_with_a_warning(
    tmp_path: Path, make_dome: Callable[..., Scan], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make_dome(0), make_dome(1)
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        train, held_out, told = extracted(
            tmp_path, [empty(first, "a"), first, empty(first, ""), second], [empty(first, "v")]
        )
    assert (len(train), train.positions) == (2, [1, 3])
    assert (len(held_out), held_out.positions) == (0, [])
    assert told == [("features", done, 5) for done in range(1, 6)]
    for label in ("scan 'a'", "an unnamed scan", "scan 'v'"):
        assert f"skipped {label}: has 0 foreground points" in caplog.text
    for features, scan in zip(train, (first, second), strict=True):
        np.testing.assert_allclose(
            features.of_points, scan.xyz[(scan.xyz != 0).all(axis=-1)].mean(axis=0), atol=5e-4
        )


def test_no_training_scan_with_foreground_is_an_error(
    tmp_path: Path, make_dome: Callable[..., Scan]
) -> None:
    scan = make_dome(0)
    with pytest.raises(EmptyScanError, match=r"none of the 2 training scans has enough.*the unit"):
        extracted(tmp_path, [empty(scan, "a"), empty(scan, "b")], [scan])


def test_a_fit_that_keeps_no_checkpoint_refuses_one(
    tmp_path: Path, make_dome: Callable[..., Scan]
) -> None:
    request = FitRequest.of("btf-fpfh", recipe="none")
    with pytest.raises(InvalidInputError, match=r"the fit of btf-fpfh keeps none; .*do: ast,"):
        fit_run.fit_scans([make_dome(0)], [], tmp_path / "a", request, checkpoint=tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_none_is_taken_where_an_option_may_be_none_and_leaves_the_others_open() -> None:
    request = FitRequest.of("cfm-s", patience=None, pixels_per_step=None, num_groups=None)
    assert request.options == {"patience": None, "pixels_per_step": None}
    assert resolve_options(request).patience is None


@pytest.mark.parametrize("value", [0, -1.0, "-0.5"])
def test_a_learning_rate_that_is_not_positive_is_refused_before_any_work(value: object) -> None:
    with pytest.raises(InvalidInputError, match="learning_rate is .*; it must be above 0"):
        FitRequest.of("cfm-s", learning_rate=value)


class RoundedMeans(PointMeans):
    """A fit whose detector says what a scan's features are, and which trains on halves."""

    def __init__(self, task: FitTask) -> None:
        self.task, self.options = task, task.options
        self.trained_on: list[Mean] = []

    def train(self, train: Any, held_out: Any) -> Any:
        self.trained_on = list(train)
        return Trained(self, {}, {}, {}, {})  # type: ignore[arg-type]

    def score_features(self, features: Mean, clock: StageClock) -> Any:
        depth = float(features.of_points[2])
        return SimpleNamespace(image_score=depth, anomaly_map=np.full((2, 2), depth))

    def score(self, prepared: PreparedScan, clock: StageClock) -> Any:
        return self.score_features(self.extract(prepared), clock)


@pytest.mark.parametrize("num_validation", [0, 1])
def test_halves_decide_neither_threshold_nor_golden_answer(
    tmp_path: Path,
    make_dome: Callable[..., Scan],
    monkeypatch: pytest.MonkeyPatch,
    num_validation: int,
) -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    fits: list[RoundedMeans] = []
    written: dict[str, Any] = {}

    def fit(task: FitTask) -> RoundedMeans:
        fits.append(RoundedMeans(task))
        return fits[0]

    def write_artifact(path: Path, **content: Any) -> Path:
        written.update(content)
        return path

    family, variant = get_method("cfm-t")
    rounding = replace(family, fit=fit, stores_halves=True)
    monkeypatch.setattr(fit_run, "get_method", lambda name: (rounding, variant))
    monkeypatch.setattr(fit_run, "write_artifact", write_artifact)
    scans = [make_dome(seed) for seed in range(5 + num_validation)]
    request = FitRequest.of("cfm-t", recipe="none")
    fit_run.fit_scans(scans[:5], scans[5:], tmp_path / "artifact", request)
    (found,) = fits
    assert len(found.trained_on) == 4 + num_validation
    assert {one.of_points.dtype for one in found.trained_on} == {np.dtype(np.float16)}
    clock = StageClock()
    exact = [found.score(found.task.prepare(scan), clock).image_score for scan in scans]
    assert min(abs(float(np.float16(score)) - score) for score in exact) > 1e-6  # they differ
    assert written["golden"].expected_score in exact
    assert written["threshold"].value == written["golden"].expected_score
