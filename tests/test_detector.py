"""The torch-free detector: answers, threads, and every kind of bad input."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIT_HALF, make_arrays
from numpy.typing import NDArray

import mmad_fast
from mmad_fast.detector import GoldenReplay, open_detector
from mmad_fast.engines import Engine, open_graph
from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    EmptyScanError,
    InvalidInputError,
)
from mmad_fast.methods.cfm.options import CfmOptions
from mmad_fast.methods.family import get_family
from mmad_fast.methods.m3dm.options import M3dmOptions
from mmad_fast.whole_folder import write_manifest


@pytest.fixture(scope="module")
def detector(tiny_artifact: Path) -> mmad_fast.Detector:
    return mmad_fast.load(tiny_artifact)


def test_result_of_a_good_scan(detector, scan_arrays) -> None:
    result = detector.infer(*scan_arrays, name="disc")
    assert result.anomaly_map.shape == (56, 56)
    assert result.native_anomaly_map.shape == (96, 96)
    assert result.image_score == pytest.approx(result.anomaly_map.max())
    assert result.threshold == pytest.approx(1.5 * result.image_score)
    assert result.is_anomalous is False
    assert result.name == "disc"
    assert next(iter(result.stage_ms)) == "preprocess"
    assert all(ms >= 0 for ms in result.stage_ms.values())


def change_family(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Detectors that are loaded from now on find another record of CFM."""
    changed = replace(get_family("cfm"), **changes)
    monkeypatch.setattr("mmad_fast.detector.get_family", lambda name: changed)


def test_a_threshold_is_one_of_the_map_where_the_score_is_its_maximum(
    tiny_artifact, scan_arrays, monkeypatch
) -> None:
    detector = mmad_fast.load(tiny_artifact)
    result = detector.infer(*scan_arrays)
    assert result.map_threshold == result.threshold
    assert detector.family is get_family("cfm")
    change_family(monkeypatch, score_is_map_maximum=False)
    result = mmad_fast.load(tiny_artifact).infer(*scan_arrays)
    assert result.threshold is not None
    assert result.map_threshold is None


def test_a_detector_tells_what_it_was_fitted_with(detector) -> None:
    assert detector.method == "cfm-t"
    assert isinstance(detector.options, CfmOptions)
    assert (detector.options.num_groups, detector.options.point_layers) == (24, (0,))
    assert detector.is_exact


def test_a_score_near_zero_is_compared_by_the_numbers_behind_it(detector, monkeypatch) -> None:
    assert detector.score_scale(-0.5) == 0.5
    assert detector.score_scale(0.0) > 0
    monkeypatch.setattr(CfmOptions, "score_offset", M3dmOptions(score_offset=-3.0).score_offset)
    assert detector.score_scale(1e-6) == 3.0
    assert GoldenReplay(1e-6, 2e-3, 0.0, detector.score_scale(1e-6)).agrees
    assert not GoldenReplay(1e-6, 4e-3, 0.0, detector.score_scale(1e-6)).agrees


def test_a_map_of_8_bits_may_differ_by_its_steps(detector, monkeypatch) -> None:
    assert detector.options.map_step == detector.replay_golden().map_step == 0
    assert M3dmOptions(blur="float").map_step == 0
    step = M3dmOptions(blur="pil8bit").map_step
    assert step == pytest.approx(2 / 255)
    monkeypatch.setattr(CfmOptions, "map_step", step)
    assert detector.replay_golden().map_step == step
    for difference, agrees in ((0.0078, True), (0.0098, False)):
        assert GoldenReplay(1.0, 1.0, difference, 1.0, map_step=2 / 255).agrees is agrees
    assert not GoldenReplay(1.0, 1.0078, 0.0, 1.0, map_step=2 / 255).agrees


def test_a_device_that_a_family_has_no_detector_for(detector, monkeypatch) -> None:
    change_family(monkeypatch, pipelines={"cpu": get_family("cfm").pipelines["cpu"]})
    choice = replace(detector.engine_choice, device="cuda")
    words = "cfm-t detector does not run on .*'cuda', but on cpu; choose it with device="
    with pytest.raises(BackendUnavailableError, match=words):
        open_detector(detector.artifact, choice)
    assert open_detector(detector.artifact, detector.engine_choice).options == detector.options


class Recorded:
    """An engine that keeps what it is given."""

    def __init__(self, engine: Engine) -> None:
        self.input_shapes, self.output_shapes = engine.input_shapes, engine.output_shapes
        self.inputs: list[dict[str, NDArray]] = []
        self._engine = engine

    def run(self, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        self.inputs.append(dict(inputs))
        return self._engine.run(inputs)


def test_graphs_can_be_run_by_what_is_put_around_their_engines(detector, scan_arrays) -> None:
    engines: dict[str, Recorded] = {}

    def record(name: str, engine: Engine) -> Engine:
        engines[name] = Recorded(engine)
        return engines[name]

    choice = replace(detector.engine_choice, wrap=record)
    observed = open_detector(detector.artifact, choice)
    assert set(engines) == set(detector.artifact.manifest.graphs)
    result, expected = observed.infer(*scan_arrays), detector.infer(*scan_arrays)
    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)
    for name, engine in engines.items():
        (inputs,) = engine.inputs
        shapes = {key: list(array.shape) for key, array in inputs.items()}
        assert shapes == detector.artifact.manifest.graphs[name]["inputs"]
    detector.infer(*scan_arrays)  # which stays as it was
    assert [len(engine.inputs) for engine in engines.values()] == [1, 1]


def test_a_graph_that_is_missing_is_named_with_those_that_are_there(detector) -> None:
    choice = detector.engine_choice
    words = r"no graph 'depth' \(it has: rgb, points\); it is incomplete or of another version"
    with pytest.raises(ArtifactError, match=words):
        choice.open("depth")
    with pytest.raises(ArtifactError, match=words):
        choice.open_on_device("depth", device_index=0, stream=0)


def test_engines_get_the_threads_that_were_asked_for(tiny_artifact, monkeypatch) -> None:
    asked = []

    def record(path: Path, *, num_threads: int | None, **options: Any) -> Engine:
        asked.append(num_threads)
        return open_graph(path, num_threads=num_threads, **options)

    monkeypatch.setattr("mmad_fast.engines.selection.open_graph", record)
    detector = mmad_fast.load(tiny_artifact, num_threads=3)
    assert detector.engine_choice.num_threads == 3
    assert mmad_fast.load(tiny_artifact).engine_choice.num_threads is None
    assert asked == [3, 3, None, None]


def test_a_slip_of_the_code_is_not_taken_for_a_damaged_artifact(detector, monkeypatch) -> None:
    def from_artifact(*arguments: object, **options: object) -> None:
        raise KeyError("a slip")

    monkeypatch.setattr("mmad_fast.methods.cfm.detector.CfmPipeline.from_artifact", from_artifact)
    with pytest.raises(KeyError, match="a slip"):
        open_detector(detector.artifact, detector.engine_choice)


def test_the_golden_scan_is_answered_as_recorded(detector) -> None:
    replay = detector.replay_golden()
    assert replay.agrees
    assert replay.score == pytest.approx(replay.expected_score, rel=1e-5)


def test_the_engine_is_named_with_its_reason(detector, tiny_artifact) -> None:
    choice = detector.engine_choice
    assert (choice.engine, choice.precision) == ("onnxruntime", "fp32")
    assert choice.files["points"] == tiny_artifact / "points.onnx"
    assert choice.reason
    same = mmad_fast.load(tiny_artifact, engine="onnxruntime", precision="fp32")
    assert same.engine_choice.files == choice.files
    assert "asked for" in same.engine_choice.reason


def test_a_precision_that_was_not_exported_names_the_command(tiny_artifact) -> None:
    with pytest.raises(BackendUnavailableError, match="mmad-fast export .*--to onnx .*int8"):
        mmad_fast.load(tiny_artifact, precision="int8")
    with pytest.raises(InvalidInputError, match="precision is 8; it must be a name"):
        mmad_fast.load(tiny_artifact, precision=8)


def test_infer_by_path_loads_once(tiny_artifact, scan_arrays, detector, monkeypatch) -> None:
    first = mmad_fast.infer(tiny_artifact, *scan_arrays)
    monkeypatch.setattr("mmad_fast.detector.load", lambda path: pytest.fail("loaded again"))
    again = mmad_fast.infer(str(tiny_artifact), *scan_arrays)
    assert first.image_score == again.image_score == detector.infer(*scan_arrays).image_score
    assert mmad_fast.infer(detector, *scan_arrays).image_score == first.image_score


def test_a_replaced_artifact_is_loaded_again_whatever_the_clock_says(
    tiny_artifact, tmp_path, scan_arrays
) -> None:
    copied = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    manifest = copied / "manifest.json"
    first, stamp = mmad_fast.infer(copied, *scan_arrays), manifest.stat()
    content = json.loads(manifest.read_text())
    content.pop("manifest_sha256")
    content["threshold"]["value"] *= 3
    write_manifest(content, copied)
    os.utime(manifest, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert mmad_fast.infer(copied, *scan_arrays).threshold == pytest.approx(3 * first.threshold)


def test_a_detector_can_be_handed_to_a_pool(tiny_artifact, scan_arrays, monkeypatch) -> None:
    monkeypatch.chdir(tiny_artifact.parent)
    detector = mmad_fast.load(tiny_artifact.name, engine="onnxruntime", num_threads=1)
    detector.threshold = 17.0
    monkeypatch.chdir("/")
    assert detector.replay_golden().agrees
    expected = detector.infer(*scan_arrays)
    with get_context("spawn").Pool(1) as pool:
        result = pool.apply(detector.infer, scan_arrays)
        choice = pool.apply(getattr, (detector, "engine_choice"))
    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)
    assert (result.image_score, result.threshold) == (expected.image_score, 17.0)
    assert (choice.engine, choice.device, choice.num_threads) == ("onnxruntime", "cpu", 1)
    copied = copy.deepcopy(detector)
    assert copied is not detector
    assert copied.infer(*scan_arrays).image_score == expected.image_score


def test_a_detector_whose_artifact_is_another_by_now_is_not_handed_over(
    tiny_artifact, tmp_path
) -> None:
    copied = Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))
    pickled = pickle.dumps(mmad_fast.load(copied))
    content = json.loads((copied / "manifest.json").read_text())
    content.pop("manifest_sha256")
    content["threshold"]["value"] *= 3
    write_manifest(content, copied)
    words = f"{copied}: the artifact was replaced since the detector was loaded .*load it again"
    with pytest.raises(ArtifactError, match=words):
        pickle.loads(pickled)


def test_wrapped_engines_are_not_handed_over(detector) -> None:
    choice = replace(detector.engine_choice, wrap=lambda name, engine: engine)
    with pytest.raises(InvalidInputError, match="wrapped .*load its artifact there"):
        pickle.dumps(open_detector(detector.artifact, choice))


def test_millimetres_are_metres(detector, scan_arrays) -> None:
    rgb, xyz = scan_arrays
    metres, millimetres = detector.infer(rgb, xyz), detector.infer(rgb, xyz * 1000, unit="mm")
    assert millimetres.image_score == pytest.approx(metres.image_score, rel=1e-3)


def test_threads_give_the_same_answers(detector) -> None:
    scans = [make_arrays(seed) for seed in range(6)]
    expected = [detector.infer(*scan).image_score for scan in scans]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = list(pool.map(lambda scan: detector.infer(*scan), scans))
            assert [result.image_score for result in results] == expected


def test_arrays_of_other_layouts(detector, scan_arrays) -> None:
    rgb, xyz = scan_arrays
    expected = detector.infer(rgb, xyz).image_score
    wide_rgb, wide_xyz = np.repeat(rgb, 2, axis=1)[:, ::2], np.repeat(xyz, 2, axis=1)[:, ::2]
    fixed_rgb, fixed_xyz = rgb.copy(), xyz.astype(np.float64)
    fixed_rgb.flags.writeable = fixed_xyz.flags.writeable = False
    for arrays in ((wide_rgb, wide_xyz), (fixed_rgb, fixed_xyz), (np.asfortranarray(rgb), xyz)):
        assert detector.infer(*arrays).image_score == pytest.approx(expected, rel=1e-6)


def test_missing_points_may_be_nan_or_zero(detector, scan_arrays) -> None:
    rgb, xyz = scan_arrays
    zeros, nans, infinite = xyz.copy(), xyz.copy(), xyz.copy()
    zeros[40:44, 40:44], nans[40:44, 40:44], infinite[40:44, 40:44] = 0, np.nan, np.inf
    scores = [detector.infer(rgb, array).image_score for array in (zeros, nans, infinite)]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rgb, xyz: (rgb.astype(np.float32), xyz), "rgb has dtype float32; it must be uint8"),
        (lambda rgb, xyz: (rgb, xyz.astype(np.int16)), "xyz has dtype int16; it must be float32"),
        (lambda rgb, xyz: (rgb[..., 0], xyz), r"rgb has shape \(96, 96\); it must be \(H, W, 3\)"),
        (lambda rgb, xyz: (rgb, xyz[..., :2]), r"xyz has shape \(96, 96, 2\)"),
        (
            lambda rgb, xyz: (rgb[:50], xyz),
            "rgb is 50x96 and xyz is 96x96; they must be registered",
        ),
        (lambda rgb, xyz: (rgb[:0], xyz[:0]), r"shape \(0, 96, 3\)"),
        (lambda rgb, xyz: (rgb, xyz * 1000), r"cannot be metres.*unit='mm'"),
        (lambda rgb, xyz: (None, xyz), r"rgb has shape \(\)"),
        (lambda rgb, xyz: (rgb, "xyz.tiff"), r"xyz has shape \(\)"),
        (lambda rgb, xyz: ([[[1, 2, 3]], [[1]]], xyz), "rgb cannot be read as an array"),
        (lambda rgb, xyz: (rgb, [[0.5], [0.5, 1]]), "xyz cannot be read as an array"),
    ],
)
def test_bad_arrays_are_named(detector, scan_arrays, change, words) -> None:
    with pytest.raises(InvalidInputError, match=words):
        detector.infer(*change(*scan_arrays))


@pytest.mark.parametrize("unit", ["inch", None, ["m"], np.array(["m"])])
def test_an_unknown_unit(detector, scan_arrays, unit) -> None:
    with pytest.raises(InvalidInputError, match="unit is .*; it must be 'm' or 'mm'"):
        detector.infer(*scan_arrays, unit=unit)


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_a_scan_without_points(detector, scan_arrays, fill) -> None:
    rgb, xyz = scan_arrays
    with pytest.raises(EmptyScanError, match="0 foreground points.*needs at least 16"):
        detector.infer(rgb, np.full_like(xyz, fill), name="empty")


def test_a_scan_of_background_alone(detector, scan_arrays) -> None:
    rgb, xyz = scan_arrays
    plane = xyz.copy()
    plane[..., 2] = 0.5
    with pytest.raises(EmptyScanError, match="foreground points"):
        detector.infer(rgb, plane)


def test_fewer_points_than_a_group(detector, scan_arrays) -> None:
    rgb, xyz = scan_arrays
    few = np.zeros_like(xyz)
    few[46:49, 46:49] = xyz[46:49, 46:49]
    with pytest.raises(EmptyScanError, match=r"has \d foreground points"):
        detector.infer(rgb, few)


def noise_arrays(scale: float) -> tuple[np.ndarray, np.ndarray]:
    rgb, xyz = make_arrays()
    noise = np.random.default_rng(1).uniform(-1, 1, xyz.shape) * scale
    return rgb, noise.astype(np.float32)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-3])
def test_coordinates_too_near_are_refused(detector, scale) -> None:
    with pytest.raises(InvalidInputError, match=r"reaches only .* m with unit='m', nearer than"):
        detector.infer(*noise_arrays(scale))


def test_coordinates_too_far_are_refused(detector) -> None:
    for scale in (26, 1e30):
        with pytest.raises(InvalidInputError, match=r"cannot be metres.*limit 20 m"):
            detector.infer(*noise_arrays(scale))


@pytest.mark.parametrize("scale", [0.1, 20.0])
def test_noise_of_an_allowed_extent_has_a_finite_answer(detector, scale) -> None:
    result = detector.infer(*noise_arrays(scale))
    assert np.isfinite(result.anomaly_map).all()
    assert result.image_score == result.anomaly_map.max() > 0


def test_metres_given_as_millimetres_are_refused(detector, scan_arrays) -> None:
    rgb, xyz = scan_arrays
    with pytest.raises(InvalidInputError, match=r"unit='mm'.*are metres, pass unit='m' \(--unit m"):
        detector.infer(rgb, xyz, unit="mm")


def test_small_scenes_are_allowed() -> None:
    rgb, xyz = make_arrays()
    shrunk = xyz * np.float32(0.1)  # as converted Eyecandies are
    assert mmad_fast.Scan.from_arrays(rgb, shrunk).xyz.max() == shrunk.max()
    empty = mmad_fast.Scan.from_arrays(rgb, np.zeros_like(xyz), unit="mm")
    assert not empty.xyz.any()


def test_masked_points_are_missing(scan_arrays) -> None:
    rgb, xyz = scan_arrays
    mask = np.zeros(xyz.shape, bool)
    mask[10, 20, 1] = mask[11, 21] = True
    masked = np.ma.MaskedArray(np.where(mask, np.float32(1e20), xyz), mask)
    expected = xyz.copy()
    expected[10, 20] = expected[11, 21] = 0
    np.testing.assert_array_equal(mmad_fast.Scan.from_arrays(rgb, masked).xyz, expected)


@pytest.mark.parametrize("size", [4, 31])
def test_a_scan_of_few_pixels_is_refused(detector, size) -> None:
    rgb, xyz = make_arrays(size=96)
    words = rf"scan 'tiny' is {size}x96 pixels; at least 32 a side are needed"
    with pytest.raises(InvalidInputError, match=words):
        detector.infer(rgb[:size], xyz[:size], name="tiny")
    detector.prepare(mmad_fast.Scan.from_arrays(rgb[:32], xyz[:32]))


@pytest.mark.parametrize("value", [None, 3, ["runs/bagel"]])
def test_no_detector_and_no_path(scan_arrays, value) -> None:
    with pytest.raises(InvalidInputError, match="path is .*must be a folder's path"):
        mmad_fast.load(value)
    with pytest.raises(InvalidInputError, match=r"detector is .*mmad_fast\.load.*path"):
        mmad_fast.infer(value, *scan_arrays)


@pytest.mark.parametrize("value", [None, [], 1])
def test_engine_and_device_must_be_names(tiny_artifact, value) -> None:
    for option in ("engine", "device"):
        with pytest.raises(InvalidInputError, match=f"{option} is .*must be a name, one of"):
            mmad_fast.load(tiny_artifact, **{option: value})


def test_unknown_engine_and_device(tiny_artifact) -> None:
    with pytest.raises(
        BackendUnavailableError, match="no engine 'abacus'; known are .*onnxruntime"
    ):
        mmad_fast.load(tiny_artifact, engine="abacus")
    with pytest.raises(BackendUnavailableError, match="no device 'tpu'; known are cpu, cuda"):
        mmad_fast.load(tiny_artifact, device="tpu")
    with pytest.raises(BackendUnavailableError, match="openvino' cannot run on device 'cuda'; it"):
        mmad_fast.load(tiny_artifact, engine="openvino", device="cuda")


@pytest.mark.parametrize("num_threads", [0, -1, 10**6, "2", 1.5])
def test_a_number_of_threads_out_of_range(tiny_artifact, num_threads) -> None:
    with pytest.raises(InvalidInputError, match="num_threads"):
        mmad_fast.load(tiny_artifact, num_threads=num_threads)


def test_runs_without_the_fit_half(tiny_artifact, tmp_path) -> None:
    """Loads and runs a detector where none of the fit half's packages can be imported."""
    rgb, xyz = make_arrays()
    np.savez(tmp_path / "scan.npz", rgb=rgb, xyz=xyz)
    program = f"""
import sys
sys.modules.update(dict.fromkeys({FIT_HALF!r}))
import numpy as np
import mmad_fast
scan = np.load({str(tmp_path / "scan.npz")!r})
result = mmad_fast.infer({str(tiny_artifact)!r}, scan["rgb"], scan["xyz"])
result.native_anomaly_map
import mmad_fast.data.selection, mmad_fast.ops, mmad_fast.report.pictures
print(result.image_score)
"""
    done = _run_python(program, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = mmad_fast.load(tiny_artifact).infer(rgb, xyz).image_score
    assert float(done.stdout) == pytest.approx(expected)


def test_the_run_half_imports_none_of_the_fit_half(tiny_artifact, tmp_path) -> None:
    program = f"""
import sys
import mmad_fast
mmad_fast.load({str(tiny_artifact)!r})
print(sorted({{name.split(".")[0] for name in sys.modules}} & set({FIT_HALF!r})))
"""
    assert _run_python(program, tmp_path).stdout.strip() == "[]"


def test_fitting_without_torch_names_the_extra(tmp_path) -> None:
    program = """
import sys
sys.modules["torch"] = None
import mmad_fast
mmad_fast.fit("data", "out")
"""
    done = _run_python(program, tmp_path)
    assert re.search(r"fitting needs torch.*pip install 'mmad-fast\[fit\]'", done.stderr), done


def _run_python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder
    )
