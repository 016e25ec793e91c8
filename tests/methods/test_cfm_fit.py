"""Fitting from scans to an artifact that runs without torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmad_fast.artifact import read_artifact
from mmad_fast.detector import load
from mmad_fast.errors import (
    ArtifactError,
    EmptyScanError,
    InvalidInputError,
    WeightsError,
)
from mmad_fast.methods.cfm.fit import training_recipe
from mmad_fast.methods.cfm.reference import reference_pipeline
from mmad_fast.methods.cfm.training import TrainingRecipe
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.fit_run import fit_scans
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock
from mmad_fast.threshold import SET_ASIDE, VALIDATION

RANDOM = {"rgb": "random", "point": "random"}


def small(**chosen: Any) -> FitRequest:
    """A request of a small detector, few epochs and no background removal."""
    values = {
        "rgb_backbone": "dinov2-vits14",
        "rgb_layers": 1,
        "point_layers": (0,),
        "rgb_weights": "random",
        "point_weights": "random",
        "num_groups": 64,
        "group_size": 32,
        "recipe": "none",
        "epochs": 3,
        "pixels_per_step": 256,
    }
    return FitRequest.of(**{**values, **chosen})


@pytest.fixture(scope="module")
def domes(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [make_dome(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def artifact_path(tmp_path_factory: pytest.TempPathFactory, domes: list[Scan]) -> Path:
    return fit_scans(domes[:3], domes[3:], tmp_path_factory.mktemp("fit") / "dome", small())


def test_artifact_runs_and_repeats_its_golden_scan(artifact_path: Path, domes: list[Scan]):
    detector = load(artifact_path)
    golden = detector.artifact.golden()
    np.testing.assert_array_equal(golden.rgb, domes[3].rgb)
    result = detector.infer(golden.rgb, golden.xyz)
    assert result.image_score == pytest.approx(golden.expected_score, rel=1e-4)
    largest = golden.expected_map.max()
    np.testing.assert_allclose(result.anomaly_map, golden.expected_map, atol=1e-4 * largest)
    assert largest == pytest.approx(golden.expected_score)


def test_threshold_is_the_largest_of_few_validation_scores(artifact_path: Path, domes: list[Scan]):
    detector = load(artifact_path)
    scores = [detector.infer_scan(scan).image_score for scan in domes[3:]]
    threshold = read_artifact(artifact_path).manifest.threshold
    assert threshold is not None
    assert threshold.value == pytest.approx(max(scores), rel=1e-4)
    assert (threshold.quantile, threshold.num_scans) == (0.99, 2)
    assert threshold.source == VALIDATION


def test_manifest_says_what_was_fitted(artifact_path: Path):
    manifest = read_artifact(artifact_path).manifest
    assert (manifest.method, manifest.family) == ("cfm-s", "cfm")
    assert manifest.parameters["rgb_layers"] == 1
    assert manifest.parameters["point_layers"] == [0]
    assert manifest.parameters["rgb_size"] == 392
    assert manifest.parameters["training"]["epochs_run"] <= 3
    assert manifest.weights["rgb"]["kind"] == manifest.weights["point"]["kind"] == "random"
    assert str(Path.home()) not in str(manifest)


def test_artifact_equals_the_published_pipeline(artifact_path: Path, domes: list[Scan]):
    detector = load(artifact_path)
    run_reference = reference_pipeline(detector.artifact, RANDOM)
    slow = run_reference(detector.prepare(domes[4]), StageClock(), ties="lowest")
    fast = detector.infer_scan(domes[4])
    assert fast.image_score == pytest.approx(slow.image_score, rel=1e-4)
    np.testing.assert_allclose(fast.anomaly_map, slow.anomaly_map, atol=1e-4 * slow.image_score)


def test_fit_is_repeatable(artifact_path: Path, domes: list[Scan], tmp_path: Path):
    again = read_artifact(fit_scans(domes[:3], domes[3:], tmp_path / "again", small()))
    for name, tensor in read_artifact(artifact_path).tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], tensor, err_msg=name)


def test_calibrated_statistics_equal_the_published_pipeline(domes: list[Scan], tmp_path: Path):
    request = small(batch_norm="calibrated", aggregation="psi_3d", epochs=1)
    detector = load(fit_scans(domes[:2], domes[3:4], tmp_path / "calibrated", request))
    assert {key.split(".")[0] for key in detector.artifact.tensors()} == {
        "rgb_to_point",
        "rotated",
        "embedder",
        "point_statistics",
    }
    run_reference = reference_pipeline(detector.artifact, RANDOM)
    slow = run_reference(detector.prepare(domes[4]), StageClock(), ties="lowest")
    fast = detector.infer_scan(domes[4])
    assert fast.image_score == pytest.approx(slow.image_score, rel=1e-4)


def test_scans_without_foreground_and_without_validation(
    domes: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz), name="fixture")
    stages: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        path = fit_scans(
            [empty, domes[1]],
            [],
            tmp_path / "one",
            small(epochs=1),
            progress=lambda *stage: stages.append(stage),
        )
    assert "skipped scan 'fixture'" in caplog.text
    assert "no validation scan" in caplog.text
    np.testing.assert_array_equal(read_artifact(path).golden().rgb, domes[1].rgb)
    assert {stage for stage, _, _ in stages} == {"export", "features", "training"}
    assert all(0 <= done <= total for _, done, total in stages)
    assert [step for step in stages if step[0] == "export"] == [
        ("export", done, 2) for done in range(3)
    ]
    training = read_artifact(path).manifest.parameters["training"]
    assert (training["num_train_scans"], training["num_validation_scans"]) == (1, 0)
    assert read_artifact(path).manifest.threshold is None
    assert "too few training scans for a threshold (1)" in caplog.text


def test_without_validation_one_scan_in_five_is_not_trained_on(
    domes: list[Scan], tmp_path: Path
) -> None:
    scans = [*domes, replace(domes[0], xyz=np.zeros_like(domes[0].xyz), name="empty")]
    assert len(domes) == 5
    artifact = read_artifact(fit_scans(scans, [], tmp_path / "aside", small(epochs=1, seed=1)))
    threshold, training = artifact.manifest.threshold, artifact.manifest.parameters["training"]
    assert threshold is not None
    assert (threshold.source, threshold.num_scans) == (SET_ASIDE, 1)
    assert (training["num_train_scans"], training["num_validation_scans"]) == (4, 0)
    golden = artifact.golden()
    (aside,) = (index for index, scan in enumerate(domes) if (scan.rgb == golden.rgb).all())
    assert aside == np.random.default_rng(1).permutation(5)[0]
    assert threshold.value == golden.expected_score


def test_only_empty_scans_are_an_error(
    domes: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz))
    with pytest.raises(EmptyScanError, match=r"none of the 1 training scans .*; check the unit"):
        fit_scans([empty], [], tmp_path / "none", small())
    assert "has 0 foreground points on the 224x224 grid, the detector needs at least 32" in (
        caplog.text
    )
    assert not list(tmp_path.iterdir())


def test_no_scan_and_a_folder_of_other_files_are_errors(domes: list[Scan], tmp_path: Path):
    with pytest.raises(InvalidInputError, match="no training scan.*at least one nominal scan"):
        fit_scans([], [], tmp_path / "a", small())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files"):
        fit_scans(domes[:1], [], tmp_path, small())


def test_weights_that_are_not_there_are_named_before_any_scan_is_read(
    domes: list[Scan], tmp_path: Path
):
    with pytest.raises(WeightsError, match="missing.pth"):
        fit_scans(domes[:1], [], tmp_path / "dome", small(rgb_weights="missing.pth"))
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_no_trace(
    domes: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "training":
            assert any(scratch.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_scans(domes[:1], domes[3:4], tmp_path / "dome", small(), progress=interrupt)
    assert not any(scratch.iterdir())
    assert not (tmp_path / "dome").exists()


def test_the_trainings_part_of_the_options():
    request = FitRequest.of("cfm-t", epochs=7, seed=3, schedule="constant", patience="none")
    recipe = training_recipe(resolve_options(request), request.seed)
    assert recipe == TrainingRecipe(epochs=7, seed=3, schedule="constant", patience=None)
    assert training_recipe(resolve_options(FitRequest()), 0) == TrainingRecipe()


def test_every_option_of_the_training_reaches_it():
    expected = TrainingRecipe(
        epochs=250,
        pixels_per_step=None,
        learning_rate=1e-3,
        standardize=False,
        schedule="constant",
        batch_scans=2,
        patience=None,
        seed=5,
    )
    request = FitRequest.of(
        "cfm",
        seed=5,
        epochs=250,
        pixels_per_step="none",
        learning_rate=1e-3,
        standardize=False,
        schedule="constant",
        batch_scans=2,
        patience="none",
    )
    assert training_recipe(resolve_options(request), request.seed) == expected


def test_the_approximations_give_nearly_the_same_map(
    artifact_path: Path, domes: list[Scan], tmp_path: Path
):
    path = fit_scans(domes[:3], domes[3:], tmp_path / "dome", small(speed="fast"))
    exact, fast = load(artifact_path), load(path)
    assert exact.is_exact
    assert not fast.is_exact
    sizes = [
        sum(file.stat().st_size for file in folder.glob("*.onnx"))
        for folder in (path, artifact_path)
    ]
    assert 0 < sizes[0] < 0.4 * sizes[1]
    maps = [
        detector.infer(domes[4].rgb, domes[4].xyz).anomaly_map.ravel() for detector in (exact, fast)
    ]
    assert np.corrcoef(maps)[0, 1] > 0.95
