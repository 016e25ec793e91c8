"""Exporting an artifact's graphs: what is written, what is refused, and that the artifact is never
left half made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
from conftest import make_arrays
from PIL import Image
from robustness.replacing import writer_arguments
from test_artifact import rewrite_manifest
from tiny_artifacts import write_tiny_btf

import mmad_fast
from mmad_fast import Scan, load, scratch_folder
from mmad_fast.artifact import read_artifact, write_artifact
from mmad_fast.engine_record import EngineKey, engine_file_name, export_command
from mmad_fast.engines import engine_refusal, open_graph
from mmad_fast.errors import (
    ArtifactError,
    BackendUnavailableError,
    DataError,
    InvalidInputError,
    MmadFastError,
)
from mmad_fast.export import (
    Batch,
    artifact_update,
    deployment_graph,
    detector_export,
    export_detector,
    export_request,
    trial_run,
)
from mmad_fast.export.graph_cost import GraphCost
from mmad_fast.golden_replays import replay_engines

FP32 = EngineKey("onnx", "fp32", (1, 1, 1), ())
HALF = EngineKey("onnx", "fp16", (1, 1, 1), ())


@pytest.fixture
def copied(tiny_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact, tmp_path / "runs" / "artifact"))


def export(path: Path, **options: Any) -> detector_export.ExportReport:
    """An export to ONNX that is not timed, unless the options say otherwise."""
    return export_detector(path, **{"to": "onnx", "measure": False, **options})


def keys(path: Path) -> list[EngineKey]:
    return [record.key for record in read_artifact(path).manifest.engines]


def folder_of(path: Path) -> dict[str, bytes]:
    """All there is beside and in an artifact."""
    return {
        str(file.relative_to(path.parent)): file.read_bytes()
        for file in path.parent.rglob("*")
        if file.is_file()
    }


def require_tensorrt_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def test_the_artifact_holds_the_engine(copied: Path) -> None:
    report = export(copied)
    artifact = read_artifact(copied)
    assert keys(copied) == [FP32]
    assert report.record == artifact.manifest.engines[0]
    assert report.files == {
        name: (copied / name).stat().st_size for name in ("rgb.fp32.onnx", "points.fp32.onnx")
    }
    assert report.golden_difference is not None
    assert report.golden_difference < 1e-4
    assert (report.not_run, report.measured, report.notices) == (None, None, ())
    assert report.library == f"onnx {onnx.__version__}"
    opsets = onnx.load(copied / "rgb.fp32.onnx", load_external_data=False).opset_import
    assert [opset.version for opset in opsets if not opset.domain] == [23]
    listed = {*artifact.manifest.files, "manifest.json"}
    assert {file.name for file in copied.iterdir()} == listed
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_answer_of_an_export_is_that_of_the_detector(copied: Path) -> None:
    export(copied, precision="fp16")
    arrays = make_arrays(seed=3)
    own, half = load(copied), load(copied, precision="fp16")
    assert (own.engine_choice.precision, half.engine_choice.precision) == ("fp32", "fp16")
    assert half.engine_choice.files["rgb"].name == "rgb.fp16.onnx"
    assert (own.is_exact, half.is_exact) == (True, False)
    found, wanted = half.infer(*arrays), own.infer(*arrays)
    difference = float(np.abs(found.anomaly_map - wanted.anomaly_map).max())
    assert 0 < difference < 0.02 * wanted.anomaly_map.max()
    assert "fp16" in own.engine_choice.reason


def test_exports_stand_side_by_side_and_are_replaced(copied: Path) -> None:
    export(copied)
    export(copied, precision="fp16")
    before = read_artifact(copied).manifest.engines
    again = export(copied)
    assert keys(copied) == [HALF, FP32]
    assert read_artifact(copied).manifest.engines == (before[1], again.record)
    assert len(read_artifact(copied).engine_files()) == 3


def test_engines_of_several_gpus(copied: Path) -> None:
    require_tensorrt_rtx()
    for sms in ((86,), (89, 86)):
        report = export(copied, to="tensorrt-rtx", precision="fp16", sms=sms, cache=False)
        assert report.sms == tuple(sorted(sms))
        assert set(report.layers) == {"rgb", "points"}
        assert report.library.startswith("tensorrt-rtx 1.")
        assert all(size > 1000 for size in report.files.values())
    assert {name for name in read_artifact(copied).manifest.files if "engine" in name} == {
        f"{graph}.fp16.{sms}.tensorrt-rtx.engine"
        for graph in ("rgb", "points")
        for sms in ("sm86", "sm86-sm89")
    }
    assert load(copied).engine_choice.engine == "onnxruntime"
    with pytest.raises(BackendUnavailableError, match=r"tensorrt-rtx.*mmad-fast export|cannot run"):
        load(copied, engine="tensorrt", precision="fp16")


def test_a_precision_that_onnx_runtime_has_no_kernels_for(copied: Path) -> None:
    report = export(copied, precision="bf16")
    assert report.record.golden is None
    assert "it has no bf16 kernels for device 'cpu'; take engine 'openvino'" in str(report.not_run)
    with pytest.raises(BackendUnavailableError, match="it has no bf16 kernels"):
        load(copied, engine="onnxruntime", precision="bf16")
    if engine_refusal("openvino") is None:
        assert load(copied, precision="bf16").engine_choice.engine == "openvino"
    # Where this fails, ONNX Runtime has got them: take bf16 out of UNSUPPORTED_PRECISIONS.
    words = "cannot load the graph: .*; export it in another precision, or take another engine"
    with pytest.raises(ArtifactError, match=words):
        open_graph(copied / "rgb.bf16.onnx")


def test_a_batch_that_a_detector_does_not_run(copied: Path) -> None:
    report = export(copied, batch=4)
    assert report.record.batch == {"min": 4, "opt": 4, "max": 4}
    assert "rgb.fp32.batch4.onnx" in report.files
    assert report.not_run is not None
    assert "takes batches of 4, a detector runs one scan" in report.not_run
    (notice,) = report.notices  # said where the engine is not tried, too
    assert "a detector runs one scan at a time and does not use batches of 4 and more" in notice
    assert report.record.golden is None
    assert load(copied).engine_choice.files["rgb"].name == "rgb.onnx"


def test_a_dynamic_batch_runs_one_scan(copied: Path) -> None:
    report = export(copied, batch=Batch(1, 4, 8))
    assert "points.fp32.batch1-4-8.onnx" in report.files
    assert report.golden_difference is not None
    assert report.golden_difference < 1e-4


def test_times_are_of_one_run_and_choose_the_engine(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_run, "TIMING_BUDGET_S", 0.0)
    export(copied, batch=Batch(1, 1, 2), measure=True)
    report = export(copied, measure=True)
    manifest = read_artifact(copied).manifest
    measured = [manifest.measured, *(record.measured for record in manifest.engines)]
    for times in measured:
        assert times is not None
        assert (times["engine"], times["threads"]) == ("onnxruntime", report.measured["threads"])
        assert times["p50_ms"] == pytest.approx(sum(times["graph_ms"].values()), abs=1e-3)
    assert report.own_p50_ms == measured[0]["p50_ms"]

    def slow_but_the_last(graphs: list) -> list[dict[str, float]]:
        return [{"rgb": 90.0 - index, "points": 1.0} for index in range(len(graphs))]

    monkeypatch.setattr(trial_run, "_time_in_turns", slow_but_the_last)
    report = export(copied, measure=True)
    assert (report.own_p50_ms, report.measured["p50_ms"]) == (91.0, 89.0)
    choice = load(copied).engine_choice
    assert choice.files["rgb"].name == "rgb.fp32.onnx"
    assert "89" in choice.reason


def test_an_fp32_engine_that_differs_is_not_written(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_of(copied)
    real = detector_export.deployment_graph

    def wrong(path: Path, **options: Any) -> onnx.ModelProto:
        model = real(path, **options)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype.kind == "f" and array.size > 10:
                wrong_array = array * array.dtype.type(1.5)
                tensor.CopyFrom(onnx.numpy_helper.from_array(wrong_array, tensor.name))
        return model

    monkeypatch.setattr(detector_export, "deployment_graph", wrong)
    with pytest.raises(MmadFastError, match=r"onnx fp32 engine differs .* Nothing was written"):
        export(copied)
    assert folder_of(copied) == before
    report = export(copied, precision="fp16")  # an approximation's difference is recorded
    assert report.golden_difference is not None
    assert report.golden_difference > 1e-3


def test_an_answer_that_is_no_number_is_not_written(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_of(copied)

    def overflow(detector: mmad_fast.Detector) -> None:
        raise MmadFastError("the detector's answer is not finite")

    monkeypatch.setattr(mmad_fast.Detector, "replay_golden", overflow)
    with pytest.raises(MmadFastError, match=r"fp16 engine fails .*not finite.*bf16 has the range"):
        export(copied, precision="fp16")
    assert folder_of(copied) == before


@pytest.mark.parametrize("place", ["write_graph", "try_engine", "add_engine"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_the_artifact(
    copied: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    export(copied, precision="fp16")
    before = folder_of(copied)

    def interrupt(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(detector_export, place, interrupt)
    wanted = (KeyboardInterrupt, ArtifactError)
    with pytest.raises(wanted, match="^$|No space left on device.*choose a folder with room"):
        export(copied)
    assert folder_of(copied) == before


def test_a_loaded_detector_outlives_an_export(copied: Path, scan_arrays: Any) -> None:
    detector = load(copied)
    expected = detector.infer(*scan_arrays).image_score
    export(copied)
    assert detector.infer(*scan_arrays).image_score == expected
    assert detector.replay_golden().agrees


def test_unchanged_files_are_linked_in_place_and_copied_elsewhere(
    copied: Path, tmp_path: Path
) -> None:
    before = (copied / "tensors.safetensors").stat().st_ino
    export(copied)
    assert (copied / "tensors.safetensors").stat().st_ino == before
    export(copied, precision="fp16", output=tmp_path / "new" / "artifact")
    assert (tmp_path / "new" / "artifact" / "tensors.safetensors").stat().st_ino != before
    assert keys(tmp_path / "new" / "artifact") == [FP32, HALF]
    assert keys(copied) == [FP32]


def test_where_files_cannot_be_linked_they_are_copied(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    export(copied)
    assert keys(copied) == [FP32]


def test_engines_of_an_artifact_that_is_replaced_are_its_own(copied: Path) -> None:
    """Each is opened when it is replayed, by when another detector stands at the path."""
    targets = ["onnx", *["openvino"] * (engine_refusal("openvino") is None)]
    for to in targets:
        export(copied, to=to)
    artifact = read_artifact(copied)
    expected = artifact.golden().expected_score
    refit(copied)
    replays = [one for one in replay_engines(artifact) if one.replay is not None]
    assert {one.files.target for one in replays} == set(targets)
    for one in replays:
        assert one.replay is not None
        assert (one.verdict, one.replay.expected_score) == ("agrees", expected), one
    artifact.files.release()
    with pytest.raises(ArtifactError, match="replaced since it was loaded"):
        artifact.golden()


def test_what_another_process_exported_meanwhile_is_kept(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detector_export.try_engine

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(detector_export, "try_engine", real)
        export(copied, precision="fp16")
        return real(*arguments)

    monkeypatch.setattr(detector_export, "try_engine", slow)
    export(copied)
    assert keys(copied) == [HALF, FP32]


def refit(path: Path) -> None:
    """Another detector in the same place."""
    arguments = writer_arguments(path)
    golden = replace(arguments["golden"], expected_score=0.25)
    write_artifact(path, **{**arguments, "golden": golden})


def test_a_detector_fitted_again_meanwhile_is_not_touched(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detector_export.try_engine

    def slow(*arguments: Any) -> Any:
        trial = real(*arguments)
        refit(copied)
        return trial

    monkeypatch.setattr(detector_export, "try_engine", slow)
    with pytest.raises(ArtifactError, match="fitted again since this export began; export it"):
        export(copied)
    assert keys(copied) == []
    assert read_artifact(copied).golden().expected_score == 0.25


@pytest.mark.parametrize("has_exchange", [True, False])
def test_what_came_right_before_the_replacement_is_not_lost(
    copied: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool
) -> None:
    """Another process is quicker by an instant: once with another engine, once with a new fit."""
    if not has_exchange:
        monkeypatch.setattr(scratch_folder, "_exchange", lambda one, other: False)
    real = artifact_update.replace_folder

    def late(other: Callable[[], object]) -> None:
        def replace_folder(scratch: Path, target: Path) -> None:
            monkeypatch.setattr(artifact_update, "replace_folder", real)
            other()
            real(scratch, target)

        monkeypatch.setattr(artifact_update, "replace_folder", replace_folder)

    late(lambda: export(copied, precision="fp16"))
    export(copied)
    assert keys(copied) == [HALF, FP32]
    assert load(copied).replay_golden().agrees
    late(lambda: refit(copied))
    with pytest.raises(ArtifactError, match="fitted again since this export began; export it"):
        export(copied, precision="fp16")
    assert keys(copied) == []
    assert read_artifact(copied).golden().expected_score == 0.25
    assert [path.name for path in copied.parent.iterdir()] == ["artifact"]


def test_output_takes_a_copy_of_the_same_detector_only(copied: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    export(copied, output=new)
    export(copied, precision="fp16", output=new)
    assert keys(new) == [FP32, HALF]
    refit(new)
    with pytest.raises(ArtifactError, match="holds another detector than .*name a new folder"):
        export(copied, output=new)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds other files .*\(notes\.txt\)"):
        export(copied, output=tmp_path / "full")
    with pytest.raises(ArtifactError, match="is a file; name a new folder"):
        export(copied, output=tmp_path / "full" / "notes.txt")
    with pytest.raises(InvalidInputError, match="path is 3; it must be a folder's path"):
        export(copied, output=3)


def test_an_artifact_that_may_not_be_replaced_is_found_before_building(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector_export, "write_graph", lambda *_, **__: pytest.fail("built"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(ArtifactError, match=r"may not be written; or .*\(--output\)"):
            export(copied)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda *_: True)
        with pytest.raises(ArtifactError, match=r"is a mount point.*\(--output\)"):
            export(copied)
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds notes\.txt, which its manifest does not list"):
        export(copied)


def test_a_lost_or_damaged_engine_file_names_the_command(copied: Path) -> None:
    export(copied, precision="fp16")
    export(copied)
    (copied / "rgb.fp16.onnx").unlink()
    command = export_command(copied, HALF)
    with pytest.raises(ArtifactError, match=f"rgb.fp16.onnx is missing.*again: {command}$"):
        load(copied)
    with pytest.raises(ArtifactError, match="fp16"):
        export(copied)
    export(copied, precision="fp16")
    (copied / "points.fp32.onnx").write_bytes(b"x" * (copied / "points.fp32.onnx").stat().st_size)
    with pytest.raises(ArtifactError, match=r"points\.fp32\.onnx has been changed"):
        load(copied)
    export(copied)
    assert load(copied).replay_golden().agrees


def test_an_engine_of_a_newer_version_is_left_alone(copied: Path) -> None:
    export(copied, precision="fp16")

    def rename(content: dict) -> None:
        content["engines"][0]["target"] = "hologram"

    rewrite_manifest(copied, rename)
    assert load(copied).replay_golden().agrees
    with pytest.raises(BackendUnavailableError, match="hologram"):
        load(copied, precision="fp16")
    export(copied)
    assert [key.target for key in keys(copied)] == ["hologram", "onnx"]
    unknown = [row for row in replay_engines(read_artifact(copied)) if row.engine is None]
    assert [row.files.target for row in unknown] == ["hologram"]
    assert "no engine of this version reads 'hologram'" in unknown[0].reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda engine: engine.pop("sms"),
            r"engines\[0\] has the wrong fields \(missing: \['sms'\]",
        ),
        (lambda engine: engine.update(target=3), r"engines\[0\]\.target is 3; it must be a name"),
        (lambda engine: engine.update(sms="86"), r"engines\[0\]\.sms is '86'; it must be a list"),
        (lambda engine: engine.update(batch={"min": 1}), r"batch has the wrong .*'max', 'opt'"),
        (lambda engine: engine.update(graphs={"rgb": []}), r"graphs\.rgb is \[\]; .* list of 1"),
        (lambda engine: engine["graphs"].pop("rgb"), r"has the graphs \['points'\], not rgb"),
        (lambda engine: engine["graphs"].update(rgb=["../x"]), r"is '\.\./x'; it must be a file's"),
    ],
)
def test_a_damaged_record(copied: Path, change: Any, words: str) -> None:
    export(copied)
    rewrite_manifest(copied, lambda content: change(content["engines"][0]))
    with pytest.raises(ArtifactError, match=words):
        load(copied)
    rewrite_manifest(copied, lambda content: content.update(engines={}))
    with pytest.raises(ArtifactError, match=r"engines is \{\}; it must be a list"):
        load(copied)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "abacus"}, "to is 'abacus'; it must be one of onnx, openvino, tensorrt-rtx"),
        ({"to": None}, "to is None"),
        ({"precision": "fp4"}, "precision is 'fp4'; it must be one of fp32, fp16"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"batch": "1,4,8"}, "batch is '1,4,8'; it must be an integer"),
        ({"sms": [86]}, r"bound to no compute capability; leave sms \(--sm\) out"),
        ({"to": "tensorrt-rtx"}, r"needs the compute capabilities .*\(--sm\), some of 75, 80"),
        ({"to": "tensorrt-rtx", "sms": [89, 86, 86]}, "sms names 86 twice"),
        ({"to": "tensorrt-rtx", "sms": [86, 87]}, "does not build for 87, only for 75.*'tensorrt'"),
        ({"to": "tensorrt-rtx", "sms": "86"}, "sms is '86'; it must be a list of numbers"),
        ({"to": "tensorrt-rtx", "sms": [8.6]}, "sms is 8.6; it must be an integer"),
        ({"calibration": "data"}, "precision 'fp32' has no ranges to take from scans"),
        ({"precision": "int8", "category": "x"}, "no calibration data set is given"),
        ({"precision": "int8", "calibration": 3}, "calibration is 3; it must be a data set's"),
        ({"precision": "int8", "calibration": []}, "calibration is a list of 0 scans"),
        ({"precision": "int8", "calibration": [1]}, "must hold one mmad_fast.Scan or more"),
    ],
)
def test_bad_arguments_are_named(tiny_artifact: Path, options: dict, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        export(tiny_artifact, **options)


def test_what_is_not_installed_is_named(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "TensorRT is not installed; install it: pip install tensorrt"
    with monkeypatch.context() as patch:
        patch.setattr(export_request, "library_refusal", lambda name: refusal)
        with pytest.raises(BackendUnavailableError, match="export to tensorrt cannot .*pip inst"):
            export(tiny_artifact, to="tensorrt")
    with monkeypatch.context() as patch:
        patch.setattr(export_request, "library_refusal", lambda name: None)
        patch.setattr(export_request, "gpu_refusal", lambda: "there is no NVIDIA driver")
        with pytest.raises(BackendUnavailableError, match="there is no NVIDIA driver"):
            export(tiny_artifact, to="tensorrt")
    with monkeypatch.context() as patch:
        patch.setattr(export_request, "engine_refusal", lambda name: "openvino is not there")
        with pytest.raises(BackendUnavailableError, match="export to openvino cannot be made here"):
            export(tiny_artifact, to="openvino")
    patch = monkeypatch
    patch.setitem(sys.modules, "onnx", None)
    with pytest.raises(mmad_fast.errors.MissingDependencyError, match=r"mmad-fast\[export\]"):
        export(tiny_artifact)


def test_a_detector_fitted_in_int8_says_what_to_do(copied: Path) -> None:
    rewrite_manifest(copied, lambda content: content["parameters"].update(precision="int8"))
    with pytest.raises(InvalidInputError, match=r"fitted with precision='int8'.*fit it again"):
        export(copied)
    assert load(copied).engine_choice.precision == "int8"


def write_set(root: Path, scale: float = 1.0, num: int = 3) -> Path:
    """A data set of one category with nominal training scans."""
    folder = root / "disc" / "train" / "good"
    for index in range(num):
        rgb, xyz = make_arrays(index)
        for kind in ("rgb", "xyz"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(folder / "rgb" / f"{index:03d}.png")
        tifffile.imwrite(
            folder / "xyz" / f"{index:03d}.tiff", xyz * np.float32(scale), photometric="rgb"
        )
    return root


def test_int8_takes_its_ranges_from_scans(copied: Path, tmp_path: Path) -> None:
    report = export(copied, precision="int8", calibration=write_set(tmp_path / "set"))
    assert (report.record.calibration_scans, report.notices) == (3, ())
    assert report.golden_difference is not None
    assert 0 < report.golden_difference < 0.2
    scans = [Scan.from_arrays(*make_arrays(seed)) for seed in range(2)]
    assert export(copied, precision="int8", calibration=scans).record.calibration_scans == 2
    alone = export(copied, precision="int8")
    assert alone.record.calibration_scans == 1
    assert "calibrated with the golden scan alone" in alone.notices[0]


def test_a_graph_that_8_bits_would_not_change_is_named_before_scans_are_run(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_graph, "graph_cost", lambda model: GraphCost(10, 9, 1))
    monkeypatch.setattr(detector_export, "calibrate", pytest.fail)
    with pytest.raises(InvalidInputError, match=r"^(rgb|points)\.onnx is a network of .* \(90% of"):
        export(copied, precision="int8", calibration=write_set(tmp_path / "set"))


def test_calibration_scans_that_do_not_fit(copied: Path, tmp_path: Path) -> None:
    data = write_set(tmp_path / "set", scale=1000.0)
    with pytest.raises(InvalidInputError, match="cannot be metres.*unit='mm'"):
        export(copied, precision="int8", calibration=data)
    assert export(copied, precision="int8", calibration=data, unit="mm").notices == ()
    with pytest.raises(DataError, match="no category 'cube'; it has: disc"):
        export(copied, precision="int8", calibration=data, category="cube")
    with pytest.raises(DataError, match="does not exist"):
        export(copied, precision="int8", calibration=tmp_path / "absent")
    empty = np.zeros((96, 96, 3), np.float32)
    with pytest.raises(InvalidInputError):
        export(copied, precision="int8", calibration=[Scan.from_arrays(make_arrays()[0], empty)])
    assert keys(copied) == [EngineKey("onnx", "int8", (1, 1, 1), ())]


def test_scans_of_another_part_are_noticed(copied: Path) -> None:
    def lower(content: dict) -> None:
        content["threshold"]["value"] = 1e-9

    rewrite_manifest(copied, lower)
    scans = [Scan.from_arrays(*make_arrays(seed)) for seed in range(2)]
    report = export(copied, precision="int8", calibration=scans)
    assert "most calibration scans are far beyond the detector's threshold" in report.notices[0]


def test_doctor_compares_approximations_with_their_record(copied: Path) -> None:
    export(copied, precision="fp16")

    def verdicts() -> dict[str, str | None]:
        replays = replay_engines(read_artifact(copied), engine="onnxruntime")
        return {replay.files.label: replay.verdict for replay in replays}

    assert verdicts() == {"onnx fp32": "agrees", "onnx fp16": "agrees"}
    real = read_artifact(copied).manifest.engines[0].golden

    def record(golden: dict | None) -> None:
        rewrite_manifest(copied, lambda content: content["engines"][0].update(golden=golden))

    record({**real, "map_difference": 0.0, "score": load(copied).replay_golden().expected_score})
    tight = verdicts()["onnx fp16"]
    assert tight == ("agrees" if real["map_difference"] <= 1e-3 else "differs")
    record({**real, "engine": "another"})
    assert verdicts()["onnx fp16"] == "approximate"
    record(None)
    assert verdicts()["onnx fp16"] == "approximate"


def test_names_of_files_tell_engines_apart() -> None:
    batches = [(1, 1, 1), (4, 4, 4), (1, 4, 4), (1, 1, 4), (1, 4, 8)]
    all_keys = [
        EngineKey("tensorrt-rtx", precision, batch, sms)
        for precision in ("fp16", "bf16")
        for batch in batches
        for sms in ((86,), (89,), (86, 89))
    ]
    names = {engine_file_name("rgb", key, "tensorrt-rtx.engine") for key in all_keys}
    assert len(names) == len(all_keys)
    assert "rgb.fp16.sm86-sm89.tensorrt-rtx.engine" in names
    key = EngineKey("tensorrt-rtx", "fp16", (1, 4, 8), (86, 89))
    assert export_command("runs/a b", key) == (
        "mmad-fast export 'runs/a b' --to tensorrt-rtx --precision fp16 --sm 86,89 --batch 1,4,8"
    )


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "triton", "timm", "sklearn", "scipy")))
import mmad_fast
assert not {{"onnx", "numpy"}} & set(sys.modules)
import mmad_fast.export
assert "numpy" not in sys.modules
report = mmad_fast.export.export_detector({path!r}, to="onnx", precision={precision!r})
print(report.golden_difference, "onnxruntime" in sys.modules)
"""


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_exporting_needs_no_torch(copied: Path, precision: str) -> None:
    program = WITHOUT_TORCH.format(path=str(copied), precision=precision)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) < 0.2


def test_a_detector_without_networks_has_nothing_to_export(tmp_path: Path) -> None:
    artifact = write_tiny_btf(tmp_path / "artifact")
    with pytest.raises(InvalidInputError, match="has no networks, so there is nothing to export"):
        export_detector(artifact, to="openvino")
