"""Fitting M3DM from scans to an artifact that runs without torch."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FIT_HALF

from mmad_fast.artifact import read_artifact
from mmad_fast.detector import Detector, load
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError, WeightsError
from mmad_fast.measure.configuration import configuration_of, describe_configuration
from mmad_fast.methods.fitting import FitRequest
from mmad_fast.methods.m3dm import fit as fit_module
from mmad_fast.methods.m3dm.fit import fit_m3dm
from mmad_fast.methods.m3dm.fit_options import M3dmFitOptions
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, save_uff
from mmad_fast.methods.m3dm.reference import reference_pipeline
from mmad_fast.methods.m3dm.uff_training import UffRecipe
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock

OPTIONS = M3dmFitOptions(
    method="m3dm",
    rgb_backbone="dinov2-vits14",
    rgb_layers=1,
    point_layers=(0,),
    rgb_weights="random",
    point_weights="random",
    num_groups=64,
    group_size=32,
    point_patches="28x28",
    uff="none",
    recipe="none",
)


@pytest.fixture(scope="module")
def domes(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [make_dome(seed) for seed in range(5)]


@pytest.fixture(scope="module", autouse=True)
def _shared_backbones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fits with the same backbones share their exports, which take longer than the rest."""
    build, made = fit_module.build_backbone_part, {}

    def build_once(train, options, scratch, *, modalities, progress):
        key = (modalities, options.seed)
        if key not in made:
            folder = tmp_path_factory.mktemp("backbones")
            made[key] = build(train, options, folder, modalities=modalities, progress=progress)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "build_backbone_part", build_once)
        yield


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory, domes: list[Scan]) -> Detector:
    """Of three banks, with feature fusion trained. Its maps are float: whether a value falls to one
    or the other of two 8-bit levels may hang on its last digit."""
    short = property(lambda options: UffRecipe(updates=2, seed=options.seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(M3dmFitOptions, "uff_training", short)
        options = replace(OPTIONS, uff="train", blur="float")
        path = fit_m3dm(domes[:3], domes[3:], tmp_path_factory.mktemp("fit") / "dome", options)
    return load(path)


def assert_golden_repeats(detector: Detector) -> None:
    golden = detector.artifact.golden()
    result = detector.infer(golden.rgb, golden.xyz)
    assert result.image_score == pytest.approx(golden.expected_score, rel=1e-4)
    largest = np.abs(golden.expected_map).max()
    assert largest > 0
    np.testing.assert_allclose(result.anomaly_map, golden.expected_map, atol=1e-4 * largest)


def test_artifact_runs_and_repeats_its_golden_scan(fused: Detector, domes: list[Scan]):
    np.testing.assert_array_equal(fused.artifact.golden().rgb, domes[3].rgb)
    assert_golden_repeats(fused)
    assert set(fused.artifact.manifest.graphs) == {"rgb", "points", "uff_point", "uff_rgb"}


def test_artifact_runs_without_the_fit_half(fused: Detector):
    program = f"""
import sys
sys.modules.update(dict.fromkeys({FIT_HALF!r}))
import mmad_fast
print(mmad_fast.load({str(fused.artifact.path)!r}).replay_golden().agrees)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_threshold_is_the_largest_of_few_validation_scores(fused: Detector, domes: list[Scan]):
    scores = [fused.infer_scan(scan).image_score for scan in domes[3:]]
    threshold = fused.artifact.manifest.threshold
    assert threshold is not None
    assert threshold["value"] == pytest.approx(max(scores), rel=1e-4)
    assert (threshold["quantile"], threshold["num_scans"]) == (0.99, 2)


def test_manifest_says_what_was_fitted(fused: Detector):
    manifest = fused.artifact.manifest
    assert (manifest.method, manifest.family) == ("m3dm", "m3dm")
    parameters = manifest.parameters
    assert parameters["banks"] == ["point", "rgb", "fusion"]
    assert (parameters["decision"], parameters["uses_uff"]) == ("svm", True)
    assert len({tuple(scale) for scale in parameters["bank_scales"].values()}) == 1
    training = parameters["training"]
    assert (training["num_train_scans"], training["num_validation_scans"]) == (3, 2)
    assert training["uff"]["num_scans"] == 3
    assert training["decision"] == {"nu": 0.5, "max_iter": 1000, "seed": 42}
    assert manifest.weights["uff"]["kind"] == "trained"
    assert str(Path.home()) not in str(manifest)


def test_rows_of_the_detector_can_name_the_options_of_its_fit(fused: Detector):
    own = M3dmFitOptions(method="m3dm", point_patches="28x28", uff="none", blur="float")
    told = (
        *("coreset", "dlf_scores", "dlf_schedule", "uff_pairing", "uff_schedule"),
        *("point_lambda", "rgb_lambda", "fusion_lambda"),
    )
    found = configuration_of(fused.artifact.manifest.parameters)
    assert {name: found[name] for name in told} == {name: getattr(own, name) for name in told}
    assert describe_configuration("m3dm", found).endswith("point_patches 28x28; blur float")


def test_artifact_equals_the_published_pipeline(fused: Detector, domes: list[Scan]):
    run_reference = reference_pipeline(fused.artifact, rgb_weights="random", point_weights="random")
    slow = run_reference(fused.prepare(domes[4]), StageClock())
    fast = fused.infer_scan(domes[4])
    assert fast.image_score == pytest.approx(slow.image_score, rel=1e-4)
    largest = np.abs(slow.anomaly_map).max()
    np.testing.assert_allclose(fast.anomaly_map, slow.anomaly_map, atol=1e-4 * largest)


@pytest.mark.parametrize(
    ("method", "changes", "graphs", "banks"),
    [
        ("m3dm-rgb", {}, {"rgb"}, {"rgb": 156}),
        ("m3dm-3d", {"point_patches": "groups"}, {"points"}, {"point": 12}),
        ("m3dm-fusion", {"bank_norm": "own"}, {"rgb", "points"}, {"fusion": 156}),
        (
            "m3dm-rgb+3d-add",
            {"coreset": "paper", "bank_dtype": "float16"},
            {"rgb", "points"},
            {"point": 157, "rgb": 156},
        ),
        (
            "m3dm-rgb+3d",
            {
                "dlf_scores": "decision_function",
                "dlf_schedule": "paper",
                "rgb_lambda": 0.5,
                "blur": "float",
            },
            {"rgb", "points"},
            {"point": 157, "rgb": 15},
        ),
    ],
)
def test_other_configurations(
    method: str, changes: dict, graphs: set, banks: dict, domes: list[Scan], tmp_path: Path
):
    options = replace(OPTIONS, method=method, **changes)
    detector = load(fit_m3dm(domes[:2], domes[3:4], tmp_path / "detector", options))
    assert_golden_repeats(detector)
    manifest, tensors = detector.artifact.manifest, detector.artifact.tensors()
    assert set(manifest.graphs) == graphs
    found = {name: tensors[f"bank.{name}"] for name in manifest.parameters["banks"]}
    assert {name: len(rows) for name, rows in found.items()} == banks
    assert {str(rows.dtype) for rows in found.values()} == {changes.get("bank_dtype", "float32")}
    told = configuration_of(manifest.parameters)
    assert {name: told[name] for name in changes} == changes
    assert ("dlf_scores" in told) == (manifest.parameters["decision"] == "svm")
    assert ("rgb_lambda" in told) == (len(banks) > 1)
    assert not {"fusion_lambda", "uff_pairing", "uff_schedule"} & set(told)  # has no such part
    has_offset = changes.get("dlf_scores") == "decision_function"
    assert (manifest.parameters["map_offset"] != 0) == has_offset
    if method == "m3dm-rgb+3d-add":
        assert manifest.parameters["score_weights"] == {"point": 1.0, "rgb": 0.1}
    if method == "m3dm-rgb":
        assert not any(name.startswith("embedder.") for name in tensors)


def test_fit_is_repeatable_and_progress_is_told(domes: list[Scan], tmp_path: Path):
    stages: list[tuple[str, int, int]] = []
    options = replace(OPTIONS, method="m3dm-rgb+3d", seed=3)
    first, second = (
        read_artifact(
            fit_m3dm(
                domes[:1],
                domes[3:4],
                tmp_path / name,
                options,
                progress=lambda *stage: stages.append(stage),
            )
        )
        for name in ("first", "second")
    )
    assert first.manifest.parameters == second.manifest.parameters
    for name, tensor in first.tensors().items():
        np.testing.assert_array_equal(second.tensors()[name], tensor, err_msg=name)
    assert all(0 <= done <= total for _, done, total in stages)
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [
        "export",
        "features",
        "bank scales",
        "point bank, projection",
        "point bank, coreset",
        "rgb bank, projection",
        "rgb bank, coreset",
        "training scores",
        "decision",
        "threshold",
    ]


def test_scans_without_foreground_and_without_validation(
    domes: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz), name="fixture")
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        path = fit_m3dm([empty, domes[1]], [], tmp_path / "one", replace(OPTIONS, method="m3dm-3d"))
    assert "skipped scan 'fixture'" in caplog.text
    assert "no validation scan" in caplog.text
    np.testing.assert_array_equal(read_artifact(path).golden().rgb, domes[1].rgb)


def test_fusion_from_a_file(domes: list[Scan], tmp_path: Path):
    facts = {"training": {"pairing": "published_dump", "schedule": "paper", "updates": 7}}
    file = save_uff(FeatureFusionBlock(384, 384, seed=5), tmp_path / "uff.safetensors", facts)
    options = replace(OPTIONS, method="m3dm-fusion", uff=file)
    detector = load(fit_m3dm(domes[:1], domes[3:4], tmp_path / "detector", options))
    assert_golden_repeats(detector)
    weights = detector.artifact.manifest.weights["uff"]
    assert (weights["kind"], weights["detail"]) == ("file", "uff.safetensors")
    assert weights["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    training = detector.artifact.manifest.parameters["training"]
    assert (training["uff_pairing"], training["uff_schedule"]) == ("published_dump", "paper")
    assert training["uff"] == {"updates": 7}
    assert not {"decision", "dlf_scores", "rgb_lambda"} & set(training)  # a single bank


def test_fusion_files_that_do_not_fit_are_errors_at_once(domes: list[Scan], tmp_path: Path):
    file = save_uff(FeatureFusionBlock(384, 768), tmp_path / "uff.safetensors", {})
    stages: list[str] = []
    for uff, message in (
        (tmp_path / "missing.safetensors", r"missing.safetensors is not a file"),
        (file, r"RGB features of 768 channels, and this detector's have 384"),
    ):
        options = replace(OPTIONS, method="m3dm-fusion", uff=uff)
        with pytest.raises(WeightsError, match=message):
            fit_m3dm(
                domes[:1],
                [],
                tmp_path / "o",
                options,
                progress=lambda *call: stages.append(call[0]),
            )
    assert stages == []
    assert list(tmp_path.iterdir()) == [file]


def test_only_empty_scans_are_an_error(domes: list[Scan], tmp_path: Path):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz))
    options = replace(OPTIONS, method="m3dm-3d")
    with pytest.raises(EmptyScanError, match=r"none of the 1 training scans .* 32 points; check"):
        fit_m3dm([empty], [], tmp_path / "none", options)
    assert not list(tmp_path.iterdir())


def test_no_scan_and_a_folder_of_others_are_errors(domes: list[Scan], tmp_path: Path):
    with pytest.raises(InvalidInputError, match="no training scan.*at least one nominal scan"):
        fit_m3dm([], [], tmp_path / "a", OPTIONS)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files"):
        fit_m3dm(domes[:1], [], tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coreset": "all"}, "coreset is 'all'; it must be one of code, paper"),
        ({"point_patches": "56"}, "point_patches is '56'; it must be one of 56x56, 28x28, groups"),
        ({"point_patches": "groups"}, "point_patches is 'groups' and there is a fusion bank"),
        ({"dlf_scores": "both"}, "dlf_scores is 'both'"),
        ({"dlf_schedule": "long"}, "dlf_schedule is 'long'"),
        ({"uff_pairing": "random"}, "pairing is 'random'; it must be one of aligned, published_"),
        ({"threshold_quantile": 2}, "threshold_quantile is 2; it must be from 0 to 1"),
        ({"recipe": "best"}, "recipe 'best'; known are"),
        ({"rgb_lambda": float("nan")}, "rgb_lambda is nan; it must be a positive number"),
        ({"method": "cfm"}, "cfm is no method of M3DM; choose one of m3dm, m3dm-rgb"),
    ],
)
def test_bad_options_are_errors_at_once(changes: dict, message: str):
    with pytest.raises(InvalidInputError, match=message):
        replace(OPTIONS, **changes)


def test_requests_become_options():
    request = FitRequest(
        method="m3dm-rgb+3d",
        speed="fast",
        num_groups=784,
        options={"point_patches": "28x28", "rgb_lambda": "0.5", "bank_dtype": "float32"},
    )
    options = M3dmFitOptions.of(request)
    assert (options.method, options.num_groups, options.recipe) == ("m3dm-rgb+3d", 784, "m3dm")
    assert (options.point_patches, options.lambdas) == ("28x28", {"point": 1.0, "rgb": 0.5})
    assert (options.precision, options.bank_dtype) == ("int8", "float32")
