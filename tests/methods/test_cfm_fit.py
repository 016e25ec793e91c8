"""Fitting from scans to an artifact that runs without torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmad_fast.artifact import read_artifact
from mmad_fast.detector import load
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError
from mmad_fast.methods.cfm import fit as fit_module
from mmad_fast.methods.cfm.fit import fit_cfm
from mmad_fast.methods.cfm.fit_options import CfmFitOptions
from mmad_fast.methods.cfm.reference import reference_pipeline
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock

OPTIONS = CfmFitOptions(
    rgb_backbone="dinov2-vits14",
    rgb_layers=1,
    point_layers=(0,),
    rgb_weights="random",
    point_weights="random",
    num_groups=64,
    group_size=32,
    recipe="none",
    epochs=3,
    pixels_per_step=256,
)


@pytest.fixture(scope="module")
def domes(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [make_dome(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def artifact_path(tmp_path_factory: pytest.TempPathFactory, domes: list[Scan]) -> Path:
    return fit_cfm(domes[:3], domes[3:], tmp_path_factory.mktemp("fit") / "dome", OPTIONS)


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
    assert threshold["value"] == pytest.approx(max(scores), rel=1e-4)
    assert (threshold["quantile"], threshold["num_scans"]) == (0.99, 2)


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
    run_reference = reference_pipeline(
        detector.artifact, rgb_weights="random", point_weights="random"
    )
    slow = run_reference(detector.prepare(domes[4]), StageClock())
    fast = detector.infer_scan(domes[4])
    assert fast.image_score == pytest.approx(slow.image_score, rel=1e-4)
    np.testing.assert_allclose(fast.anomaly_map, slow.anomaly_map, atol=1e-4 * slow.image_score)


def test_fit_is_repeatable(artifact_path: Path, domes: list[Scan], tmp_path: Path):
    again = read_artifact(fit_cfm(domes[:3], domes[3:], tmp_path / "again", OPTIONS))
    for name, tensor in read_artifact(artifact_path).tensors().items():
        np.testing.assert_array_equal(again.tensors()[name], tensor, err_msg=name)


def test_calibrated_statistics_equal_the_published_pipeline(domes: list[Scan], tmp_path: Path):
    options = replace(OPTIONS, batch_norm="calibrated", aggregation="psi_3d", epochs=1)
    detector = load(fit_cfm(domes[:2], domes[3:4], tmp_path / "calibrated", options))
    assert {key.split(".")[0] for key in detector.artifact.tensors()} == {
        "rgb_to_point",
        "embedder",
        "point_statistics",
    }
    run_reference = reference_pipeline(
        detector.artifact, rgb_weights="random", point_weights="random"
    )
    slow = run_reference(detector.prepare(domes[4]), StageClock())
    fast = detector.infer_scan(domes[4])
    assert fast.image_score == pytest.approx(slow.image_score, rel=1e-4)


def test_scans_without_foreground_and_without_validation(
    domes: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz), name="fixture")
    stages: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        path = fit_cfm(
            [empty, domes[1]],
            [],
            tmp_path / "one",
            replace(OPTIONS, epochs=1),
            progress=lambda *stage: stages.append(stage),
        )
    assert "skipped scan 'fixture'" in caplog.text
    assert "no validation scan" in caplog.text
    np.testing.assert_array_equal(read_artifact(path).golden().rgb, domes[1].rgb)
    assert {stage for stage, _, _ in stages} == {"export", "features", "training", "threshold"}
    assert all(0 <= done <= total for _, done, total in stages)


def test_only_empty_scans_are_an_error(domes: list[Scan], tmp_path: Path):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz))
    with pytest.raises(EmptyScanError, match=r"none of the 1 training scans .* 32 points; check"):
        fit_cfm([empty], [], tmp_path / "none", OPTIONS)
    assert not list(tmp_path.iterdir())


def test_no_scan_and_bad_options_are_errors(domes: list[Scan], tmp_path: Path):
    with pytest.raises(InvalidInputError, match="no training scan.*at least one nominal scan"):
        fit_cfm([], [], tmp_path / "a", OPTIONS)
    with pytest.raises(InvalidInputError, match=r"threshold_quantile is 1.5"):
        CfmFitOptions(threshold_quantile=1.5)
    with pytest.raises(InvalidInputError, match=r"recipe 'best'; known are cfm"):
        CfmFitOptions(recipe="best")
    with pytest.raises(InvalidInputError, match="epochs is 0; it must be at least 1"):
        CfmFitOptions(epochs=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files"):
        fit_cfm(domes[:1], [], tmp_path, OPTIONS)


def test_interrupt_leaves_no_trace(
    domes: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(fit_module.tempfile, "tempdir", str(scratch))

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "training":
            assert any(scratch.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_cfm(domes[:1], domes[3:4], tmp_path / "dome", OPTIONS, progress=interrupt)
    assert not any(scratch.iterdir())
    assert not (tmp_path / "dome").exists()


def test_request_of_the_front_door_is_understood():
    request = FitRequest(method="cfm-t", epochs=7, rgb_layers=2, point_layers=(0,), seed=3)
    options = CfmFitOptions.of(request)
    assert (options.method, options.epochs, options.rgb_layers, options.seed) == ("cfm-t", 7, 2, 3)
    assert options.training.seed == 3
    assert options.num_groups == 1024


def test_speed_is_a_bundle_that_single_options_override():
    options = CfmFitOptions.of(FitRequest(speed="fast", pixel_stride=4))
    assert (options.pixel_stride, options.precision) == (4, "int8")
    assert CfmFitOptions.of(FitRequest(speed="fast")).pixel_stride == 2
    assert CfmFitOptions.of(FitRequest(speed="exact")) == CfmFitOptions()


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"speed": "ludicrous"}, "speed is 'ludicrous'; it must be one of exact, fast"),
        ({"pixel_stride": 3}, "pixel_stride is 3; it must be one of 1, 2, 4"),
        ({"precision": "int4"}, "precision is 'int4'; it must be one of float32, int8"),
    ],
)
def test_unknown_switches_are_errors(
    domes: list[Scan], tmp_path: Path, switches: dict[str, str | int], message: str
):
    request = replace(FitRequest(rgb_weights="random", point_weights="random"), **switches)
    with pytest.raises(InvalidInputError, match=message):
        fit_cfm(domes[:1], domes[3:4], tmp_path / "dome", request)
    assert not (tmp_path / "dome").exists()


def test_the_approximations_give_nearly_the_same_map(
    artifact_path: Path, domes: list[Scan], tmp_path: Path
):
    switches = {"pixel_stride": 2, "precision": "int8"}
    path = fit_cfm(domes[:3], domes[3:], tmp_path / "dome", replace(OPTIONS, **switches))
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
