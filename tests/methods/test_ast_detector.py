"""AST from scans to an artifact, equal to the reference, on all inputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from gpu_test_device import TEST_DEVICE

from mmad_fast.artifact import read_artifact
from mmad_fast.backbones.table import CNN_BACKBONES
from mmad_fast.detector import Detector, load
from mmad_fast.engines import onnx_runtime
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError, MmadFastError
from mmad_fast.methods import training_checkpoint
from mmad_fast.methods.ast.detector import AstPipeline
from mmad_fast.methods.ast.options import PERMUTATIONS
from mmad_fast.methods.ast.reference import reference_pipeline
from mmad_fast.methods.branches import device_stream
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.cnn_pyramid.extractor import CnnPyramidExtractor
from mmad_fast.methods.branches.cnn_pyramid.graph import build_cnn_pyramid
from mmad_fast.methods.family import get_family
from mmad_fast.methods.fit_request import FitRequest, FitTask, resolve_options
from mmad_fast.methods.fit_run import fit_scans, request_on
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock

SCORE_TOLERANCE = MAP_TOLERANCE = 1e-4
"""Of scores relative to themselves, of maps relative to their maximum."""
IMAGE_SIZE = 256
METHODS = ("ast", "ast-rgb", "ast-depth")


def small(method: str, **chosen: Any) -> FitRequest:
    """A request of narrow networks and one pass over the scans."""
    sizes = {"student_channels": 16, "student_blocks": 1, "teacher_channels": 8, "epochs": 1}
    weights = {} if method == "ast-depth" else {"rgb_weights": "random"}
    return FitRequest.of(method, **{**sizes, **weights, **chosen})


def on_table(scan: Scan, *, lift_m: float = 0.01) -> Scan:
    """The dome on a table, `lift_m` above it, with holes."""
    xyz = scan.xyz.copy()
    size = len(xyz)
    rows, columns = np.mgrid[0:size, 0:size] / size
    table = np.stack([columns * 0.2 - 0.11, rows * 0.2 - 0.11, 0.5 + lift_m + 0.02 * rows], -1)
    is_missing = xyz[..., 2] == 0
    xyz[is_missing] = table[is_missing]
    xyz[40:44, 50:55] = 0
    return Scan.from_arrays(scan.rgb, xyz, name=scan.name)


@pytest.fixture(scope="module")
def scans(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [on_table(make_dome(seed)) for seed in range(4)]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, scans: list[Scan]) -> dict[str, Path]:
    """Artifacts by method, those with RGB for small images and with one graph of the backbone."""
    folder = tmp_path_factory.mktemp("ast")
    parts: list[BranchPart[CnnPyramidExtractor]] = []

    def build_once(task: FitTask) -> BranchPart[CnnPyramidExtractor]:
        if not parts:
            built = build_cnn_pyramid(task)
            kept = {name: Path(shutil.copy(path, folder)) for name, path in built.graphs.items()}
            parts.append(replace(built, graphs=kept))
        return parts[0]

    paths = {"ast-depth": fit_scans(scans[:2], scans[2:3], folder / "depth", small("ast-depth"))}
    with pytest.MonkeyPatch.context() as patch:
        small_spec = replace(CNN_BACKBONES["efficientnet-b5"], image_size=IMAGE_SIZE)
        patch.setitem(CNN_BACKBONES, "efficientnet-b5", small_spec)
        patch.setattr("mmad_fast.methods.ast.fit.build_cnn_pyramid", build_once)
        for method in ("ast", "ast-rgb"):
            paths[method] = fit_scans(scans[:2], scans[2:3], folder / method, small(method))
    return paths


@pytest.fixture(scope="module")
def depth_detector(artifacts: dict[str, Path]) -> Detector:
    return load(artifacts["ast-depth"])


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_equals_the_reference(
    artifacts: dict[str, Path], scans: list[Scan], method: str
) -> None:
    detector = load(artifacts[method])
    reference = reference_pipeline(read_artifact(artifacts[method]), {"rgb": "random"})
    cut = Scan(scans[3].rgb[:70], np.ascontiguousarray(scans[3].xyz[:70]), "cut")
    for scan in (scans[3], cut):
        prepared = detector.prepare(scan)
        expected = reference(prepared, StageClock())
        result = detector.infer_scan(scan)
        side = 192 if method == "ast-depth" else IMAGE_SIZE // 4
        assert result.anomaly_map.shape == (side, side)
        assert result.native_anomaly_map.shape == scan.size
        peak = expected.anomaly_map.max()
        assert peak > 1.5 * expected.anomaly_map.mean() > 0  # an answer that can be wrong
        difference = np.abs(result.anomaly_map - expected.anomaly_map).max()
        assert difference <= MAP_TOLERANCE * peak
        assert result.image_score == pytest.approx(expected.image_score, rel=SCORE_TOLERANCE)
        assert result.image_score == result.anomaly_map.max()
        assert result.map_threshold == detector.threshold
    assert detector.replay_golden().agrees


def test_openvino_gives_the_same_answer(artifacts: dict[str, Path]) -> None:
    pytest.importorskip("openvino", reason="openvino (extra 'openvino') is not installed")
    assert load(artifacts["ast-depth"], engine="openvino").replay_golden().agrees


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("pretend_device")
def test_a_detector_on_a_device_gives_the_same_answer(
    artifacts: dict[str, Path], scans: list[Scan], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_stream, "TORCH_DEVICE", TEST_DEVICE)
    if TEST_DEVICE != "cuda":
        monkeypatch.setitem(onnx_runtime.PROVIDERS, "cuda", onnx_runtime.PROVIDERS["cpu"])
    expected = load(artifacts[method]).infer_scan(scans[3])
    detector = load(artifacts[method], device="cuda", engine="onnxruntime")
    result = detector.infer_scan(scans[3])
    peak = expected.anomaly_map.max()
    difference = np.abs(result.anomaly_map - expected.anomaly_map).max()
    assert difference <= MAP_TOLERANCE * peak
    assert result.image_score == pytest.approx(expected.image_score, rel=SCORE_TOLERANCE)


def test_the_mean_is_weighted_once(
    artifacts: dict[str, Path], scans: list[Scan], depth_detector: Detector
) -> None:
    artifact = read_artifact(artifacts["ast-depth"])
    pipeline = depth_detector._pipeline
    assert isinstance(pipeline, AstPipeline)
    by_mean = AstPipeline(
        pipeline.extractor, pipeline._networks, replace(pipeline.options, image_score="mean")
    )
    assert not by_mean.options.score_is_map_maximum
    prepared = depth_detector.prepare(scans[3])
    scores = by_mean.score(prepared, StageClock())
    artifact.manifest.parameters["image_score"] = "mean"
    expected = reference_pipeline(artifact, {})(prepared, StageClock())
    assert scores.image_score == pytest.approx(expected.image_score, rel=SCORE_TOLERANCE)
    assert 0 < scores.image_score < 0.5 * scores.anomaly_map.max()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_variant_does_not_read_changes_nothing(
    artifacts: dict[str, Path], scans: list[Scan], method: str
) -> None:
    detector = load(artifacts[method])
    scan = scans[3]
    expected = detector.infer_scan(scan).anomaly_map
    noise = np.random.default_rng(0).integers(0, 256, scan.rgb.shape, np.uint8)
    without_texture = detector.infer_scan(replace(scan, rgb=np.full_like(scan.rgb, 90)))
    recoloured = detector.infer_scan(replace(scan, rgb=noise)).anomaly_map
    assert np.isfinite(without_texture.anomaly_map).all()
    assert np.array_equal(recoloured, expected) == (method == "ast-depth")
    xyz = scan.xyz.copy()
    xyz[45:50, 45:50, 2] -= 0.004
    dented = detector.infer_scan(replace(scan, xyz=xyz)).anomaly_map
    assert np.array_equal(dented, expected) == (method == "ast-rgb")


def test_a_scan_cut_out_before_is_all_foreground(
    make_dome: Callable[..., Scan], depth_detector: Detector
) -> None:
    prepared = depth_detector.prepare(make_dome(7))
    assert prepared.depth is not None
    assert not prepared.depth.has_plane
    assert 0.3 < prepared.depth.foreground.mean() < 0.7
    assert depth_detector.infer_prepared(prepared).image_score > 0


@pytest.mark.parametrize("lift_m", [None, 0.0])
def test_nothing_and_a_flat_object_are_clear_errors(
    scans: list[Scan], depth_detector: Detector, lift_m: float | None
) -> None:
    xyz = np.zeros_like(scans[0].xyz)
    if lift_m is not None:
        flat = scans[0].xyz[..., 2].max() - 0.02
        xyz = np.where(scans[0].xyz == 0, 0, scans[0].xyz)
        xyz[..., 2] = np.where(xyz[..., 2] == 0, 0, flat)
    with pytest.raises(EmptyScanError, match=r"scan 'flat' has no foreground.*higher than that"):
        depth_detector.infer_scan(Scan(scans[0].rgb, xyz.astype(np.float32), "flat"))


def test_training_scans_without_foreground_are_skipped(
    scans: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = replace(scans[0], xyz=np.zeros_like(scans[0].xyz), name="empty")
    path = fit_scans([empty, scans[1]], scans[2:3], tmp_path / "a", small("ast-depth"))
    assert "skipped scan 'empty'" in caplog.text
    assert read_artifact(path).manifest.parameters["training"]["num_train_scans"] == 1


def test_an_interrupted_fit_leaves_the_artifact_that_was_there(
    artifacts: dict[str, Path], scans: list[Scan], tmp_path: Path
) -> None:
    path = shutil.copytree(artifacts["ast-depth"], tmp_path / "a")
    before = read_artifact(path).files.digest

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "student training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_scans(scans[:2], scans[2:3], path, small("ast-depth"), progress=interrupt)
    assert read_artifact(path).files.digest == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_fit_goes_on_from_its_checkpoint_and_removes_it(
    scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "training.safetensors"
    told: list[tuple[str, int]] = []
    stop = ("student training", 1)

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done))
        if (stage, done) == stop:
            raise KeyboardInterrupt

    def fit(scans: list[Scan] = scans, checkpoint: Path | None = file, **options: Any) -> Path:
        request = small("ast-depth", epochs=2, **options)
        output = tmp_path / "artifact"
        return fit_scans(
            scans[:2], scans[2:3], output, request, checkpoint=checkpoint, progress=progress
        )

    monkeypatch.setattr(training_checkpoint, "INTERVAL_S", 0.0)
    monkeypatch.setattr(training_checkpoint, "MAX_SHARE_OF_TIME", np.inf)
    with pytest.raises(KeyboardInterrupt):
        fit()
    stop = ("", 0)
    with pytest.raises(InvalidInputError, match="another fit .seed is 0 there, 1 here"):
        fit(seed=1)
    with pytest.raises(InvalidInputError, match="another fit .sha256 of the scans is"):
        fit([scans[1], scans[0], scans[2]])
    told.clear()
    resumed = read_artifact(fit())
    assert [done for stage, done in told if stage == "teacher training"] == [2]
    assert [done for stage, done in told if stage == "student training"] == [1, 2]
    assert not file.exists()
    assert resumed.manifest.graphs == read_artifact(fit(checkpoint=None)).manifest.graphs


def test_what_cannot_be_fitted_is_refused(scans: list[Scan], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="recipe is 'none', which prepares no depth pict"):
        fit_scans(scans, [], tmp_path / "a", small("ast-depth", recipe="none"))
    with pytest.raises(InvalidInputError, match="but ast-depth uses no rgb features"):
        small("ast-depth", rgb_weights="weights.pth")
    with pytest.raises(MmadFastError, match="loss of the teacher became"):
        fit_scans(scans, [], tmp_path / "a", small("ast-depth", learning_rate=1e30, epochs=3))


def test_a_manifest_that_does_not_fit_is_refused(artifacts: dict[str, Path]) -> None:
    changes: list[tuple[str, str, Any]] = [
        ("parameters", "grid_size", 200),
        ("parameters", "grid_size", 96),
        ("parameters", "reads_depth", False),
        ("preprocess", "depth_plane_m", None),
    ]
    for part, key, value in changes:
        artifact = read_artifact(artifacts["ast-depth"])
        getattr(artifact.manifest, part)[key] = value
        with pytest.raises(ArtifactError, match="fit the detector again"):
            AstPipeline.from_artifact(artifact, load(artifacts["ast-depth"]).engine_choice)


def test_the_artifact_holds_the_published_keys_and_the_permutations(
    artifacts: dict[str, Path],
) -> None:
    tensors = read_artifact(artifacts["ast"]).tensors()
    assert tensors[PERMUTATIONS].shape == (4, 368)
    assert tensors["teacher.module_list.3.s1.conv1.weight"].shape == (8, 216, 3, 3)
    assert tensors["student.res.0.bn1.running_mean"].shape == (16,)


def test_raw_eyecandies_keep_the_depth_picture() -> None:
    dataset = SimpleNamespace(layout="eyecandies")
    for method, recipe in (("ast-depth", None), ("cfm-s", "none")):
        assert request_on(cast(Any, dataset), FitRequest(method)).recipe == recipe


def test_speeds_and_shots() -> None:
    fast = resolve_options(FitRequest("ast-depth", speed="fast"))
    assert fast.student_channels < 1024
    assert resolve_options(FitRequest("ast-depth")).is_exact
    assert get_family("ast").recipe.depth_plane_m == 0.007


def test_one_shot_has_no_threshold(
    scans: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector = load(fit_scans(scans[:1], [], tmp_path / "a", small("ast-depth")))
    assert detector.threshold is None
    assert detector.infer_scan(scans[3]).is_anomalous is None
    assert "too few training scans for a threshold" in caplog.text
