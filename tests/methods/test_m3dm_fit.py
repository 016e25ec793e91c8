"""Fitting M3DM from scans to an artifact that runs without torch."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIT_HALF
from numpy.typing import NDArray

from mmad_fast.artifact import read_artifact, write_artifact
from mmad_fast.detector import Detector, load, open_detector
from mmad_fast.engines import Engine
from mmad_fast.errors import ArtifactError, EmptyScanError, InvalidInputError, WeightsError
from mmad_fast.measure.configuration import configuration_of, describe_configuration
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.family import get_method
from mmad_fast.methods.fit_request import FitRequest, FitTask, resolve_options, silent
from mmad_fast.methods.fit_run import fit_scans
from mmad_fast.methods.m3dm import fit as fit_module
from mmad_fast.methods.m3dm.bank_queries import bank_queries
from mmad_fast.methods.m3dm.networks import FeatureFusionBlock, save_uff
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.methods.m3dm.reference import reference_pipeline
from mmad_fast.methods.memory_bank.options import BANK_PREFIX
from mmad_fast.methods.memory_bank.search import normalize_rows
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock
from mmad_fast.threshold import OWN_LEFT_OUT, VALIDATION, Threshold

WEIGHTS = {"rgb": "random", "point": "random"}
OF_BRANCH: dict[str, dict[str, Any]] = {
    "rgb": {"rgb_backbone": "dinov2-vits14", "rgb_layers": 1},
    "point": {"point_layers": (0,), "num_groups": 64, "group_size": 32},
}


def request_of(method: str, *, seed: int = 0, **changes: Any) -> FitRequest:
    """Of a small detector: one layer, few groups and patches, no feature fusion."""
    _, variant = get_method(method)
    options = {name: value for key in variant.branches for name, value in OF_BRANCH[key].items()}
    if "point" in variant.branches:
        options["point_patches"] = "28x28"
    if "fusion" in variant.values["banks"]:
        options["uff"] = "none"
    return FitRequest(
        method=method, weights=WEIGHTS, recipe="none", seed=seed, options={**options, **changes}
    )


@pytest.fixture(scope="module")
def domes(make_dome: Callable[..., Scan]) -> list[Scan]:
    return [make_dome(seed) for seed in range(5)]


@pytest.fixture(scope="module", autouse=True)
def _shared_backbones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fits with the same backbones share their exports, which take longer than the rest."""
    made: dict[tuple[str, int], BranchPart[Any]] = {}

    def once(name: str) -> Callable[[FitTask], BranchPart[Any]]:
        build = getattr(fit_module, name)

        def build_once(task: FitTask) -> BranchPart[Any]:
            key = (name, task.request.seed)
            if key not in made:
                made[key] = build(replace(task, scratch=tmp_path_factory.mktemp("backbones")))
            return made[key]

        return build_once

    with pytest.MonkeyPatch.context() as patch:
        for name in ("build_vit_tokens", "build_point_groups"):
            patch.setattr(fit_module, name, once(name))
        yield


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory, domes: list[Scan]) -> Detector:
    """Of three banks, with feature fusion trained. Its maps are float: whether a value falls to one
    or the other of two 8-bit levels may hang on its last digit."""
    request = request_of("m3dm", uff="train", uff_updates=2, blur="float")
    return load(fit_scans(domes[:3], domes[3:], tmp_path_factory.mktemp("fit") / "dome", request))


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


def test_every_graph_can_be_replaced_when_it_is_opened(fused: Detector, domes: list[Scan]):
    """As calibration does, which records what the graphs get."""
    num_runs = dict.fromkeys(fused.artifact.manifest.graphs, 0)

    class Counting:
        def __init__(self, name: str, engine: Engine) -> None:
            self.input_shapes, self.output_shapes = engine.input_shapes, engine.output_shapes
            self._name, self._engine = name, engine

        def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
            num_runs[self._name] += 1
            return self._engine.run(inputs)

    counting = open_detector(fused.artifact, replace(fused.engine_choice, wrap=Counting))
    assert counting.options == fused.options
    assert set(num_runs.values()) == {0}
    found, wanted = (detector.infer_scan(domes[4]) for detector in (counting, fused))
    assert found.image_score == wanted.image_score
    np.testing.assert_array_equal(found.anomaly_map, wanted.anomaly_map)
    assert num_runs.pop("uff_point") >= 1  # in blocks of rows
    assert num_runs == {"rgb": 1, "points": 1, "uff_rgb": 1}


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
    assert threshold.value == pytest.approx(max(scores), rel=1e-4)
    assert (threshold.quantile, threshold.num_scans) == (0.99, 2)
    assert threshold.source == VALIDATION


def test_without_validation_a_training_scan_is_scored_by_the_others_rows(
    domes: list[Scan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """As the dense reference scores it with banks from which its rows were deleted. The first scan
    is there twice: its rows are not its alone, and stay."""
    scans, found = [domes[0], domes[1], domes[0]], []
    of_scores = Threshold.of_scores

    def capture(scores: list[float], *rest: Any) -> Threshold:
        found.extend(scores)
        return of_scores(scores, *rest)

    monkeypatch.setattr(Threshold, "of_scores", capture)
    request = request_of("m3dm-rgb+3d-add", coreset="paper")
    detector = load(fit_scans(scans, [], tmp_path / "detector", request))
    assert_golden_repeats(detector)  # which is scored by the banks as they are
    threshold = detector.artifact.manifest.threshold
    assert threshold is not None
    assert (threshold.source, threshold.num_scans) == (OWN_LEFT_OUT, 3)
    assert "no validation scan: the threshold rests on training scans, each scored" in caplog.text

    banks = {name: detector.artifact.tensors()[BANK_PREFIX + name] for name in ("point", "rgb")}
    rows_of_scans = [scaled_rows(detector, scan) for scan in scans]
    for index, scan in enumerate(scans[:2]):
        others = dict(banks)
        for name, bank in banks.items():
            own, rest = rows_of_scans[index][name], [rows[name] for rows in rows_of_scans]
            of_others = np.concatenate(rest[:index] + rest[index + 1 :])
            is_left_out = are_among(bank, own) & ~are_among(bank, of_others)
            others[name] = bank[~is_left_out]
            assert is_left_out.any() == (index == 1)
        smaller = with_banks(detector, others, tmp_path / f"without {index}")
        reference = reference_pipeline(read_artifact(smaller), WEIGHTS)
        dense = reference(detector.prepare(scan), StageClock()).image_score
        assert found[index] == pytest.approx(dense, rel=1e-4)
    unaware = [detector.infer_scan(scan).image_score for scan in scans]
    assert found[1] > 1.2 * max(unaware)
    assert found[0] == found[2] == pytest.approx(unaware[0], rel=1e-4)


def scaled_rows(detector: Detector, scan: Scan) -> dict[str, NDArray[np.float32]]:
    """By bank the rows of a scan's patches, as that bank's would be."""
    pipeline: Any = detector._pipeline
    features = pipeline.extractor.extract(detector.prepare(scan), StageClock())
    rows = {}
    for name, scale in pipeline.options.bank_scales.items():
        queries, owner = bank_queries(features, pipeline.options, name)
        rows[name] = normalize_rows(queries[np.unique(owner)], scale)
    return rows


def are_among(bank: NDArray, rows: NDArray) -> NDArray[np.bool_]:
    """(M,) bool: the row of the bank is one of these."""
    return np.array([(rows == row).all(axis=1).any() for row in bank])


def with_banks(detector: Detector, banks: Mapping[str, NDArray], target: Path) -> Path:
    """The detector's artifact with other banks."""
    artifact, manifest = detector.artifact, detector.artifact.manifest
    named = {BANK_PREFIX + name: rows for name, rows in banks.items()}
    return write_artifact(
        target,
        method=manifest.method,
        family=manifest.family,
        preprocess=manifest.preprocess,
        parameters=manifest.parameters,
        threshold=None,
        weights=manifest.weights,
        graphs={name: artifact.graph_path(name) for name in manifest.graphs},
        tensors={**artifact.tensors(), **named},
        golden=artifact.golden(),
    )


def test_manifest_says_what_was_fitted(fused: Detector):
    manifest = fused.artifact.manifest
    assert (manifest.method, manifest.family) == ("m3dm", "m3dm")
    parameters = manifest.parameters
    assert parameters["banks"] == ["point", "rgb", "fusion"]
    assert (parameters["decision"], parameters["uses_uff"]) == ("svm", True)
    assert len({tuple(scale) for scale in parameters["bank_scales"].values()}) == 1
    training = parameters["training"]
    assert (training["num_train_scans"], training["num_validation_scans"]) == (3, 2)
    assert (training["uff"]["num_scans"], training["uff"]["updates"]) == (3, 2)
    assert training["decision"] == {"nu": 0.5, "max_iter": 1000, "seed": 42}
    assert manifest.weights["uff"]["kind"] == "trained"
    assert str(Path.home()) not in str(manifest)


def test_rows_of_the_detector_can_name_the_options_of_its_fit(fused: Detector):
    own = M3dmOptions(point_patches="28x28", uff="none", blur="float")
    told = (
        *("coreset", "dlf_scores", "dlf_schedule", "uff_pairing", "uff_schedule"),
        *("point_lambda", "rgb_lambda", "fusion_lambda"),
    )
    found = configuration_of(fused.artifact.manifest.parameters)
    assert {name: found[name] for name in told} == {name: getattr(own, name) for name in told}
    assert describe_configuration("m3dm", found).endswith("blur float; point_patches 28x28")


def test_artifact_equals_the_published_pipeline(fused: Detector, domes: list[Scan]):
    run_reference = reference_pipeline(fused.artifact, WEIGHTS)
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
    request = request_of(method, **changes)
    detector = load(fit_scans(domes[:2], domes[3:4], tmp_path / "detector", request))
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
    request = request_of("m3dm-rgb+3d", seed=3)
    first, second = (
        read_artifact(
            fit_scans(
                domes[:1],
                domes[3:4],
                tmp_path / name,
                request,
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
        path = fit_scans([empty, domes[1]], [], tmp_path / "one", request_of("m3dm-3d"))
    assert "skipped scan 'fixture'" in caplog.text
    assert "no validation scan" in caplog.text
    assert "no validation scan, and too few training scans for a threshold (1)" in caplog.text
    np.testing.assert_array_equal(read_artifact(path).golden().rgb, domes[1].rgb)
    detector = load(path)
    assert detector.artifact.manifest.threshold is None
    assert detector.infer_scan(domes[2]).is_anomalous is None


def test_fusion_from_a_file(domes: list[Scan], tmp_path: Path):
    facts = {"training": {"pairing": "published_dump", "schedule": "paper", "updates": 7}}
    file = save_uff(FeatureFusionBlock(384, 384, seed=5), tmp_path / "uff.safetensors", facts)
    request = request_of("m3dm-fusion", uff=file)
    detector = load(fit_scans(domes[:1], domes[3:4], tmp_path / "detector", request))
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
        with pytest.raises(WeightsError, match=message):
            fit_scans(
                domes[:1],
                [],
                tmp_path / "o",
                request_of("m3dm-fusion", uff=uff),
                progress=lambda *call: stages.append(call[0]),
            )
    assert stages == []
    assert list(tmp_path.iterdir()) == [file]


def test_only_empty_scans_are_an_error(
    domes: list[Scan], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    empty = replace(domes[0], xyz=np.zeros_like(domes[0].xyz))
    with pytest.raises(EmptyScanError, match="none of the 1 training scans .* foreground; check"):
        fit_scans([empty], [], tmp_path / "none", request_of("m3dm-3d"))
    assert "has 0 foreground points" in caplog.text
    assert "needs at least 32; check" in caplog.text
    assert not list(tmp_path.iterdir())


def test_no_scan_and_a_folder_of_others_are_errors(domes: list[Scan], tmp_path: Path):
    with pytest.raises(InvalidInputError, match="no training scan.*at least one nominal scan"):
        fit_scans([], [], tmp_path / "a", request_of("m3dm"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files"):
        fit_scans(domes[:1], [], tmp_path, request_of("m3dm"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coreset": "all"}, "coreset is 'all'; it must be one of code, paper"),
        ({"point_patches": "56"}, "point_patches is '56'; it must be one of 56x56, 28x28, groups"),
        ({"point_patches": "groups"}, "point_patches is 'groups' and there is a fusion bank"),
        ({"dlf_scores": "both"}, "dlf_scores is 'both'"),
        ({"dlf_schedule": "long"}, "dlf_schedule is 'long'"),
        ({"uff_pairing": "random"}, "uff_pairing is 'random'; it must be one of aligned, pub"),
        ({"threshold_quantile": 2}, "threshold_quantile is 2; it must be a number from 0 to 1"),
        ({"recipe": "best"}, "recipe 'best'; known are"),
        ({"rgb_lambda": float("nan")}, "rgb_lambda is nan; it must be a finite number"),
        ({"rgb_lambda": 0}, "rgb_lambda is 0.0; it must be above 0"),
        ({"uff_updates": 0}, "uff_updates is 0; it must be at least 1"),
        ({"method": "cfm"}, "cfm has no option 'point_patches'; it has: .*smoothing"),
    ],
)
def test_bad_options_are_errors_at_once(changes: dict, message: str):
    request = request_of("m3dm")
    of_request = {name: changes[name] for name in changes if name in vars(request)}
    options = {name: changes[name] for name in changes if name not in of_request}
    with pytest.raises(InvalidInputError, match=message):
        replace(request, **of_request, options={**request.options, **options})


def test_requests_become_options(tmp_path: Path):
    request = FitRequest(
        method="m3dm-rgb+3d",
        speed="small",
        options={
            **{"num_groups": 784, "point_patches": "28x28", "rgb_lambda": "0.5"},
            "bank_dtype": "float32",
        },
    )
    options = resolve_options(request)
    assert isinstance(options, M3dmOptions)
    assert (options.banks, options.decision, options.num_groups) == (("point", "rgb"), "svm", 784)
    assert (options.point_patches, options.lambdas) == ("28x28", {"point": 1.0, "rgb": 0.5})
    assert (options.precision, options.bank_dtype) == ("int8", "float32")  # asked for wins
    assert FitTask.of(request, [], tmp_path, silent).recipe.name == "m3dm"
