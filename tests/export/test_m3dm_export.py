"""An M3DM artifact in every target: its four graphs, one of which runs several times per scan."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from methods.conftest import dome_scan

pytest.importorskip("torch", reason="fitting needs torch")

from mmad_fast import Scan, load
from mmad_fast.artifact import read_artifact
from mmad_fast.engines import engine_refusal
from mmad_fast.engines.tensorrt_library import library_refusal
from mmad_fast.export import export_detector
from mmad_fast.golden_replays import DIFFERS, FAILS, replay_engines
from mmad_fast.methods.fit_request import FitRequest
from mmad_fast.methods.fit_run import fit_scans

GRAPHS = {"rgb", "points", "uff_point", "uff_rgb"}


def dome(seed: int) -> Scan:
    return dome_scan(seed, size=96)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = FitRequest.of(
        "m3dm-fusion",
        rgb_backbone="dinov2-vits14",
        rgb_weights="random",
        point_weights="random",
        rgb_layers=1,
        point_layers=(0,),
        num_groups=64,
        group_size=16,
        recipe="none",
        point_patches="28x28",
        uff_schedule="paper",
        uff_updates=2,
    )
    folder = tmp_path_factory.mktemp("m3dm")
    return fit_scans([dome(0), dome(1)], [dome(2)], folder / "artifact", request)


def copy_of(fitted: Path, folder: Path) -> Path:
    return Path(shutil.copytree(fitted, folder / "artifact"))


@pytest.mark.parametrize(
    ("target", "precision", "bound"),
    [
        ("onnx", "fp32", 0.0),
        ("openvino", "fp32", 0.0),
        ("onnx", "fp16", 0.2),
        ("onnx", "int8", 0.5),
    ],
)
def test_an_exported_engine_answers_as_the_fitted_detector(
    fitted: Path, tmp_path: Path, target: str, precision: str, bound: float
) -> None:
    """An fp32 engine whose answer is another one would have been refused."""
    engine = "openvino" if target == "openvino" else "onnxruntime"
    reason = engine_refusal(engine)
    if reason is not None:
        pytest.skip(reason)
    path = copy_of(fitted, tmp_path)
    calibration = [dome(0), dome(1)] if precision == "int8" else None
    report = export_detector(
        path, to=target, precision=precision, calibration=calibration, measure=False
    )
    assert set(report.record.graphs) == GRAPHS
    assert report.not_run is None
    assert report.golden_difference is not None
    if calibration is not None:
        assert report.record.calibration_scans == 2
    assert {replay.verdict for replay in replay_engines(read_artifact(path))} & {
        DIFFERS,
        FAILS,
    } == set()
    own = load(fitted)
    found = load(path, engine=engine, precision=precision).infer(dome(3).rgb, dome(3).xyz)
    wanted = own.infer(dome(3).rgb, dome(3).xyz)
    difference = float(np.abs(found.anomaly_map - wanted.anomaly_map).max())
    largest = float(np.abs(wanted.anomaly_map).max())
    assert difference <= (bound or own.options.map_step + 1e-3) * largest
    assert found.image_score == pytest.approx(wanted.image_score, rel=bound or 1e-3)


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_tensorrt_engines_are_built_of_all_graphs(
    fitted: Path, tmp_path: Path, precision: str
) -> None:
    reason = library_refusal("tensorrt-rtx")
    if reason is not None:
        pytest.skip(reason)
    path = copy_of(fitted, tmp_path)
    report = export_detector(
        path,
        to="tensorrt-rtx",
        precision=precision,
        sms=[89],
        calibration=None if precision == "fp16" else [dome(0), dome(1)],
        cache=False,
        measure=False,
    )
    assert set(report.layers) == GRAPHS
    assert {name.split(".")[0] for name in report.files} == GRAPHS
    assert all(size > 1000 for size in report.files.values())
